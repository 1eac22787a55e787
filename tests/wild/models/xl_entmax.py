"""An old-style text classifier with segment memory: time first, heads in the batch, shifted positions, 1.5-entmax."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Entmax15(torch.autograd.Function):
    """Exact 1.5-entmax over the last dimension, by sorting."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x = (x - x.max(-1, keepdim=True)[0]).div_(2)
        srt = x.sort(-1, descending=True)[0]
        rho = torch.arange(1, x.size(-1) + 1, dtype=x.dtype)
        mean = srt.cumsum(-1) / rho
        ss = rho * ((srt * srt).cumsum(-1) / rho - mean * mean)
        tau = mean - ((1 - ss) / rho).clamp_(min=0).sqrt_()
        size = (tau <= srt).sum(-1, keepdim=True)
        y = (x - tau.gather(-1, size - 1)).clamp_(min=0).pow_(2)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        root = ctx.saved_tensors[0].sqrt()
        g = grad * root
        return g - root * (g.sum(-1, keepdim=True) / root.sum(-1, keepdim=True))


def rel_shift(x: Tensor) -> Tensor:
    """(Z, Q, K): row i moves left by Q - 1 - i, without an index, by reading the padded memory in another shape."""
    z, q, k = x.size()
    x = torch.cat([x.new_zeros(z, q, 1), x], 2).view(z, k + 1, q)
    return x[:, 1:].reshape(z, q, k)


class Segmenter(nn.Module):
    def __init__(
        self,
        n_token: int = 30,
        n_layer: int = 2,
        n_head: int = 3,
        d_head: int = 4,
        d_inner: int = 20,
        seg_len: int = 4,
        mem_len: int = 6,
        n_class: int = 5,
    ) -> None:
        super().__init__()
        self.n_layer, self.n_head, self.d_head = n_layer, n_head, d_head
        self.seg_len, self.mem_len = seg_len, mem_len
        d = n_head * d_head
        self.emb = nn.Embedding(n_token, d)
        self.r_w_bias = nn.Parameter(torch.empty(n_head, d_head).normal_())
        self.r_r_bias = nn.Parameter(torch.empty(n_head, d_head).normal_())
        for i in range(n_layer):
            setattr(self, f"qkv_{i}", nn.Linear(d, 3 * d, bias=False))
            setattr(self, f"pos_{i}", nn.Linear(d, d, bias=False))
            setattr(self, f"o_{i}", nn.Linear(d, d, bias=False))
            setattr(self, f"ff1_{i}", nn.Linear(d, d_inner))
            setattr(self, f"ff2_{i}", nn.Linear(d_inner, d))
            setattr(self, f"ln_{i}", nn.LayerNorm(d))
        self.cls = nn.Linear(d, n_class)

    def fold(self, x: Tensor) -> Tensor:
        """(T, B, H * D) to (B * H, T, D)."""
        return x.contiguous().view(x.size(0), -1, self.d_head).transpose(0, 1)

    def positions(self, klen: int) -> Tensor:
        d = self.n_head * self.d_head
        inv = 1 / (10000 ** (torch.arange(0.0, d, 2.0, dtype=self.r_w_bias.dtype) / d))
        s = torch.ger(torch.arange(klen - 1, -1, -1.0, dtype=inv.dtype), inv)
        return torch.cat([s.sin(), s.cos()], -1)

    def layer(self, i: int, h: Tensor, mem: Tensor) -> Tensor:
        qlen, bsz, d = h.size()
        cat = torch.cat([mem, h], 0)
        klen = cat.size(0)
        q, k, v = getattr(self, f"qkv_{i}")(cat).chunk(3, -1)
        q, k, v = q[-qlen:], self.fold(k), self.fold(v)
        r = self.fold(getattr(self, f"pos_{i}")(self.positions(klen)).unsqueeze(1)).repeat(bsz, 1, 1)
        q_w = self.fold(q + self.r_w_bias.view(-1))
        q_r = self.fold(q + self.r_r_bias.view(-1))
        score = torch.baddbmm(rel_shift(torch.bmm(q_r, r.transpose(1, 2))), q_w, k.transpose(1, 2))
        score.mul_(2.0 / self.d_head**0.5)
        future = torch.ones(qlen, klen, dtype=torch.uint8).triu_(1 + klen - qlen)
        score.data.masked_fill_(future.bool().unsqueeze(0), -1e4)
        out = torch.bmm(Entmax15.apply(score), v)
        out = out.transpose(0, 1).contiguous().view(qlen, bsz, d)
        h = h + getattr(self, f"o_{i}")(out)
        h = h + getattr(self, f"ff2_{i}")(F.relu(getattr(self, f"ff1_{i}")(h), inplace=True))
        return getattr(self, f"ln_{i}")(h)

    def forward(self, tokens: Tensor) -> Tensor:
        word = self.emb(tokens.t())
        mems = [word.new_empty(0, *word.shape[1:]) for _ in range(self.n_layer)]
        total = 0
        for seg in word.split(self.seg_len, 0):
            h = seg
            for i in range(self.n_layer):
                keep = torch.cat([mems[i], h], 0)[-self.mem_len :].detach()
                h, mems[i] = self.layer(i, h, mems[i]), keep
            total = total + h.sum(0)
        return self.cls(total / tokens.size(1))


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(23)
    model = Segmenter()
    tokens = torch.randint(0, 30, (2, 11))
    return model.eval(), (tokens,)


