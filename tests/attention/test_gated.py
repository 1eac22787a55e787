"""Products gated by the gradient of the weights equal rᵀ fuse((A ⊙ dO Vᵀ)⁺) written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_attn_lime.attention import AttentionMap, DenseMap, HeadFusedMap, ScoreMap, WindowedMap
from captum_attn_lime.errors import SelectionError
from captum_attn_lime.methods import Relevance
from tests.attention.cases import (
    Case,
    blocks_of,
    error,
    kernel_log_sums,
    product,
    softmax_of,
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


def test_the_windows_own_map_is_left_as_it_was():
    attention, _, _ = windows_of(0, 2, 5, 3, 2, True)
    _with_gradient(attention, 1, 0)
    attention.gated_vecmat(torch.ones(2, 5))
    assert (attention.inner.value, attention.inner.output_gradient) == (None, None)


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
        (["output_gradient"], "no gradient of the target reaches"),
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
