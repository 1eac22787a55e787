"""A story reader: an LSTM loop with coverage-fed additive attention, then memory hops summed in a stream of chunks."""

import warnings

import torch
from torch import Tensor, nn

LOG2E = 1.4426950408889634


def glance(facts: Tensor, state: Tensor, cover: Tensor, reach: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """Additive scores of (B, F, H, D) facts under (B, H, D) state and (B, F, H) coverage, normalised by hand."""
    e = (torch.tanh(facts + state[:, None] + cover[..., None] * reach) * v).sum(-1)
    e -= e.max(dim=1, keepdim=True)[0]
    e = e.exp() * real[..., None]
    total = e.sum(1, keepdim=True)
    e /= total
    return e


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # old code, and it stays
    fast_glance = torch.jit.script(glance)


class Hop:
    """One hop; not a module, and owns nothing. Facts come in chunks, so the weights are never all there at once."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def __call__(self, u: Tensor, keys: Tensor, vals: Tensor, real: Tensor, sharp: Tensor) -> Tensor:
        top = den = acc = None
        for k, v, r in zip(*(t.split(self.chunk, dim=1) for t in (keys, vals, real)), strict=True):
            s = torch.matmul(k, u.unsqueeze(-1)).squeeze(-1) * (LOG2E * sharp)
            new = s.amax(-1, True) if top is None else torch.maximum(top, s.amax(-1, True))
            p = torch.exp2(s - new) * r
            if top is None:
                den, acc = p.sum(-1, True), (p.unsqueeze(1) @ v).squeeze(1)
            else:
                fade = torch.exp2(top - new)
                den.mul_(fade).add_(p.sum(-1, True))
                acc.mul_(fade).add_((p.unsqueeze(1) @ v).squeeze(1))
            top = new
        return acc / den


class StoryReader(nn.Module):
    """Stories (B, F, W) and questions (B, L) of word numbers, 0 for no word, to logits over answers."""

    def __init__(self, vocab: int = 25, d: int = 8, heads: int = 2, hops: int = 3, answers: int = 6) -> None:
        super().__init__()
        self.heads, self.hops, self.hop = heads, hops, Hop(chunk=3)
        # table i holds the keys of hop i, and table i + 1 its values
        self.tables = nn.ParameterList(torch.randn(vocab, d).mul_(0.7) for _ in range(hops + 1))
        self.cell = nn.LSTMCell(2 * d, d)
        self.look = nn.ParameterDict({"facts": torch.randn(d, d), "state": torch.randn(d, d)})
        self.look.update({"reach": torch.randn(heads, d // heads), "v": torch.randn(heads, d // heads).mul_(2)})
        self.sharp = nn.Parameter(torch.tensor([0.5, 1.0, 2.0][:hops]))
        self.step = nn.Linear(d, d, bias=False)
        self.say = nn.Linear(d, answers)

    def bag(self, words: Tensor, i: int) -> Tensor:
        """Words added up with weights that depend on where they stand."""
        n, d = words.shape[-1], self.tables[i].shape[-1]
        j = torch.arange(1, n + 1, dtype=self.sharp.dtype)[:, None] / n
        k = torch.arange(1, d + 1, dtype=self.sharp.dtype) / d
        place = (1 - j) - k * (1 - 2 * j)
        return (self.tables[i][words] * place * (words != 0)[..., None]).sum(-2)

    def forward(self, story: Tensor, question: Tensor) -> Tensor:
        real = (story != 0).any(-1).to(self.sharp.dtype)
        bags = [self.bag(story, i) for i in range(self.hops + 1)]
        b, f, d = bags[0].shape
        facts = (bags[0] @ self.look["facts"]).view(b, f, self.heads, -1)
        h = c = bags[0].new_zeros(b, d)
        cover = facts.new_zeros(b, f, self.heads)
        for t in range(question.size(1)):
            state = (h @ self.look["state"]).view(b, self.heads, -1)
            a = fast_glance(facts, state, cover, self.look["reach"], self.look["v"], real)
            cover = cover + a
            seen = (a[..., None] * bags[0].view(b, f, self.heads, -1)).sum(1).flatten(1)
            nh, nc = self.cell(torch.cat([self.tables[0][question[:, t]], seen], -1), (h, c))
            on = (question[:, t] > 0).unsqueeze(-1)
            h, c = torch.where(on, nh, h), torch.where(on, nc, c)
        for i in range(self.hops):
            h = self.step(h) + self.hop(h, bags[i], bags[i + 1], real, self.sharp[i])
        return self.say(h)


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(47)
    model = StoryReader().eval()
    story, question = torch.randint(1, 25, (2, 8, 4)), torch.randint(1, 25, (2, 5))
    story[0, :, 3] = 0
    story[1, 5:] = 0  # the second story is shorter, and its last chunk is empty
    question[1, 4:] = 0
    return model, (story, question)


def reference(model: nn.Module, story: Tensor, question: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64, one story at a time, without the facts that are padding."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    d = w["tables.0"].shape[1]
    heads, part = model.heads, d // model.heads
    b, f, n = story.shape
    steps = question.shape[1]
    loop = torch.zeros(b, heads, steps, f, dtype=torch.float64)
    hops = [torch.zeros(b, 1, 1, f, dtype=torch.float64) for _ in range(model.hops)]
    place = torch.tensor(
        [[1 - j / n - (k / d) * (1 - 2 * j / n) for k in range(1, d + 1)] for j in range(1, n + 1)], dtype=torch.float64
    )
    logits = []
    for i in range(b):
        kept = [x for x in range(f) if bool(story[i, x].any())]
        rows = []
        for table in range(model.hops + 1):
            vec = w[f"tables.{table}"]
            rows.append(
                torch.stack([sum(vec[t] * p for t, p in zip(story[i, x], place, strict=True) if t) for x in kept])
            )
        h = c = torch.zeros(d, dtype=torch.float64)
        for t in range(steps):
            seen = []
            for g in range(heads):
                cut = slice(g * part, (g + 1) * part)
                past = loop[i, g, :t, kept].sum(0)
                mix = rows[0] @ w["look.facts"][:, cut] + h @ w["look.state"][:, cut]
                score = torch.tanh(mix + past[:, None] * w["look.reach"][g]) @ w["look.v"][g]
                loop[i, g, t, kept] = score.softmax(0)
                seen.append(loop[i, g, t, kept] @ rows[0][:, cut])
            if question[i, t] == 0:
                continue
            x = torch.cat([w["tables.0"][question[i, t]], *seen])
            gates = w["cell.weight_ih"] @ x + w["cell.bias_ih"] + w["cell.weight_hh"] @ h + w["cell.bias_hh"]
            put, forget, new, out = gates.chunk(4)
            c = forget.sigmoid() * c + put.sigmoid() * new.tanh()
            h = out.sigmoid() * c.tanh()
        for j in range(model.hops):
            hops[j][i, 0, 0, kept] = (rows[j] @ h * w["sharp"][j]).softmax(0)
            h = w["step.weight"] @ h + hops[j][i, 0, 0, kept] @ rows[j + 1]
        logits.append(w["say.weight"] @ h + w["say.bias"])
    return torch.stack(logits), [loop, *hops]


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The loop as one (B, 2, L, F), a row for each step (also for steps after the question's end), then three hops of
    (B, 1, 1, F)."""
    return reference(model, *inputs)[1]
