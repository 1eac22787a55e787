"""Products gated by the gradient of the weights equal rᵀ fuse((A ⊙ dO Vᵀ)⁺) written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_attn_lime.attention import AttentionMap, DenseMap, HeadFusedMap, ScoreMap, WindowedMap, offloaded
from captum_attn_lime.errors import SelectionError
from captum_attn_lime.methods import Relevance
from tests.attention.cases import (
    FUSIONS,
    Case,
    block_sizes,
    blocks_of,
    cases,
    error,
    kernel_log_sums,
    product,
    softmax_of,
    vectors,
    ways,
    windows_of,
)


def _gated(weights: np.ndarray, value: torch.Tensor, gradient: torch.Tensor) -> np.ndarray:
    """(A ⊙ dO Vᵀ)⁺ of each head, (B, H, Q, K), one head after the other."""
    out = np.zeros_like(weights)
    group = weights.shape[1] // value.shape[1]
    for b in range(weights.shape[0]):
        for h in range(weights.shape[1]):
            of_weights = gradient[b, h].double().numpy() @ value[b, h // group].double().numpy().T
            out[b, h] = np.maximum(weights[b, h] * of_weights, 0)
    return out


def _with_gradient(attention: AttentionMap, value_heads: int, seed: int, width: int = 5) -> AttentionMap:
    generator = torch.Generator().manual_seed(seed)
    b, h, q, k = attention.shape
    attention.value = torch.randn(b, value_heads, k, width, generator=generator, dtype=attention.dtype)
    attention.output_gradient = torch.randn(b, h, q, width, generator=generator, dtype=attention.dtype)
    return attention


@settings(max_examples=120)
@given(data=st.data())
def test_the_gated_product_equals_the_formula(data):
    case = data.draw(cases())
    weights, heads = softmax_of(case), case.shape[1]
    kind = data.draw(st.sampled_from(["scores", "log_sums", "dense", "offloaded"]))
    if kind == "dense":
        attention = DenseMap(torch.from_numpy(weights))
    else:
        attention = case.map(log_sums=kernel_log_sums(case) if kind == "log_sums" else None)
    value_heads = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    _with_gradient(attention, value_heads, data.draw(st.integers(0, 1000)))
    gated = _gated(weights, attention.value, attention.output_gradient)
    if kind == "offloaded":
        attention = offloaded(attention, "cpu")
    r, fusion = data.draw(vectors(case.shape)), data.draw(st.sampled_from(sorted(FUSIONS)))
    chosen = data.draw(st.one_of(st.none(), st.lists(st.integers(0, heads - 1), min_size=1, max_size=4)))
    matrix = FUSIONS[fusion](gated if chosen is None else gated[:, chosen], axis=1)
    with blocks_of(data.draw(block_sizes())):
        found = attention.gated_vecmat(r, head_fusion=fusion, heads=chosen)
    assert error(found, product(r, matrix)) < 1e-10


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    n=st.integers(1, 7),
    width=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    fused=st.booleans(),
    fusion=st.sampled_from(sorted(FUSIONS)),
    chosen=st.sampled_from([None, [0], [-1, 0]]),
)
def test_the_gated_product_of_windows_equals_that_of_the_whole_matrix(
    seed, batch, n, width, heads, fused, fusion, chosen
):
    attention, dense, _ = windows_of(seed, batch, n, width, heads, fused)
    _with_gradient(attention, max(1, heads // 2), seed)
    gated = _gated(dense, attention.value, attention.output_gradient)
    matrix = FUSIONS[fusion](gated if chosen is None else gated[:, chosen], axis=1)
    for r in (torch.randn(batch, n), torch.randn(batch, 3, n)):
        found = attention.gated_vecmat(r, head_fusion=fusion, heads=chosen)
        assert error(found, product(r, matrix)) < 1e-12
    before = attention.inner.value, attention.inner.output_gradient
    assert before == (None, None)  # the windows' own map is left as it was


def test_known_log_sums_let_keys_be_cut():
    case = Case(*torch.randn(2, 1, 2, 20, 4, dtype=torch.float64), (), None, True)
    for sums, way in ((None, "whole_rows"), (kernel_log_sums(case), "tiles")):
        attention = _with_gradient(case.map(log_sums=sums), 2, 0)
        with ways() as taken:
            attention.gated_vecmat(torch.ones(1, 20))
        assert taken == [way]


def test_half_precision_is_gated_in_float32():
    query, key, value, gradient = torch.randn(4, 1, 2, 6, 8).bfloat16()
    attention = ScoreMap(query, key)
    attention.value, attention.output_gradient = value, gradient
    expected = _gated(softmax_of(Case(query, key, (), None, False)), value, gradient).mean(1)
    r = torch.rand(1, 6)
    assert error(attention.gated_vecmat(r), product(r, expected)) < 1e-5


def test_values_that_all_examples_share_are_shared():
    attention = ScoreMap(torch.randn(3, 2, 4, 8).double(), torch.randn(1, 2, 5, 8).double())
    attention.value = torch.randn(1, 2, 5, 8).double()
    attention.output_gradient = torch.randn(3, 2, 4, 8).double()
    expected = _gated(attention.dense().numpy(), attention.value.expand(3, -1, -1, -1), attention.output_gradient)
    attention.log_sums = kernel_log_sums(Case(attention.query, attention.key.expand(3, -1, -1, -1), (), None, False))
    r = torch.rand(3, 4)
    for sizes in (None, (1, 1, 1)):
        with blocks_of(sizes):
            assert error(attention.gated_vecmat(r), product(r, expected.mean(1))) < 1e-12


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (["value"], "how the weights of .* act on values is not known"),
        (["output_gradient"], "no gradient of what is explained has reached"),
        (["value", "output_gradient"], "captured without its values and the gradient"),
    ],
)
@pytest.mark.parametrize("windowed", [False, True])
def test_without_values_or_gradient_it_says_what_is_missing(missing, told, windowed):
    attention = DenseMap(torch.full((1, 2, 3, 3), 1 / 3), name="layer.0", kind="self")
    if windowed:
        attention = WindowedMap(attention, torch.tensor([[0, 2, 1]]), examples=1)
    _with_gradient(attention, 2, 0)
    for name in missing:
        setattr(attention, name, None)
    with pytest.raises(SelectionError, match=told) as raised:
        attention.gated_vecmat(torch.ones(1, 3))
    assert "'layer.0'" in str(raised.value)


def test_weights_fused_over_their_heads_cannot_be_gated():
    attention = _with_gradient(HeadFusedMap(DenseMap(torch.full((1, 2, 3, 3), 1 / 3), name="layer")), 2, 0)
    with pytest.raises(SelectionError, match=r"'layer' was captured with its heads fused \(mean\)"):
        attention.gated_vecmat(torch.ones(1, 3))


def test_relevance_is_the_sum_over_all_paths():
    """rᵀ(I + G2)(I + G1) with the matrices written out."""
    layers = []
    for seed in (1, 2):
        weights = torch.randn(2, 3, 6, 6, dtype=torch.float64).softmax(-1)
        layers.append(_with_gradient(DenseMap(weights, kind="self"), 3, seed))
    gates = [_gated(m.dense().numpy(), m.value, m.output_gradient).mean(1) for m in layers]
    r = torch.rand(2, 6, dtype=torch.float64)
    expected = np.einsum("bq,bqk,bkj->bj", r.numpy(), np.eye(6) + gates[1], np.eye(6) + gates[0])
    found = Relevance()(layers, r)
    assert error(found, expected) < 1e-13
