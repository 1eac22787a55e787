"""An image classifier: axial talking-heads attention over rows, then columns, then slots that compete for pixels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Line(nn.Module):
    """Attention along the last but one dimension of (..., L, C); the other dimensions are a batch, however many.

    Heads are mixed twice: freely before the softmax, and by a row-stochastic matrix after it, so rows still sum to one.
    """

    def __init__(self, c: int, heads: int, length: int) -> None:
        super().__init__()
        self.h = heads
        self.qk = nn.Conv1d(c, 2 * c, 1, bias=False)
        self.v = nn.Conv1d(c, c, 1)
        self.pre = nn.Parameter(torch.eye(heads) + 0.4 * torch.randn(heads, heads))
        self.post = nn.Parameter(torch.randn(heads, heads))
        self.offset = nn.Parameter(torch.randn(heads, 2 * length - 1))

    def forward(self, x: Tensor) -> Tensor:
        *lead, n, c = x.shape
        flat = x.reshape(-1, n, c).mT
        # channels are ordered (within head, head): the head is the fast index
        q, k = self.qk(flat).chunk(2, dim=-2)
        q, k, v = (t.unflatten(-2, (-1, self.h)) for t in (q, k, self.v(flat)))
        s = torch.einsum("zdhi,zdhj->zijh", q, k) * (c // self.h) ** -0.5
        # windows of the offset table, last first: entry [i, j] is offset[j - i + n - 1]
        s = s + self.offset.unfold(-1, n, 1).flip(-2).permute(1, 2, 0)
        s = F.linear(s, self.pre)
        a = F.linear(F.softmax(s, dim=-2), self.post.softmax(-1))
        o = torch.einsum("zijh,zdhj->zidh", a, v)
        return o.reshape(*lead, n, c)


class Slots(nn.Module):
    """The softmax runs over slots and heads together, pixels are normalised only by a division at the very end."""

    def __init__(self, c: int, n_slots: int, heads: int, rounds: int) -> None:
        super().__init__()
        self.heads, self.rounds = heads, rounds
        self.seed = nn.Parameter(torch.randn(n_slots, c))
        self.q, self.k, self.v = (nn.Linear(c, c, bias=False) for _ in "qkv")
        nn.init.orthogonal_(self.q.weight, gain=2.0)
        nn.init.orthogonal_(self.k.weight, gain=2.0)
        self.norm_in, self.norm_slot = nn.LayerNorm(c), nn.LayerNorm(c)
        self.cell = nn.GRUCell(c, c)

    def forward(self, x: Tensor, eps: float = 1e-6) -> Tensor:
        b, p, c = x.shape
        x = self.norm_in(x)
        k, v = self.k(x).view(b, p, self.heads, -1), self.v(x).view(b, p, self.heads, -1)
        slots = self.seed.repeat(b, 1, 1)
        for _ in range(self.rounds):
            q = self.q(self.norm_slot(slots)).view(b, -1, self.heads, c // self.heads)
            dots = torch.einsum("bphd,bshd->bpsh", k, q) / math.sqrt(c // self.heads)
            share = dots.flatten(2).softmax(-1).view_as(dots) + eps
            got = torch.einsum("bpsh,bphd->bshd", share, v) / share.sum(1)[..., None]
            slots = self.cell(got.reshape(-1, c), slots.reshape(-1, c)).view(b, -1, c)
        return slots


class CrossStitch(nn.Module):
    def __init__(self, size: tuple[int, int], c: int = 12, heads: int = 4, n_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.GroupNorm(3, c), nn.SiLU())
        self.row, self.col = Line(c, heads, size[1] // 2), Line(c, heads, size[0] // 2)
        self.slots = Slots(c, n_slots=3, heads=2, rounds=3)
        self.out = nn.Linear(c, n_classes)

    def forward(self, img: Tensor) -> Tensor:
        x = self.stem(img).movedim(-3, -1)
        x = x + self.row(x)
        x = x + self.col(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.slots(x.flatten(1, 2)).amax(-2))


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(5)
    return CrossStitch((8, 12)).eval(), (torch.randn(2, 3, 8, 12),)


def _line64(w: dict[str, Tensor], name: str, x: Tensor, groups: list[list[int]]) -> tuple[Tensor, Tensor]:
    """One axial step on pixels (B, P, C), for groups of pixel numbers, as full (B, H, P, P) weights."""
    b, p, c = x.shape
    pre, post, table = w[name + ".pre"], w[name + ".post"].softmax(-1), w[name + ".offset"]
    h = len(pre)
    q, k = (x @ w[name + ".qk.weight"][..., 0].T).split(c, -1)
    v = x @ w[name + ".v.weight"][..., 0].T + w[name + ".v.bias"]
    maps = torch.zeros(b, h, p, p, dtype=torch.float64)
    for g in groups:
        n = len(g)
        gap = torch.arange(n)[None, :] - torch.arange(n)[:, None] + n - 1
        raw = [q[:, g, i::h] @ k[:, g, i::h].mT / math.sqrt(c // h) + table[i][gap] for i in range(h)]
        soft = [sum(pre[i, j] * raw[j] for j in range(h)).softmax(-1) for i in range(h)]
        for i in range(h):
            block = sum(post[i, j] * soft[j] for j in range(h))
            for at, pixel in enumerate(g):
                maps[:, i, pixel, g] = block[:, at]
    y = torch.empty_like(x)
    for i in range(h):
        y[..., i::h] = maps[:, i] @ v[..., i::h]
    return x + y, maps


def reference(model: nn.Module, img: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64; the axial maps are written out over all pairs of pixels."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    x = F.conv2d(img.double(), w["stem.0.weight"], w["stem.0.bias"], stride=2, padding=1)
    x = F.silu(F.group_norm(x, 3, w["stem.1.weight"], w["stem.1.bias"]))
    b, c, rows, cols = x.shape
    x = x.flatten(2).mT
    x, first = _line64(w, "row", x, [[r * cols + i for i in range(cols)] for r in range(rows)])
    x, second = _line64(w, "col", x, [[r * cols + i for r in range(rows)] for i in range(cols)])
    found = [first, second]

    x = F.layer_norm(x, (c,), w["slots.norm_in.weight"], w["slots.norm_in.bias"])
    heads = model.slots.heads
    k, v = ((x @ w[f"slots.{n}.weight"].T).chunk(heads, -1) for n in "kv")
    s = w["slots.seed"].expand(b, -1, -1)
    for _ in range(model.slots.rounds):
        normed = F.layer_norm(s, (c,), w["slots.norm_slot.weight"], w["slots.norm_slot.bias"])
        q = (normed @ w["slots.q.weight"].T).chunk(heads, -1)
        e = torch.stack([q[i] @ k[i].mT / math.sqrt(c // heads) for i in range(heads)], 1).exp()
        share = e / e.sum((1, 2), keepdim=True) + 1e-6
        a = share / share.sum(-1, keepdim=True)
        found.append(a)
        u = torch.cat([a[:, i] @ v[i] for i in range(heads)], -1)
        gi = (u @ w["slots.cell.weight_ih"].T + w["slots.cell.bias_ih"]).chunk(3, -1)
        gh = (s @ w["slots.cell.weight_hh"].T + w["slots.cell.bias_hh"]).chunk(3, -1)
        z = torch.sigmoid(gi[1] + gh[1])
        s = (1 - z) * torch.tanh(gi[2] + torch.sigmoid(gi[0] + gh[0]) * gh[2]) + z * s
    return s.amax(1) @ w["out.weight"].T + w["out.bias"], found


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Row step and column step as (B, 4, P, P) over all P pixels (row-major, zero off the line), after both mixes of
    heads; then one (B, 2, slots, P) for each of the three rounds of the slots, normalised over pixels."""
    return reference(model, *inputs)[1]
