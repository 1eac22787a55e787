"""The verbs of windowed attention against the N x N matrix, written out place by place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.attention import DenseMap, ScoreMap, WindowedMap
from captum_attn_lime.errors import InputError, SelectionError, UnreadableAttentionError
from captum_attn_lime.methods import Raw, Rollout
from tests.attention.cases import windows_of
from tests.reference.attention import fuse

cases = given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    n=st.integers(1, 7),
    width=st.integers(1, 4),
    heads=st.integers(1, 3),
    fused=st.booleans(),
)


@cases
def test_every_verb_equals_the_dense_matrix(seed, batch, n, width, heads, fused):
    attention, expected, _ = windows_of(seed, batch, n, width, heads, fused)
    assert attention.shape == expected.shape
    assert (attention.kind, attention.name) == ("windowed", "layer")
    assert np.abs(attention.dense().numpy() - expected).max() < 1e-14
    chosen = [n - 1, 0, -1]
    some = attention.rows(chosen, heads=[heads - 1]).numpy()
    assert np.abs(some - expected[:, [heads - 1]][:, :, chosen]).max() < 1e-14
    r = torch.rand(batch, n, dtype=torch.float64)
    r[:, 0] = 0
    for fusion in ("mean", "max", "min"):
        for chosen in (None, [0]):
            matrix = fuse(expected, fusion, chosen)
            product = np.einsum("bq,bqk->bk", r.numpy(), matrix)
            found = attention.vecmat(r, head_fusion=fusion, heads=chosen)
            assert np.abs(found.numpy() - product).max() < 1e-14


@cases
def test_the_first_examples_are_those_of_the_whole(seed, batch, n, width, heads, fused):
    attention, expected, _ = windows_of(seed, batch, n, width, heads, fused)
    attention.index, attention.follows = 3, frozenset({1})
    part = attention.first(1)
    assert (part.index, part.follows, part.kind) == (3, frozenset({1}), "windowed")
    assert np.abs(part.dense().numpy() - expected[:1]).max() < 1e-14
    r = torch.rand(1, n, dtype=torch.float64)
    assert np.abs(part.vecmat(r).numpy() - np.einsum("bq,bqk->bk", r, fuse(expected[:1], "mean"))).max() < 1e-14


@cases
def test_weight_on_empty_places_is_given_to_nothing(seed, batch, n, width, heads, fused):
    attention, _, index = windows_of(seed, batch, n, width, heads, fused)
    weights = attention.inner.dense().mean(dim=1)  # (windows, w, w)
    lost = torch.zeros(batch * n, dtype=torch.float64)
    for window, tokens in enumerate(index.tolist()):
        for p, token in enumerate(tokens):
            if token >= 0:
                lost[token] = sum(float(weights[window, p, q]) for q in range(width) if tokens[q] < 0)
    ones = torch.ones(batch, n, dtype=torch.float64) / n
    assert torch.allclose(Raw()([attention], ones).sum(1), 1 - lost.reshape(batch, n).mean(1), atol=1e-12)


@cases
def test_a_tensor_over_the_windows_is_laid_on_the_tokens(seed, batch, n, width, heads, fused):
    attention, _, index = windows_of(seed, batch, n, width, heads, fused)
    x = torch.randn(len(index), heads, width, 5)
    found = attention.by_token(x)
    assert found.shape == (batch, heads, n, 5)
    for window, tokens in enumerate(index.tolist()):
        for place, token in enumerate(tokens):
            if token >= 0:
                assert torch.equal(found[token // n, :, token % n], x[window, :, place])


def test_rollout_over_two_layers_of_different_windows_equals_the_product():
    first, a, _ = windows_of(1, 2, 6, 3, 2, False)
    second, b, _ = windows_of(2, 2, 6, 4, 2, True)
    query = torch.rand(2, 6, dtype=torch.float64)
    expected = query.numpy()
    for layer in (b, a):
        expected = np.einsum("bq,bqk->bk", expected, 0.7 * fuse(layer, "mean") + 0.3 * np.eye(6))
    assert np.abs(Rollout(residual=0.3)([first, second], query).numpy() - expected).max() < 1e-14


def test_padded_tokens_are_those_of_the_windows():
    mask = torch.ones(2, 1, 1, 3, dtype=torch.bool)
    mask[1, ..., 2] = False
    inner = ScoreMap(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), masks=[mask], kind="self")
    attention = WindowedMap(inner, torch.tensor([[5, 1, 3], [0, 2, 4]]), examples=1)
    assert attention.reads_itself().tolist() == [[True, True, True, True, False, True]]


@pytest.mark.parametrize(
    ("index", "examples"),
    [
        ([[0, 1], [2, 2]], 1),  # a token twice
        ([[0, 1], [3, 4]], 1),  # one is missing
        ([[0, 2], [1, 3]], 2),  # a window of two examples
        ([[0, 1], [2, -1]], 2),  # examples of different lengths
        ([[-1, -1], [-1, -1]], 1),
        ([[0, 1, 2], [3, 4, 5]], 1),  # windows of another size
    ],
)
def test_an_index_that_does_not_fit_is_refused(index, examples):
    inner = DenseMap(torch.full((2, 1, 2, 2), 0.5), kind="self")
    with pytest.raises(InputError, match=r"one position|each position"):
        WindowedMap(inner, torch.tensor(index), examples=examples)


def test_no_more_is_kept_or_computed_than_the_windows():
    """At 65,536 tokens a matrix would be 16 GiB."""
    n, width = 2**16, 16
    index = torch.randperm(n).reshape(-1, width)
    query, key = torch.randn(2, n // width, 1, width, 8)
    attention = WindowedMap(ScoreMap(query, key, kind="self"), index, examples=1)
    found = attention.vecmat(torch.full((1, n), 1 / n))
    assert abs(float(found.sum()) - 1) < 1e-4
    assert attention.rows([5]).shape == (1, 1, 1, n)


def test_rows_and_queries_are_checked_and_writing_is_noticed():
    weights = torch.full((1, 1, 2, 2), 0.5)
    attention = WindowedMap(DenseMap(weights, kind="self"), torch.tensor([[1, 0]]), examples=1)
    with pytest.raises(SelectionError, match="2 query rows"):
        attention.rows([2])
    with pytest.raises(SelectionError, match="one weight per query"):
        attention.vecmat(torch.ones(1, 3))
    weights.zero_()
    for verb in (
        attention.dense,
        attention.reads_itself,
        lambda: attention.vecmat(torch.ones(1, 2)),
    ):
        with pytest.raises(UnreadableAttentionError, match="wrote"):
            verb()
