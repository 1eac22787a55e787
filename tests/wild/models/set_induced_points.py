"""A point set classifier: induced points look at the set and the set looks back, then learned seeds pool it."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class MAB(nn.Module):
    def __init__(self, dim_Q: int, dim_K: int, dim_V: int, num_heads: int, ln: bool = False) -> None:
        super().__init__()
        self.dim_V = dim_V
        self.num_heads = num_heads
        self.fc_q = nn.Linear(dim_Q, dim_V)
        self.fc_k = nn.Linear(dim_K, dim_V)
        self.fc_v = nn.Linear(dim_K, dim_V)
        if ln:
            self.ln0 = nn.LayerNorm(dim_V)
            self.ln1 = nn.LayerNorm(dim_V)
        self.fc_o = nn.Linear(dim_V, dim_V)

    def forward(self, Q: Tensor, K: Tensor) -> Tensor:
        Q = self.fc_q(Q)
        K, V = self.fc_k(K), self.fc_v(K)

        d = self.dim_V // self.num_heads
        Q_ = torch.cat(Q.split(d, 2), 0)
        K_ = torch.cat(K.split(d, 2), 0)
        V_ = torch.cat(V.split(d, 2), 0)

        A = torch.softmax(Q_.bmm(K_.transpose(1, 2)) / math.sqrt(d), 2)
        H = torch.cat((Q_ + A.bmm(V_)).split(Q.size(0), 0), 2)
        H = H if getattr(self, "ln0", None) is None else self.ln0(H)
        H = H + F.relu(self.fc_o(H))
        return H if getattr(self, "ln1", None) is None else self.ln1(H)


class SAB(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, num_heads: int, ln: bool = False) -> None:
        super().__init__()
        self.mab = MAB(dim_in, dim_in, dim_out, num_heads, ln=ln)

    def forward(self, X: Tensor) -> Tensor:
        return self.mab(X, X)


class ISAB(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, num_heads: int, num_inds: int, ln: bool = False) -> None:
        super().__init__()
        self.I = nn.Parameter(torch.Tensor(1, num_inds, dim_out))
        nn.init.normal_(self.I, std=2.0)
        self.mab0 = MAB(dim_out, dim_in, dim_out, num_heads, ln=ln)
        self.mab1 = MAB(dim_in, dim_out, dim_out, num_heads, ln=ln)

    def forward(self, X: Tensor) -> Tensor:
        H = self.mab0(self.I.repeat(X.size(0), 1, 1), X)
        return self.mab1(X, H)


class PMA(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_seeds: int, ln: bool = False) -> None:
        super().__init__()
        self.S = nn.Parameter(torch.Tensor(1, num_seeds, dim))
        nn.init.normal_(self.S, std=0.8)
        self.mab = MAB(dim, dim, dim, num_heads, ln=ln)

    def forward(self, X: Tensor) -> Tensor:
        return self.mab(self.S.repeat(X.size(0), 1, 1), X)


class SetTransformer(nn.Module):
    def __init__(
        self,
        dim_input: int = 3,
        num_outputs: int = 2,
        dim_output: int = 4,
        num_inds: int = 5,
        dim_hidden: int = 16,
        num_heads: int = 4,
        ln: bool = True,
    ) -> None:
        super().__init__()
        self.enc = nn.Sequential(
            ISAB(dim_input, dim_hidden, num_heads, num_inds, ln=ln),
            ISAB(dim_hidden, dim_hidden, num_heads, num_inds, ln=ln),
        )
        self.dec = nn.Sequential(
            PMA(dim_hidden, num_heads, num_outputs, ln=ln),
            SAB(dim_hidden, dim_hidden, num_heads),
            nn.Flatten(),
            nn.Linear(num_outputs * dim_hidden, dim_output),
        )
        for name, p in self.named_parameters():
            if name.endswith(("fc_q.weight", "fc_k.weight")):
                nn.init.xavier_normal_(p, gain=1.7)

    def forward(self, X: Tensor) -> Tensor:
        return self.dec(self.enc(X))


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(3)
    net = SetTransformer(num_outputs=3)
    return net.eval(), (torch.randn(3, 9, 3),)


def _block64(w: dict[str, Tensor], name: str, heads: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One block from x (B, Q, C) to y (B, K, C), an example and a head at a time; its output and its weights."""

    def lin(part: str, t: Tensor) -> Tensor:
        return t @ w[f"{name}.{part}.weight"].T + w[f"{name}.{part}.bias"]

    def norm(part: str, t: Tensor) -> Tensor:
        if f"{name}.{part}.weight" not in w:
            return t
        t = t - t.mean(-1, keepdim=True)
        t = t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return t * w[f"{name}.{part}.weight"] + w[f"{name}.{part}.bias"]

    q, k, v = lin("fc_q", x), lin("fc_k", y), lin("fc_v", y)
    d = q.shape[-1] // heads
    a = torch.zeros(len(q), heads, q.shape[1], k.shape[1], dtype=torch.float64)
    out = q.clone()
    for i in range(len(q)):
        for h in range(heads):
            cut = slice(h * d, (h + 1) * d)
            e = (q[i, :, cut] @ k[i, :, cut].T / d**0.5).exp()
            a[i, h] = e / e.sum(-1, keepdim=True)
            out[i, :, cut] += a[i, h] @ v[i, :, cut]
    out = norm("ln0", out)
    return norm("ln1", out + lin("fc_o", out).relu()), a


def reference(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    x = x.double()
    b, heads = len(x), model.enc[0].mab0.num_heads
    found = []
    for i in range(2):
        inner, a = _block64(w, f"enc.{i}.mab0", heads, w[f"enc.{i}.I"].expand(b, -1, -1), x)
        x, back = _block64(w, f"enc.{i}.mab1", heads, x, inner)
        found += [a, back]
    x, a = _block64(w, "dec.0.mab", heads, w["dec.0.S"].expand(b, -1, -1), x)
    x, last = _block64(w, "dec.1.mab", heads, x, x)
    return x.reshape(b, -1) @ w["dec.3.weight"].T + w["dec.3.bias"], [*found, a, last]


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Twice (B, 4, points, N) and back (B, 4, N, points); then the seeds (B, 4, seeds, N), and the seeds among
    themselves (B, 4, seeds, seeds)."""
    return reference(model, *inputs)[1]
