"""A token classifier of two time-first layers with learned relative embeddings, skewed into place by a reshape."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class PositionwiseFF(nn.Module):
    def __init__(self, d_model: int, d_inner: int, dropout: float) -> None:
        super().__init__()
        self.CoreNet = nn.Sequential(
            nn.Linear(d_model, d_inner),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(d_inner, d_model),
            nn.Dropout(dropout),
        )
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, inp: Tensor) -> Tensor:
        core_out = self.CoreNet(inp)
        ##### residual connection + layer normalization
        return self.layer_norm(inp + core_out)


class RelLearnableMultiHeadAttn(nn.Module):
    def __init__(self, n_head: int, d_model: int, d_head: int, dropout: float, dropatt: float = 0.0) -> None:
        super().__init__()
        self.n_head = n_head
        self.d_model = d_model
        self.d_head = d_head
        self.qkv_net = nn.Linear(d_model, 3 * n_head * d_head, bias=False)
        self.drop = nn.Dropout(dropout)
        self.dropatt = nn.Dropout(dropatt)
        self.o_net = nn.Linear(n_head * d_head, d_model, bias=False)
        self.layer_norm = nn.LayerNorm(d_model)
        self.scale = 1 / (d_head**0.5)

    def _rel_shift(self, x: Tensor) -> Tensor:
        zero_pad = x.new_zeros((x.size(0), 1, *x.size()[2:]))
        x_padded = torch.cat([zero_pad, x], dim=1)
        x_padded = x_padded.view(x.size(1) + 1, x.size(0), *x.size()[2:])
        return x_padded[1:].view_as(x)

    def forward(self, w: Tensor, r_emb: Tensor, r_w_bias: Tensor, r_bias: Tensor, attn_mask: Tensor) -> Tensor:
        # r_emb: [klen, n_head, d_head], used for term B
        # r_w_bias: [n_head, d_head], used for term C
        # r_bias: [klen, n_head], used for term D
        qlen, bsz = w.size(0), w.size(1)

        w_heads = self.qkv_net(w)
        w_head_q, w_head_k, w_head_v = torch.chunk(w_heads, 3, dim=-1)
        klen = w_head_k.size(0)

        w_head_q = w_head_q.reshape(qlen, bsz, self.n_head, self.d_head)
        w_head_k = w_head_k.reshape(klen, bsz, self.n_head, self.d_head)
        w_head_v = w_head_v.reshape(klen, bsz, self.n_head, self.d_head)

        r_emb, r_bias = r_emb[-klen:], r_bias[-klen:]

        #### compute attention score
        rw_head_q = w_head_q + r_w_bias[None]  # qlen x bsz x n_head x d_head

        AC = torch.einsum("ibnd,jbnd->ijbn", (rw_head_q, w_head_k))  # qlen x klen x bsz x n_head
        B_ = torch.einsum("ibnd,jnd->ijbn", (w_head_q, r_emb))  # qlen x klen x bsz x n_head
        D_ = r_bias[None, :, None]  # 1    x klen x 1   x n_head
        BD = self._rel_shift(B_ + D_)

        # [qlen x klen x bsz x n_head]
        attn_score = AC + BD
        attn_score.mul_(self.scale)
        attn_score.masked_fill_(attn_mask[:, :, None, None], -float("inf"))

        # [qlen x klen x bsz x n_head]
        attn_prob = F.softmax(attn_score, dim=1)
        attn_prob = self.dropatt(attn_prob)

        #### compute attention vector
        attn_vec = torch.einsum("ijbn,jbnd->ibnd", (attn_prob, w_head_v))
        attn_vec = attn_vec.contiguous().view(attn_vec.size(0), attn_vec.size(1), self.n_head * self.d_head)

        ##### linear projection
        attn_out = self.drop(self.o_net(attn_vec))
        return self.layer_norm(w + attn_out)


class MemlessXL(nn.Module):
    def __init__(
        self,
        n_token: int = 40,
        n_layer: int = 2,
        n_head: int = 3,
        d_model: int = 12,
        d_head: int = 5,
        d_inner: int = 24,
        max_klen: int = 16,
        n_class: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_layer = n_layer
        self.word_emb = nn.Embedding(n_token, d_model)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList()
        self.ffs = nn.ModuleList()
        for _ in range(n_layer):
            self.layers.append(RelLearnableMultiHeadAttn(n_head, d_model, d_head, dropout))
            self.ffs.append(PositionwiseFF(d_model, d_inner, dropout))
        self.r_emb = nn.Parameter(torch.Tensor(n_layer, max_klen, n_head, d_head))
        self.r_w_bias = nn.Parameter(torch.Tensor(n_layer, n_head, d_head))
        self.r_bias = nn.Parameter(torch.Tensor(n_layer, max_klen, n_head))
        for p in (self.r_emb, self.r_w_bias, self.r_bias):
            nn.init.normal_(p, 0.0, 1.0)
        self.out = nn.Linear(d_model, n_class)

    def forward(self, data: Tensor) -> Tensor:
        data = data.t()
        qlen = data.size(0)
        core_out = self.drop(self.word_emb(data))
        dec_attn_mask = torch.triu(core_out.new_ones(qlen, qlen), diagonal=1).bool()
        for i in range(self.n_layer):
            core_out = self.layers[i](core_out, self.r_emb[i], self.r_w_bias[i], self.r_bias[i], dec_attn_mask)
            core_out = self.ffs[i](core_out)
        return self.out(core_out.mean(0))


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(29)
    model = MemlessXL()
    return model.eval(), (torch.randint(0, 40, (2, 11)),)


def reference(model: nn.Module, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64, batch first, with the embedding of every distance looked up directly."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    x = w["word_emb.weight"][tokens]
    b, n, d = x.shape
    heads, dh = w["r_emb"].shape[2:]
    found = []
    for i in range(model.n_layer):
        q, k, v = (x @ w[f"layers.{i}.qkv_net.weight"].T).split(heads * dh, -1)
        a = torch.zeros(b, heads, n, n, dtype=torch.float64)
        out = torch.zeros(b, n, heads * dh, dtype=torch.float64)
        for h in range(heads):
            cut = slice(h * dh, (h + 1) * dh)
            for t in range(n):
                score = []
                for s in range(t + 1):
                    away = s - t - 1  # the last embedding is for distance 0
                    content = ((q[:, t, cut] + w["r_w_bias"][i, h]) * k[:, s, cut]).sum(-1)
                    place = q[:, t, cut] @ w["r_emb"][i, away, h] + w["r_bias"][i, away, h]
                    score.append((content + place) / dh**0.5)
                a[:, h, t, : t + 1] = torch.stack(score, -1).softmax(-1)
            out[..., cut] = a[:, h] @ v[..., cut]
        found.append(a)
        x = x + out @ w[f"layers.{i}.o_net.weight"].T
        x = F.layer_norm(x, (d,), w[f"layers.{i}.layer_norm.weight"], w[f"layers.{i}.layer_norm.bias"])
        mid = (x @ w[f"ffs.{i}.CoreNet.0.weight"].T + w[f"ffs.{i}.CoreNet.0.bias"]).relu()
        x = x + mid @ w[f"ffs.{i}.CoreNet.3.weight"].T + w[f"ffs.{i}.CoreNet.3.bias"]
        x = F.layer_norm(x, (d,), w[f"ffs.{i}.layer_norm.weight"], w[f"ffs.{i}.layer_norm.bias"])
    return x.mean(1) @ w["out.weight"].T + w["out.bias"], found


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """One causal (B, 3, T, T) for each of the two layers."""
    return reference(model, *inputs)[1]
