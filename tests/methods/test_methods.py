"""Raw attention and rollout as pure functions over maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.attention import DenseMap
from captum_attn_lime.errors import AttentionKindError, InputError
from captum_attn_lime.methods import get_method, raw, rollout
from tests.reference.attention import rollout_matrix


def _maps(seed, layers=3, n=5, heads=2, sinks=0.0):
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(2, heads, n, n, generator=generator, dtype=torch.float64).mul(3).softmax(-1) for _ in range(layers)
    ]
    return [DenseMap(w * (1 - sinks), kind="self") for w in weights]


@given(
    seed=st.integers(0, 1 << 16),
    layers=st.integers(1, 5),
    n=st.integers(1, 6),
    heads=st.integers(1, 3),
    fusion=st.sampled_from(["mean", "max", "min"]),
    residual=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_rollout_is_a_row_of_the_whole_product(seed, layers, n, heads, fusion, residual):
    maps = _maps(seed, layers, n, heads)
    product = rollout_matrix([m.dense().numpy() for m in maps], fusion, residual)
    for row in range(n):
        query = torch.zeros(2, n, dtype=torch.float64)
        query[:, row] = 1
        found = rollout(maps, query, head_fusion=fusion, residual=residual)
        assert np.abs(found.numpy() - product[:, row]).max() < 1e-12
        assert torch.allclose(found.sum(1), torch.ones(2, dtype=torch.float64))


def test_rollout_of_a_mean_is_the_mean_of_rollouts():
    maps = _maps(0)
    eye = torch.eye(5, dtype=torch.float64)
    rows = torch.stack([rollout(maps, eye[i].expand(2, 5)) for i in range(5)])
    assert torch.allclose(rollout(maps, torch.full((2, 5), 0.2, dtype=torch.float64)), rows.mean(0))


def test_missing_mass_of_sinks_stays_missing():
    maps = _maps(0, layers=2, sinks=0.4)
    query = torch.full((2, 5), 0.2, dtype=torch.float64)
    # Each layer passes 0.5 * 0.6 through attention and 0.5 through the residual: 0.8 of the mass.
    assert torch.allclose(rollout(maps, query).sum(1), torch.full((2,), 0.64, dtype=torch.float64))


def test_raw_over_several_layers_is_their_mean():
    maps = _maps(0)
    query = torch.eye(5, dtype=torch.float64)[0].expand(2, 5)
    expected = torch.stack([m.dense().mean(1)[:, 0] for m in maps]).mean(0)
    assert torch.allclose(raw(maps, query), expected)


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((1, 1, 3, 3), "cross", "cross-attention"),
        ((1, 1, 3, 3), "unknown", "could not be seen"),
        ((1, 1, 3, 4), "self", "not square"),
        ((1, 1, 2, 2), "self", "over 2 tokens where the last layer is over 3"),
    ],
)
def test_products_that_mean_nothing_are_refused_by_name(shape, kind, message):
    odd = DenseMap(torch.ones(shape) / shape[-1], name="block.7", kind=kind)
    last = DenseMap(torch.ones(1, 1, 3, 3) / 3, name="block.8", kind="self")
    with pytest.raises(AttentionKindError, match=message) as error:
        rollout([odd, last], torch.ones(1, 3) / 3)
    assert "block.7" in str(error.value)


def test_unknown_methods_are_refused_and_functions_taken():
    with pytest.raises(InputError, match="raw, relevance, rollout"):
        get_method("rolout")
    assert get_method(raw).function is raw
