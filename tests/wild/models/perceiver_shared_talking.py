"""A byte classifier: latents read bytes with Fourier positions, then one block is run three times; heads talk."""

from collections.abc import Callable
from functools import wraps
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, einsum, nn


def exists(val: object) -> bool:
    return val is not None


def default(val: Tensor | None, d: Tensor) -> Tensor:
    return val if exists(val) else d


def cache_fn(f: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    cache = None

    @wraps(f)
    def cached_fn(*args: object, _cache: bool = True) -> nn.Module:
        if not _cache:
            return f(*args)
        nonlocal cache
        if cache is not None:
            return cache
        cache = f(*args)
        return cache

    return cached_fn


def fourier_encode(x: Tensor, max_freq: float, num_bands: int = 4) -> Tensor:
    x = x.unsqueeze(-1)
    dtype, orig_x = x.dtype, x
    scales = torch.linspace(1.0, max_freq / 2, num_bands, dtype=dtype)
    scales = scales[(*((None,) * (len(x.shape) - 1)), Ellipsis)]
    x = x * scales * pi
    x = torch.cat([x.sin(), x.cos()], dim=-1)
    return torch.cat((x, orig_x), dim=-1)


class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module, context_dim: int | None = None) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim) if exists(context_dim) else None

    def forward(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        x = self.norm(x)
        if exists(self.norm_context):
            kwargs.update(context=self.norm_context(kwargs["context"]))
        return self.fn(x, **kwargs)


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gates = x.chunk(2, dim=-1)
        return x * F.gelu(gates)


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, dim * mult * 2), GEGLU(), nn.Linear(dim * mult, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class HeadBlend(nn.Module):
    """talking heads after the softmax, kept convex"""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(heads, heads) * 1.5)

    def forward(self, attn: Tensor) -> Tensor:
        return einsum("b h i j, g h -> b g i j", attn, self.logits.softmax(dim=-1))


class Attention(nn.Module):
    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 4,
        dim_head: int = 6,
        talk_before: bool = False,
        talk_after: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = dim_head * heads
        context_dim = context_dim if exists(context_dim) else query_dim
        self.scale = dim_head**-0.5
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, inner_dim * 2, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(0.0))
        self.pre_talk = nn.Conv2d(heads, heads, 1, bias=False) if talk_before else nn.Identity()
        self.post_talk = HeadBlend(heads) if talk_after else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = self.heads

        q = self.to_q(x)
        context = default(context, x)
        k, v = self.to_kv(context).chunk(2, dim=-1)

        q, k, v = (t.reshape(*t.shape[:2], h, -1).transpose(1, 2) for t in (q, k, v))

        sim = einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        sim = self.pre_talk(sim)

        if exists(mask):
            max_neg_value = -torch.finfo(sim.dtype).max
            sim.masked_fill_(~mask[:, None, None, :], max_neg_value)

        attn = sim.softmax(dim=-1)
        attn = self.post_talk(attn)

        out = einsum("b h i j, b h j d -> b h i d", attn, v)
        out = out.transpose(1, 2).flatten(2)
        return self.to_out(out)


class Perceiver(nn.Module):
    def __init__(
        self,
        *,
        num_bytes: int = 256,
        depth: int = 3,
        byte_dim: int = 8,
        num_freq_bands: int = 3,
        max_freq: float = 8.0,
        num_latents: int = 6,
        latent_dim: int = 14,
        num_classes: int = 5,
    ) -> None:
        super().__init__()
        self.max_freq, self.num_freq_bands = max_freq, num_freq_bands
        input_dim = byte_dim + 2 * num_freq_bands + 1
        self.byte_emb = nn.Embedding(num_bytes, byte_dim)
        self.latents = nn.Parameter(torch.randn(num_latents, latent_dim))

        cross = Attention(latent_dim, input_dim, heads=2, dim_head=5, talk_before=True)
        self.cross_attn = PreNorm(latent_dim, cross, context_dim=input_dim)
        self.cross_ff = PreNorm(latent_dim, FeedForward(latent_dim))

        get_latent_attn = cache_fn(lambda: PreNorm(latent_dim, Attention(latent_dim, talk_after=True)))
        get_latent_ff = cache_fn(lambda: PreNorm(latent_dim, FeedForward(latent_dim)))

        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([get_latent_attn(_cache=True), get_latent_ff(_cache=True)]))

        self.to_logits = nn.Sequential(nn.LayerNorm(latent_dim), nn.Linear(latent_dim, num_classes))

    def forward(self, data: Tensor) -> Tensor:
        b, n = data.shape
        mask = data != 0

        pos = torch.linspace(-1.0, 1.0, steps=n, dtype=self.latents.dtype)
        enc_pos = fourier_encode(pos, self.max_freq, self.num_freq_bands)
        data = torch.cat((self.byte_emb(data), enc_pos[None].expand(b, -1, -1)), dim=-1)

        x = self.latents[None].repeat(b, 1, 1)
        x = self.cross_attn(x, context=data, mask=mask) + x
        x = self.cross_ff(x) + x

        for self_attn, self_ff in self.layers:
            x = self_attn(x) + x
            x = self_ff(x) + x

        return self.to_logits(x.mean(dim=-2))


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(37)
    model = Perceiver()
    for name, p in model.named_parameters():
        if name.endswith(("to_q.weight", "to_kv.weight")):
            p.data.mul_(2.5)
        if name.endswith("pre_talk.weight"):
            p.data.normal_()
    text = [b"induced by what?", b"eleven byte\0\0\0\0\0"]
    return model.eval(), (torch.tensor([list(t) for t in text]),)


