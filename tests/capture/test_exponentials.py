"""Softmax written out by hand: exponentials divided by their sum are read, and refused where they cannot be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.errors import UnreadableAttentionError

N, WIDTH, HEADS = 5, 12, 3


def _divided(s, mask):
    e = torch.exp(s.masked_fill(~mask, float("-inf")))
    return e / e.sum(-1, keepdim=True)


def _stable_with_epsilon(s, mask):
    e = (s - s.amax(dim=-1, keepdim=True)).exp() * mask
    return e / (e.sum(dim=-1, keepdim=True) + 1e-12)


def _in_place(s, mask):
    s -= s.max(-1, keepdim=True).values
    s.exp_()
    s = s * mask
    s /= s.sum(-1).unsqueeze(-1)
    return s


def _exp_of_log_softmax(s, mask):
    return F.log_softmax(s.masked_fill(~mask, -1e30), dim=-1).exp()


def _minus_log_sum(s, mask):
    s = s.masked_fill(~mask, -1e30)
    return torch.exp(s - torch.logsumexp(s, dim=-1, keepdim=True))


def _powers_of_two(s, mask):
    e = torch.exp2(s * 1.4426950408889634).masked_fill(~mask, 0.0)
    return torch.div(e, e.sum(-1, True).clamp(min=1e-30))


def _special(s, mask):
    return torch.special.softmax(s.masked_fill(~mask, float("-inf")), dim=-1)


def _softmin(s, mask):
    return F.softmin(-s.masked_fill(~mask, -1e30), dim=-1)


WAYS = [
    _special,
    _softmin,
    _divided,
    _stable_with_epsilon,
    _in_place,
    _exp_of_log_softmax,
    _minus_log_sum,
    _powers_of_two,
]


class Layer(nn.Module):
    def __init__(self, normalise):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.normalise = normalise

    def parts(self, x):
        return [f(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for f in (self.query, self.key, self.value)]

    def forward(self, x, mask):
        q, k, v = self.parts(x)
        weights = self.normalise(3 * q @ k.transpose(-1, -2), mask)
        return x + (weights @ v).transpose(1, 2).reshape(x.shape)


class Model(nn.Module):
    def __init__(self, *ways):
        super().__init__()
        self.layers = nn.ModuleList(Layer(way) for way in ways)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x, mask):
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return self.head(x[:, 0])


def _softmax(s, mask):
    return s.masked_fill(~mask, float("-inf")).softmax(-1)


def _same_weights(model, ways):
    other = Model(*ways).to(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture
def inputs():
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1, -2:] = False
    return torch.randn(2, N, WIDTH, dtype=torch.float64), mask


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__.strip("_"))
def test_exponentials_divided_by_their_sum_are_weights(way, inputs):
    model = Model(way, way).double()
    plain = _same_weights(model, [_softmax, _softmax])
    with torch.no_grad(), capture(model) as found:
        output = model(*inputs)
    with torch.no_grad(), capture(plain) as expected:
        assert (plain(*inputs) - output).abs().max() < 1e-8
    assert [m.name for m in found] == ["layers.0", "layers.1"]
    for a, b in zip(found, expected, strict=True):
        assert a.kind == "self"
        assert (a.dense() - b.dense()).abs().max() < 1e-8  # one way adds a small number
    scores = [AttentionAttribution(m).attribute(inputs[0], additional_forward_args=inputs[1]) for m in (model, plain)]
    assert (scores[0] - scores[1]).abs().max() < 1e-8


def test_exponentials_that_are_divided_after_the_values_are_refused_beside_a_seen_layer(inputs):
    class Late(Layer):
        def forward(self, x, mask):
            q, k, v = self.parts(x)
            e = torch.exp(q @ k.transpose(-1, -2)) * mask
            return x + ((e @ v) / e.sum(-1, keepdim=True)).transpose(1, 2).reshape(x.shape)

    model = Model(_softmax, _softmax).double()
    model.layers[1] = Late(None).double()
    with pytest.raises(UnreadableAttentionError, match=r"layers\.1"), capture(model):
        model(*inputs)


def test_other_exponentials_are_no_attention(inputs):
    class Gated(Model):
        """A temperature, a distance kernel between tokens and learned points, and class weights by exponentials."""

        def __init__(self):
            super().__init__(_softmax, _softmax)
            self.scale = nn.Parameter(torch.zeros(WIDTH))
            self.points = nn.Parameter(torch.randn(4, WIDTH))

        def forward(self, x, mask):
            near = torch.exp(-torch.cdist(x, self.points.expand(len(x), -1, -1)))
            x = x * self.scale.exp() + near @ self.points
            e = super().forward(x, mask).exp()
            return e / e.sum(-1, keepdim=True)

    model = Gated().double()
    with torch.no_grad(), capture(model) as maps:
        model(*inputs)
    assert [m.name for m in maps] == ["layers.0", "layers.1"]


def test_additive_attention_by_exponentials():
    class Additive(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)
            self.score = nn.Linear(WIDTH, 1)
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x, mask):
            states, _ = self.rnn(x)
            e = torch.exp(self.score(states.tanh())) * mask[:, :, None]
            weights = e / e.sum(1, keepdim=True)
            self.weights = weights.detach()
            return self.head((weights * states).sum(1))

    model = Additive()
    x, mask = torch.randn(2, N, WIDTH), torch.tensor([[1] * N, [1] * 3 + [0] * 2])
    with torch.no_grad(), capture(model) as maps:
        model(x, mask)
    (attention,) = maps
    assert attention.kind == "pool"
    assert torch.equal(attention.dense()[:, 0, 0], model.weights[:, :, 0])
