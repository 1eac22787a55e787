"""Relevance as a pure function over maps, against gradients of whole weight matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.attention import DenseMap, ScoreMap
from captum_attn_lime.errors import AttentionKindError, SelectionError
from captum_attn_lime.methods import METHODS, get_method, relevance
from captum_attn_lime.methods._relevance import relevance_of_top
from tests.reference.relevance import Gated, gated_softmaxes, positive_part, relevance_rows


def _layers(seed, layers, n, heads, key_heads, *, is_fused):
    """Maps of a stack of attention in residual connections, and what the gradient of its first output is."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width = 3 * heads
    projections = [[random(width, 3 * h) for h in (heads, key_heads, key_heads)] for _ in range(layers)]
    x, head = random(2, n, width), random(width)
    calls = []

    def run(keep=None):
        state = x
        for of_layer in projections:
            q, k, v = ((state @ w).unflatten(-1, (-1, 3)).transpose(1, 2) for w in of_layer)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            if keep is not None:
                keep.append((q, k, v, out))
                if out.requires_grad:
                    out.retain_grad()
            state = state + out.transpose(1, 2).flatten(2)
        return state[:, 0] @ head

    for of_layer in projections:
        for w in of_layer:
            w.requires_grad_()
    dense = gated_softmaxes(run, torch.sum)
    run(calls).sum().backward()
    maps = []
    for layer, (q, k, v, out) in zip(dense, calls, strict=True):
        weights = torch.from_numpy(layer.weights)
        attention = ScoreMap(q.detach(), k.detach(), kind="self") if is_fused else DenseMap(weights, kind="self")
        attention.value, attention.output_gradient = v.detach(), out.grad
        maps.append(attention)
    return maps, dense


@given(
    seed=st.integers(0, 1 << 16),
    layers=st.integers(1, 4),
    n=st.integers(1, 6),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    how=st.sampled_from(["mean", "max", "min"]),
    is_fused=st.booleans(),
)
def test_relevance_is_a_row_of_the_whole_product(seed, layers, n, heads, how, is_fused):
    maps, dense = _layers(seed, layers, n, *heads, is_fused=is_fused)
    weights = np.random.default_rng(seed).uniform(size=(2, n))
    chosen = [0, heads[0] - 1] if heads[0] > 1 else None
    for some in (None, chosen):
        expected = relevance_rows(dense, weights, how, some)
        found = relevance(maps, torch.from_numpy(weights), head_fusion=how, heads=some).numpy()
        assert np.abs(found - expected).max() <= 1e-10 * np.abs(expected).max()


def test_several_queries_at_once_are_the_queries_one_by_one():
    maps, dense = _layers(0, 3, 5, 2, 2, is_fused=True)
    queries = torch.rand(2, 3, 5, dtype=torch.float64)
    together = relevance(maps, queries)
    for r in range(3):
        expected = relevance_rows(dense, queries[:, r].numpy())
        assert np.abs(together[:, r].numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


def test_relevance_grows_with_each_layer_and_residual_changes_nothing():
    maps, _ = _layers(1, 3, 5, 2, 2, is_fused=False)
    query = torch.eye(5, dtype=torch.float64)[[0, 0]]
    least = query
    for first in (2, 1, 0):
        found = relevance(maps[first:], query)
        assert bool((found >= least).all())
        assert float((found - least).max()) > 1e-3
        least = found
    assert torch.equal(relevance(maps, query, residual=0.1), least)


def test_a_last_layer_of_one_query_passes_on_its_own_and_what_its_row_gains():
    generator = np.random.default_rng(0)
    weights, value, gradient = generator.dirichlet(np.ones(4), (2, 3, 1)), *generator.normal(size=(2, 2, 3, 4, 5))
    gradient = gradient[:, :, :1]
    top = DenseMap(torch.from_numpy(weights), kind="pool")
    top.value, top.output_gradient = torch.from_numpy(value), torch.from_numpy(gradient)
    own = np.eye(4)[[0, 2]]
    for how in ("mean", "max", "min"):
        expected = own + positive_part(Gated(weights, gradient @ value.swapaxes(2, 3)), how, [0, 2])[:, 0]
        found = relevance_of_top(top, torch.from_numpy(own), head_fusion=how, heads=[0, 2])
        assert np.abs(found.numpy() - expected).max() < 1e-12


def test_maps_without_values_or_gradients_and_cross_attention_are_refused_by_name():
    even = DenseMap(torch.full((1, 1, 3, 3), 1 / 3), name="block.1", kind="self")
    with pytest.raises(SelectionError, match=r"'block\.1' was captured without"):
        relevance([even], torch.ones(1, 3))
    cross = DenseMap(torch.full((1, 1, 3, 3), 1 / 3), name="block.2", kind="cross")
    with pytest.raises(AttentionKindError, match=r"relevance multiplies self-attention maps, but 'block\.2'"):
        relevance([cross], torch.ones(1, 3))


def test_the_table_says_what_relevance_needs():
    method = get_method("relevance")
    assert method is METHODS["relevance"]
    assert method.uses_target
    assert not method.fused_heads
    assert not method.last_layer_only