def _entmax64(s: Tensor) -> Tensor:
    """1.5-entmax by bisection on the threshold; -inf is allowed."""
    s = s / 2
    low, high = s.amax(-1, keepdim=True) - 1, s.amax(-1, keepdim=True)
    for _ in range(80):
        mid = (low + high) / 2
        big = (s - mid).clamp(min=0).square().sum(-1, keepdim=True) >= 1
        low, high = torch.where(big, mid, low), torch.where(big, high, mid)
    return (s - low).clamp(min=0).square()


def reference(model: nn.Module, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64, batch first, with every distance looked up directly."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    heads, dh = model.n_head, model.d_head
    d = heads * dh
    x = w["emb.weight"][tokens]
    past = [x[:, :0]] * model.n_layer
    found, seen = [], []
    rate = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    for start in range(0, x.shape[1], model.seg_len):
        h = x[:, start : start + model.seg_len]
        n = h.shape[1]
        for i in range(model.n_layer):
            full = torch.cat((past[i], h), 1)
            m = full.shape[1] - n
            q, k, v = (
                t.unflatten(-1, (heads, dh)).transpose(1, 2) for t in (full @ w[f"qkv_{i}.weight"].T).split(d, -1)
            )
            s = torch.full((len(x), heads, n, m + n), -torch.inf, dtype=torch.float64)
            for a in range(n):
                for c in range(m + a + 1):
                    angle = (m + a - c) * rate
                    r = w[f"pos_{i}.weight"] @ torch.cat((angle.sin(), angle.cos()))
                    content = ((q[:, :, m + a] + w["r_w_bias"]) * k[:, :, c]).sum(-1)
                    place = ((q[:, :, m + a] + w["r_r_bias"]) * r.view(heads, dh)).sum(-1)
                    s[..., a, c] = (content + place) * 2 / dh**0.5
            p = _entmax64(s)
            found.append(p)
            past[i] = full[:, -model.mem_len :]
            h = h + (p @ v).transpose(1, 2).flatten(2) @ w[f"o_{i}.weight"].T
            mid = (h @ w[f"ff1_{i}.weight"].T + w[f"ff1_{i}.bias"]).relu()
            h = h + mid @ w[f"ff2_{i}.weight"].T + w[f"ff2_{i}.bias"]
            h = F.layer_norm(h, (d,), w[f"ln_{i}.weight"], w[f"ln_{i}.bias"])
        seen.append(h)
    return torch.cat(seen, 1).mean(1) @ w["cls.weight"].T + w["cls.bias"], found


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """One (B, 3, Q, memory + Q) for each segment and, within it, each layer; memory comes first among the keys, and the
    sizes differ from segment to segment."""
    return reference(model, *inputs)[1]
