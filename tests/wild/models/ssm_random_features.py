"""A series classifier: diagonal state spaces run by FFT around one causal random-feature attention with decay."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.fft import irfft, rfft

Params = Mapping[str, Tensor]


def long_conv(u: Tensor, p: Params, tag: str) -> Tensor:
    """A diagonal complex recurrence on (B, T, C), as a convolution with its own impulse response."""
    n = u.size(-2)
    rate = torch.complex(-p[tag + "_decay"].exp(), p[tag + "_freq"])  # (C, S)
    gain = torch.view_as_complex(p[tag + "_gain"])
    taps = torch.arange(n, dtype=u.dtype)
    kernel = 2 * (gain[..., None] * torch.exp(rate[..., None] * taps)).sum(-2).real  # (C, T)
    y = irfft(rfft(u.mT, 2 * n) * rfft(kernel, 2 * n), 2 * n)[..., :n].mT
    return nn.functional.gelu(y + u * p[tag + "_skip"])


def positive_map(x: Tensor, omega: Tensor, dim: int | tuple[int, int]) -> Tensor:
    """exp(omega x - |x|^2 / 2), divided by its largest value along dim; the factor cancels later."""
    z = x @ omega.T - x.square().sum(-1, keepdim=True) / 2
    return torch.exp(z - z.amax(dim, keepdim=True)) + 1e-4


def one_head(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, omega: Tensor, *, chunk: int) -> Tensor:
    """One example, one head: (T, D) each. No T by T table: a state for the past, small squares inside a chunk."""
    scale = q.shape[-1] ** -0.25
    fq, fk = positive_map(q * scale, omega, -1), positive_map(k * scale, omega, (0, 1))
    v1 = torch.cat((v, torch.ones_like(v[:, :1])), 1)  # the column of ones adds up the denominator
    state = torch.zeros_like(fk[:1].T @ v1[:1])
    done = []
    for a, b, c in zip(fq.split(chunk), fk.split(chunk), v1.split(chunk), strict=True):
        t = torch.arange(len(a), dtype=a.dtype)
        lag = t[:, None] - t
        inside = (a @ b.T * keep ** lag.clamp(min=0)).tril()
        done.append(inside @ c + (keep ** (t + 1))[:, None] * (a @ state))
        state = state * keep ** len(a) + (b * (keep ** t.flip(0))[:, None]).T @ c
    out = torch.cat(done)
    return out[:, :-1] / out[:, -1:]


def network(p: Params, omega: Tensor, x: Tensor, heads: int, chunk: int) -> Tensor:
    x = x @ p["embed"]
    x = x + long_conv(x, p, "before")
    qkv = torch.einsum("btc,cjhd->jbhtd", nn.functional.rms_norm(x, x.shape[-1:]), p["qkv"])
    run = torch.vmap(partial(one_head, chunk=chunk), in_dims=(0, 0, 0, 0, 0))  # over heads
    run = torch.vmap(run, in_dims=(0, 0, 0, None, None))  # over the batch
    o = run(*qkv, torch.sigmoid(p["keep"]), omega)
    x = x + torch.einsum("bhtd,hdc->btc", o, p["merge"])
    x = x + long_conv(x, p, "after")
    return x[:, -1] @ p["head"]


class Tide(nn.Module):
    """Only a bag of parameters; the network is the function above."""

    def __init__(self, n_in: int, c: int, heads: int, n_feat: int, n_class: int, chunk: int = 5) -> None:
        super().__init__()
        self.heads, self.chunk = heads, chunk
        d, s = c // heads, 4
        bag = {"embed": torch.randn(n_in, c), "head": torch.randn(c, n_class) / c**0.5}
        bag |= {"qkv": 1.5 * torch.randn(c, 3, heads, d) / c**0.5, "merge": torch.randn(heads, d, c) / c**0.5}
        bag["keep"] = torch.linspace(1.0, 4.0, heads)
        for tag in ("before", "after"):
            bag[tag + "_decay"] = torch.rand(c, s) - 2
            bag[tag + "_freq"] = torch.pi * torch.arange(s).repeat(c, 1) / 3
            bag[tag + "_gain"] = torch.randn(c, s, 2) / 4  # real pairs, so that casts keep working
            bag[tag + "_skip"] = torch.randn(c)
        self.bag = nn.ParameterDict(bag)
        self.register_buffer("omega", torch.linalg.qr(torch.randn(heads, n_feat, d))[0] * d**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return network(self.bag, self.omega, x, self.heads, self.chunk)


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(31)
    model = Tide(n_in=3, c=16, heads=2, n_feat=24, n_class=3)
    return model.eval(), (torch.randn(2, 17, 3),)


def _recur64(u: Tensor, w: dict[str, Tensor], tag: str) -> Tensor:
    """The state space stepped through time."""
    step = torch.exp(torch.complex(-w[tag + "_decay"].exp(), w[tag + "_freq"]))
    gain = torch.complex(w[tag + "_gain"][..., 0], w[tag + "_gain"][..., 1])
    state = torch.zeros(len(u), *step.shape, dtype=torch.complex128)
    out = []
    for t in range(u.shape[1]):
        state = state * step + u[:, t, :, None]
        out.append(2 * (state * gain).sum(-1).real)
    return nn.functional.gelu(torch.stack(out, 1) + u * w[tag + "_skip"])


def reference(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and implied weights in float64: the features are multiplied out to a full lower triangle."""
    w = {k: v.detach().double() for k, v in model.bag.items()}
    omega = model.omega.double()
    x = x.double() @ w["embed"]
    x = x + _recur64(x, w, "before")
    b, n, _ = x.shape
    d = omega.shape[-1]
    y = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
    a = torch.zeros(b, model.heads, n, n, dtype=torch.float64)
    add = torch.zeros_like(x)
    for h in range(model.heads):
        q, k, v = (y @ w["qkv"][:, j, h] for j in range(3))
        gamma = torch.sigmoid(w["keep"][h])
        logs = [(t / d**0.25) @ omega[h].T - t.square().sum(-1, keepdim=True) / d**0.5 / 2 for t in (q, k)]
        # the floor of 1e-4 is relative to the largest feature: of each query, but of all keys together
        fq = (logs[0] - logs[0].amax(-1, keepdim=True)).exp() + 1e-4
        fk = (logs[1] - logs[1].flatten(1).amax(-1)[:, None, None]).exp() + 1e-4
        for i in range(n):
            for j in range(i + 1):
                a[:, h, i, j] = (fq[:, i] * fk[:, j]).sum(-1) * gamma ** (i - j)
        a[:, h] /= a[:, h].sum(-1, keepdim=True)
        add = add + a[:, h] @ v @ w["merge"][h]
    x = x + add
    x = x + _recur64(x, w, "after")
    return x[:, -1] @ w["head"], [a]


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The implied weights (B, 2, T, T) of the one attention: causal, positive, rows sum to one."""
    return reference(model, *inputs)[1]
