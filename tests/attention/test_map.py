"""The verbs of an attention map against the formula, over shapes, masks, grouped queries and head fusions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.attention import DenseMap, ScoreMap, select_heads
from captum_attn_lime.attention import _blocks as blocks
from captum_attn_lime.attention import _fused as fused
from captum_attn_lime.errors import InputError, SelectionError, UnreadableAttentionError
from tests.reference.attention import fuse, softmax_rows

MASKS = ["none", "bool_keys", "bool_rows", "float", "finfo_min", "per_head", "causal", "two"]


def _masked(kind: str, b: int, h: int, q: int, k: int):
    """Masks as a model passes them, and the same as one additive float64 array (B, H, Q, K)."""
    generator = torch.Generator().manual_seed(7)
    allowed = torch.rand(b, 1, 1, k, generator=generator) > 0.3
    allowed[..., 0] = True
    full = torch.zeros(b, h, q, k, dtype=torch.float64)
    bias = torch.randn(q, k, generator=generator, dtype=torch.float64)
    if kind == "bool_keys":
        return (allowed,), full.masked_fill(~allowed, -math.inf)
    if kind == "bool_rows":
        rows = torch.rand(b, 1, q, k, generator=generator) > 0.5
        return (rows,), full.masked_fill(~rows, -math.inf)
    if kind == "float":
        return (bias,), full + bias
    if kind == "finfo_min":
        low = torch.zeros(b, 1, 1, k, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
        return (low,), full.masked_fill(~allowed, -math.inf)
    if kind == "per_head":
        per_head = torch.randn(b, h, q, k, generator=generator, dtype=torch.float64)
        return (per_head,), per_head
    if kind == "two":
        return (bias, allowed), (full + bias).masked_fill(~allowed, -math.inf)
    if kind == "causal":
        return (), full.masked_fill(torch.ones(q, k).triu(1).bool(), -math.inf)
    return (), full


def _oracle(query, key, additive) -> np.ndarray:
    """softmax(QKᵀ/√d + additive) by numpy; rows without an allowed key are zero."""
    q, k = query.numpy(), key.numpy().repeat(query.shape[1] // key.shape[1], axis=1)
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1]) + additive.numpy()
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_score_map_equals_the_formula(kind, key_heads):
    query = torch.randn(2, 4, 6, 8, dtype=torch.float64) * 2
    key = torch.randn(2, key_heads, 5, 8, dtype=torch.float64) * 2
    masks, additive = _masked(kind, 2, 4, 6, 5)
    attention = ScoreMap(query, key, masks=masks, is_causal=kind == "causal")
    expected = _oracle(query, key, additive)
    assert np.abs(attention.dense().numpy() - expected).max() < 1e-14
    assert np.abs(attention.rows([4, -6], heads=[3, 0]).numpy() - expected[:, [3, 0]][:, :, [4, 0]]).max() < 1e-14
    r = torch.rand(2, 6, dtype=torch.float64)
    for fusion in ("mean", "max", "min"):
        fused = fuse(expected, fusion, [1, 2])
        product = np.einsum("bq,bqk->bk", r.numpy(), fused)
        assert np.abs(attention.vecmat(r, head_fusion=fusion, heads=[1, 2]).numpy() - product).max() < 1e-14


def test_the_formula_oracle_agrees_with_the_row_by_row_one():
    query, key = torch.randn(2, 4, 3, 8, dtype=torch.float64), torch.randn(2, 2, 5, 8, dtype=torch.float64)
    by_row = softmax_rows(query.numpy(), key.numpy())
    assert np.abs(by_row - _oracle(query, key, torch.zeros(2, 4, 3, 5, dtype=torch.float64))).max() < 1e-14


@given(
    n=st.integers(1, 12), heads=st.integers(1, 3), block=st.sampled_from([1, 64, 1 << 20]), seed=st.integers(0, 1 << 16)
)
def test_products_do_not_depend_on_the_block_size(n, heads, block, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, heads, n, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    r = torch.rand(2, n, generator=generator, dtype=torch.float64)
    r[:, ::2] = 0
    attention = ScoreMap(query, key)
    dense = torch.einsum("bq,bqk->bk", r, attention.dense().mean(1))
    before, blocks.BLOCK_BYTES = blocks.BLOCK_BYTES, block
    try:
        assert torch.allclose(attention.vecmat(r), dense, atol=1e-14)
    finally:
        blocks.BLOCK_BYTES = before


@given(seed=st.integers(0, 1 << 16), scale=st.floats(0.0, 40.0))
def test_rows_are_distributions_and_vecmat_keeps_mass(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 2, 5, 4, generator=generator) * scale for _ in range(2))
    attention = ScoreMap(query, key, is_causal=True)
    dense = attention.dense()
    assert torch.allclose(dense.sum(-1), torch.ones(1, 2, 5), atol=1e-6)
    assert bool((dense >= 0).all())
    assert torch.equal(dense.triu(1), torch.zeros_like(dense))
    r = torch.rand(1, 5, generator=generator)
    assert torch.allclose(attention.vecmat(r).sum(), r.sum(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "kind", ["none", "bool_keys", "finfo_min", "causal", "key_bias", "all_rows_the_same", "two_keys"]
)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_fused_product_equals_blocks(kind, key_heads, dtype, monkeypatch):
    query, key = torch.randn(2, 4, 9, 8, dtype=dtype) * 3, torch.randn(2, key_heads, 9, 8, dtype=dtype) * 3
    keys = torch.rand(2, 1, 1, 9) > 0.3
    keys[..., 0] = True
    bias = torch.randn(1, 4, 1, 9, dtype=dtype)
    masks = {
        "bool_keys": [keys],
        "finfo_min": [torch.zeros(2, 1, 1, 9, dtype=dtype).masked_fill(~keys, torch.finfo(dtype).min)],
        "key_bias": [bias],
        "all_rows_the_same": [keys.expand(2, 1, 9, 9).clone()],
        "two_keys": [keys, bias],
    }.get(kind, [])
    attention = ScoreMap(query, key, masks=masks, is_causal=kind == "causal")
    r = torch.rand(2, 9, dtype=dtype)
    r[0, 3] = 0
    calls = []
    real = fused.vecmat
    monkeypatch.setattr(fused, "vecmat", lambda *a: calls.append(1) or real(*a))
    product = attention.vecmat(r)
    assert calls == [1]  # it was the kernel that was checked
    expected = torch.einsum("bq,bqk->bk", r, attention.dense().mean(1))
    assert (product - expected).abs().max() < (1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("mask", [torch.zeros(1, 1, 1, 6, dtype=torch.bool), torch.full((1, 1, 1, 6), -3.4e38)])
def test_rows_without_any_key_are_left_to_blocks(mask):
    attention = ScoreMap(torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), masks=[mask])
    expected = torch.einsum("bq,bqk->bk", torch.ones(1, 6), attention.dense().mean(1))
    assert torch.allclose(attention.vecmat(torch.ones(1, 6)), expected)


def test_rows_that_may_attend_to_nothing_are_zero_not_nan():
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    mask[0, 0, 1] = False
    dense = ScoreMap(torch.randn(1, 2, 2, 4), torch.randn(1, 2, 3, 4), masks=[mask]).dense()
    assert torch.equal(dense[:, :, 1], torch.zeros(1, 2, 3))
    assert torch.allclose(dense[:, :, 0].sum(-1), torch.ones(1, 2))


def test_half_precision_is_computed_in_float32():
    query = torch.randn(1, 1, 3, 8)
    attention = ScoreMap(query.bfloat16(), query.bfloat16())
    exact = ScoreMap(query.bfloat16().double(), query.bfloat16().double()).dense()
    assert attention.dtype == torch.float32
    assert (attention.dense() - exact).abs().max() < 1e-6


def test_dense_map_has_the_same_verbs():
    weights = torch.rand(2, 3, 4, 5).softmax(-1)
    attention = DenseMap(weights, name="layer", kind="self")
    assert torch.equal(attention.dense(), weights)
    assert torch.equal(attention.rows(slice(1, 3), heads=-1), weights[:, [2], 1:3])
    assert "layer" in repr(attention)


@pytest.mark.parametrize("rows", [4, -5, [0, 9], torch.tensor([0.5]), torch.tensor([True])])
def test_rows_out_of_range_are_refused(rows):
    with pytest.raises(SelectionError, match="quer"):
        DenseMap(torch.ones(1, 1, 4, 4) / 4, name="a.b").rows(rows)


@pytest.mark.parametrize("heads", [3, -4, [], [0, 3], True, 1.5])
def test_heads_out_of_range_are_refused(heads):
    with pytest.raises((SelectionError, TypeError)):
        select_heads(heads, 3)


def test_vectors_of_the_wrong_shape_and_unknown_fusions_are_refused():
    attention = DenseMap(torch.ones(1, 1, 2, 2) / 2)
    with pytest.raises(SelectionError, match=r"shape \(B, Q\) = \(1, 2\)"):
        attention.vecmat(torch.ones(1, 3))
    with pytest.raises(InputError, match="mean, max, min"):
        attention.vecmat(torch.ones(1, 2), head_fusion="median")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", [lambda q: ScoreMap(q, q), lambda q: DenseMap((q @ q.mT).softmax(-1))])
def test_products_without_a_value_are_refused(make, value):
    query = torch.randn(2, 2, 5, 4)
    query[1, 0, 3] = value
    attention = make(query)
    attention.name = "a.b"
    for verb in (attention.vecmat, attention.residual_vecmat):
        with pytest.raises(UnreadableAttentionError, match=r"'a\.b' is NaN.*isfinite"):
            verb(torch.ones(2, 5))


@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_a_model_of_nan_is_refused(method):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    with torch.no_grad():
        layer.self_attn.in_proj_weight[0] = math.nan
    with pytest.raises(UnreadableAttentionError, match="is NaN"):
        AttentionAttribution(layer, method=method).attribute(torch.randn(1, 3, 8), query=0)
