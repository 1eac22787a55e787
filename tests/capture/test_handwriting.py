"""Handwritings of attention that were once read wrongly, or refused without need."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, capture, describe
from captum_attn_lime.attention import DenseMap, ScoreMap
from captum_attn_lime.attr._query import query_weights
from captum_attn_lime.errors import ReadoutError
from captum_attn_lime.testing import check_model
from tests.models.small import Stack
from tests.reference.attention import rollout_matrix

WIDTH, HEADS = 12, 3


class Layer(nn.Module):
    """Self-attention that keeps its weights; handwritings write `attend`."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.weights = None

    def heads(self, x):
        return tuple(f(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))

    def forward(self, x):
        return self.out(self.attend(x).transpose(1, 2).flatten(2))


class RelativeValues(Layer):
    """Values by relative position, for all examples the same, meet the weights before the values do."""

    def attend(self, x):
        n = x.shape[1]
        q, k, v = self.heads(x)
        self.weights = (3 * q @ k.mT).softmax(-1)
        places = torch.arange(n)[:, None, None] - torch.arange(n)[None, :, None] + torch.arange(v.shape[-1]) / 7
        return torch.einsum("bhij,ijd->bhid", self.weights, places.to(x)) + self.weights @ v


class WeightsPerHead(Layer):
    """Each head's projection is a matrix of its own, which the tokens are repeated for."""

    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(HEADS, WIDTH, WIDTH // HEADS) / 2) for _ in range(3))

    def attend(self, x):
        q, k, v = x[:, None] @ self.wq, x.unsqueeze(1) @ self.wk, x[:, None] @ self.wv
        self.weights = (q @ k.mT).softmax(-1)
        return self.weights @ v


class OwnKeyMasked(Layer):
    """As in vision transformers for small data sets: no token attends to itself."""

    def attend(self, x):
        q, k, v = self.heads(x)
        own = torch.eye(x.shape[1], dtype=torch.bool)
        self.weights = (q @ k.mT).masked_fill(own, -torch.inf).softmax(-1)
        return self.weights @ v


@pytest.mark.parametrize("tokens", [5, 4, 2])
@pytest.mark.parametrize("layer", [RelativeValues, WeightsPerHead, OwnKeyMasked])
def test_weights_kinds_and_rollout_are_those_of_the_formula(layer, tokens):
    model = Stack(layer(), layer(), width=WIDTH).eval().double()
    x = torch.randn(2, tokens, WIDTH, dtype=torch.float64)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert [m.kind for m in maps] == ["self", "self"]
    for attention, one in zip(maps, model.layers, strict=True):
        assert torch.equal(attention.dense(), one.weights)
    expected = torch.as_tensor(rollout_matrix([one.weights.numpy() for one in model.layers])).mean(1)
    for query in ("auto", "mean"):
        found = AttentionAttribution(model).attribute(x, query=query)[:, :, 0]
        assert torch.allclose(found, expected, atol=1e-12)
    assert not describe(model, x).padding.any()


def test_results_that_are_written_into_a_given_tensor():
    class Written(Layer):
        def attend(self, x):
            batch, n, _ = x.shape
            q, k, v = (t.reshape(-1, n, WIDTH // HEADS) for t in self.heads(x))
            scores, out = torch.empty(len(q), n, n), torch.empty_like(q)
            with torch.no_grad():
                torch.bmm(q, k.mT, out=scores)
                weights = scores.softmax(-1)
                torch.bmm(weights, v, out=out)
            self.weights = weights.view(batch, HEADS, n, n)
            return out.view(batch, HEADS, n, -1)

    model, x = Stack(Written(), Written(), width=WIDTH).eval(), torch.randn(2, 5, WIDTH)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert [m.kind for m in maps] == ["self", "self"]
    assert all(torch.equal(m.dense(), one.weights) for m, one in zip(maps, model.layers, strict=True))
    with pytest.raises(ReadoutError, match="query="):
        AttentionAttribution(model).attribute(x)  # such an operation takes no gradient
    expected = torch.as_tensor(rollout_matrix([one.weights.numpy() for one in model.layers])).mean(1)
    assert torch.allclose(AttentionAttribution(model).attribute(x, query="mean")[:, :, 0].double(), expected, atol=1e-6)


def test_an_output_that_the_model_views_in_its_own_strides():
    """valueᵀ weightsᵀ is contiguous as (B, H, d, N), and is viewed so; what takes its place must be as well."""

    class Viewed(Layer):
        def forward(self, x):
            q, k, v = self.heads(x)
            weights = (q @ k.mT).softmax(-1)
            return self.out((v.mT @ weights.mT).view(len(x), WIDTH, -1).mT)

    model, x = Stack(Viewed(), Viewed(), width=WIDTH).eval(), torch.randn(2, 5, WIDTH)
    assert not any(layer.mixed for layer in describe(model, x).layers)
    assert torch.allclose(AttentionAttribution(model).attribute(x)[:, :, 0].sum(1), torch.ones(2))


def test_pooling_by_several_heads_of_additive_attention():
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.score, self.value, self.head = nn.Linear(WIDTH, HEADS), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x):
            weights = self.score(x).softmax(1).unsqueeze(-1)  # (B, N, H, 1)
            values = self.value(x).unflatten(2, (HEADS, -1))
            return self.head((weights * values).sum(1).flatten(1))

    report = check_model(Pooling().eval(), torch.randn(2, 5, WIDTH), show=False)
    (check,) = (c for c in report.checks if c.name == "weights times values give the call's output")
    assert check.passed, report


@pytest.mark.parametrize("mark", ["tokens", "cls"])
def test_patches_that_are_cut_by_a_reshape(mark):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, layers = nn.Linear(3 * 16, WIDTH), (RelativeValues(), RelativeValues())
            self.stack = Stack(*layers, width=WIDTH, reads="mean" if mark == "tokens" else "first")

        def tokens(self, image):
            batch, channels, height, width = image.shape
            blocks = image.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
            tokens = self.embed(blocks.reshape(batch, -1, 16 * channels))
            return (
                tokens
                if mark == "tokens"
                else torch.cat([torch.arange(WIDTH).expand(batch, 1, -1).to(image), tokens], 1)
            )

        def forward(self, image):
            return self.stack(self.tokens(image))

    model, image = Cut().eval(), torch.randn(2, 3, 8, 12)
    expected = AttentionAttribution(model.stack).attribute(model.tokens(image).detach())[:, -6:, 0].view(2, 2, 3)
    found = AttentionAttribution(model).attribute(image)
    assert torch.allclose(found, expected.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None], atol=1e-6)


def test_padding_is_what_nobody_reads():
    """Keys 3 and 4 are padding, whose own rows are even or read real tokens; token 1 does not read itself."""
    rows = [[0.5, 0.5, 0, 0, 0], [0.5, 0, 0.5, 0, 0], [0, 0.5, 0.5, 0, 0], [0.2] * 5, [0.5, 0.25, 0.25, 0, 0]]
    attention = DenseMap(torch.tensor(rows)[None, None], kind="self")
    assert attention.reads_itself().tolist() == [[True, True, True, False, False]]


def test_a_mask_that_all_examples_share_is_of_heads():
    """(H, Q, K) has as many rows as heads, not as examples."""
    query, mask = torch.randn(2, 3, 4, 8), torch.zeros(3, 4, 4)
    mask[..., 3] = -torch.inf
    for heads in (3, 2):
        attention = ScoreMap(query[:, :heads], query[:, :heads], masks=(mask[:heads],), kind="self")
        assert attention.reads_itself().tolist() == [[True, True, True, False]] * 2
        assert query_weights("last", attention).tolist() == [[0, 0, 1, 0]] * 2