def _norm64(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])


def _feed64(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = _norm64(w, name + ".norm", x) @ w[name + ".fn.net.0.weight"].T + w[name + ".fn.net.0.bias"]
    n = y.shape[-1] // 2
    gate = y[..., n:] * (1 + torch.erf(y[..., n:] / 2**0.5)) / 2
    return x + (y[..., :n] * gate) @ w[name + ".fn.net.2.weight"].T + w[name + ".fn.net.2.bias"]


def _read64(
    w: dict[str, Tensor], name: str, heads: int, x: Tensor, y: Tensor, real: Tensor, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:
    """x (B, Q, C), normalised here, reads y (B, K, D), normalised already; heads are mixed by before and by after."""
    q = _norm64(w, name + ".norm", x) @ w[name + ".fn.to_q.weight"].T
    k, v = (y @ t.T for t in w[name + ".fn.to_kv.weight"].chunk(2))
    q, k, v = (t.chunk(heads, -1) for t in (q, k, v))
    a = torch.zeros(len(x), heads, x.shape[1], y.shape[1], dtype=torch.float64)
    out = []
    for i in range(len(x)):
        keys = real[i].nonzero().flatten()
        raw = [q[h][i] @ k[h][i, keys].T / q[h].shape[-1] ** 0.5 for h in range(heads)]
        soft = [sum(before[g, h] * raw[h] for h in range(heads)).softmax(-1) for g in range(heads)]
        for g in range(heads):
            a[i, g][:, keys] = sum(after[g, h] * soft[h] for h in range(heads))
        out.append(torch.cat([a[i, g] @ v[g][i] for g in range(heads)], -1))
    return x + torch.stack(out) @ w[name + ".fn.to_out.0.weight"].T + w[name + ".fn.to_out.0.bias"], a


def reference(model: nn.Module, data: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    b, n = data.shape
    bands = model.num_freq_bands
    rows = []
    for t in range(n):
        at = -1 + 2 * t / (n - 1)
        turns = [pi * at * (1 + (model.max_freq / 2 - 1) * j / (bands - 1)) for j in range(bands)]
        turns = torch.tensor(turns, dtype=torch.float64)
        rows.append(torch.cat((turns.sin(), turns.cos(), torch.tensor([at], dtype=torch.float64))))
    y = torch.cat((w["byte_emb.weight"][data], torch.stack(rows).expand(b, -1, -1)), -1)

    x = w["latents"].expand(b, -1, -1)
    before = w["cross_attn.fn.pre_talk.weight"][..., 0, 0]
    same = torch.eye(len(before), dtype=torch.float64)
    y = _norm64(w, "cross_attn.norm_context", y)
    x, a = _read64(w, "cross_attn", len(before), x, y, data != 0, before, same)
    x = _feed64(w, "cross_ff", x)
    found = [a]

    after = w["layers.0.0.fn.post_talk.logits"].softmax(-1)
    same = torch.eye(len(after), dtype=torch.float64)
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    for _ in range(len(model.layers)):
        y = _norm64(w, "layers.0.0.norm", x)
        x, a = _read64(w, "layers.0.0", len(after), x, y, real, same, after)
        x = _feed64(w, "layers.0.1", x)
        found.append(a)
    x = _norm64(w, "to_logits.0", x.mean(1))
    return x @ w["to_logits.1.weight"].T + w["to_logits.1.bias"], found


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Latents to bytes (B, 2, latents, N), zero on padding, heads mixed before the softmax; then (B, 4, latents,
    latents) for each of three runs of the same block, after the convex mix of heads that follows the softmax."""
    return reference(model, *inputs)[1]
