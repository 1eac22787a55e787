"""Weights of which only the fusion over heads was kept give the products of that fusion, and refuse all others."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_attn_lime.attention import DenseMap, HeadFusedMap, ScoreMap, WindowedMap
from captum_attn_lime.errors import SelectionError
from tests.attention.cases import FUSIONS, block_sizes, blocks_of, error, product, vectors, windows_of


@settings(max_examples=60)
@given(data=st.data())
def test_every_verb_equals_that_of_the_whole_map(data):
    b, h, q = (data.draw(st.integers(1, 4)) for _ in range(3))
    k = q if data.draw(st.booleans()) else data.draw(st.integers(1, 5))
    weights = torch.randn(b, h, q, k, dtype=torch.float64).softmax(-1)
    chosen = data.draw(st.one_of(st.none(), st.lists(st.integers(-h, h - 1), min_size=1, max_size=3)))
    fusion = data.draw(st.sampled_from(sorted(FUSIONS)))
    whole = DenseMap(weights, name="layer", kind="self")
    whole.index, whole.follows, whole.mixed = 2, frozenset({1}), True
    attention = whole.with_fused_heads(fusion, chosen)
    assert isinstance(attention, HeadFusedMap)
    assert (attention.shape, attention.name, attention.kind) == (whole.shape, "layer", "self")
    assert (attention.index, attention.follows, attention.mixed) == (2, frozenset({1}), True)
    matrix = FUSIONS[fusion](weights.numpy() if chosen is None else weights.numpy()[:, chosen], axis=1)
    r = data.draw(vectors(whole.shape))
    options = {"head_fusion": fusion, "heads": chosen}
    with blocks_of(data.draw(block_sizes())):
        assert error(attention.vecmat(r, **options), product(r, matrix)) < 1e-14
        part = attention.first(1)
        assert error(part.vecmat(r[:1], **options), product(r[:1], matrix[:1])) < 1e-14
        if q == k:
            found = attention.residual_vecmat(r, residual=0.3, **options)
            assert torch.allclose(found, whole.residual_vecmat(r, residual=0.3, **options), atol=1e-14)
            assert torch.equal(attention.reads_itself(), whole.reads_itself())
            assert torch.equal(part.reads_itself(), whole.reads_itself()[:1])


def test_the_heads_are_let_go_and_may_be_written_over():
    weights = torch.rand(1, 3, 4, 4).softmax(-1)
    expected = weights.amax(1)
    kept = weakref.ref(weights)
    attention = HeadFusedMap(DenseMap(weights), "max")
    weights.zero_()
    assert torch.equal(attention.vecmat(torch.eye(4)[None], head_fusion="max"), expected)
    del weights
    assert kept() is None


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_what_was_kept_shares_no_memory_with_the_weights(heads, fusion):
    weights = torch.rand(2, heads, 3, 3)
    attention = HeadFusedMap(DenseMap(weights), fusion)
    assert attention.fused.untyped_storage().data_ptr() != weights.untyped_storage().data_ptr()


def test_other_fusions_other_heads_and_single_heads_are_refused():
    attention = HeadFusedMap(DenseMap(torch.full((1, 3, 2, 2), 0.5), name="a.b"), "mean", [0, -1])
    r = torch.ones(1, 2)
    assert attention.vecmat(r, heads=[0, 2]).shape == (1, 2)
    for ask in (
        lambda: attention.vecmat(r),
        lambda: attention.vecmat(r, heads=[0, 1]),
        lambda: attention.vecmat(r, heads=[0, 2], head_fusion="max"),
        lambda: attention.residual_vecmat(r),
    ):
        with pytest.raises(SelectionError, match=r"'a\.b' was captured with 'mean' over heads \[0, 2\]"):
            ask()
    for ask in (lambda: attention.rows(0), attention.dense):
        with pytest.raises(SelectionError, match="heads fused"):
            ask()
    with pytest.raises(SelectionError, match="not square"):
        HeadFusedMap(DenseMap(torch.full((1, 1, 2, 3), 1 / 3))).reads_itself()


def test_half_precision_is_fused_in_float32():
    weights = torch.rand(1, 12, 5, 5).softmax(-1).bfloat16()
    attention = HeadFusedMap(DenseMap(weights))
    r = torch.rand(1, 5)
    assert attention.dtype == torch.float32
    assert error(attention.vecmat(r), product(r, weights.double().numpy().mean(1))) < 1e-6


def test_maps_without_weights_stay_as_they_are():
    attention = ScoreMap(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), kind="self")
    assert attention.with_fused_heads("mean") is attention
    windows = WindowedMap(attention, torch.tensor([[2, 0, 1]]), examples=1)
    assert windows.with_fused_heads("mean") is windows


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    n=st.integers(1, 7),
    width=st.integers(1, 4),
    heads=st.integers(1, 3),
    fusion=st.sampled_from(sorted(FUSIONS)),
    chosen=st.sampled_from([None, [0]]),
)
def test_windows_fused_over_heads_equal_the_whole(seed, batch, n, width, heads, fusion, chosen):
    whole, dense, _ = windows_of(seed, batch, n, width, heads, False)
    attention = whole.with_fused_heads(fusion, chosen)
    assert isinstance(attention.inner, HeadFusedMap)
    matrix = FUSIONS[fusion](dense if chosen is None else dense[:, chosen], axis=1)
    r, options = torch.rand(batch, n, dtype=torch.float64), {"head_fusion": fusion, "heads": chosen}
    assert error(attention.vecmat(r, **options), product(r, matrix)) < 1e-14
    factor = 0.6 * matrix + 0.4 * np.eye(n)
    if fusion != "mean":
        factor = factor / factor.sum(-1, keepdims=True)
    assert error(attention.residual_vecmat(r, residual=0.4, **options), product(r, factor)) < 1e-14
    with pytest.raises(SelectionError, match="captured with"):
        attention.vecmat(r, head_fusion="max" if fusion != "max" else "min", heads=chosen)
