"""Every kind of map: its verbs, and whatever a function makes of its heads, equal the same of whole float64 arrays."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_attn_lime.attention import AttentionMap, DenseMap, HeadFusedMap
from captum_attn_lime.errors import SelectionError, UnreadableAttentionError
from tests.attention.cases import FUSIONS, MAKERS, block_sizes, blocks_of, error, product, vectors

by_kind = pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
many = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def _row_shares(weights):
    fused = weights.max(1)
    sums = fused.sum(-1, keepdims=True)
    return fused / np.where(sums == 0, 1, sums)


# A combination as a method would pass it, the same of whole arrays, and whether it treats each key alone.
COMBINATIONS = {
    "product of heads": (lambda block: block.weights.prod(dim=1), lambda w, g: w.prod(1), True),
    "squares": (lambda block: block.weights.square().sum(dim=1), lambda w, g: (w**2).sum(1), True),
    "times gradient": (
        lambda block: (block.weights * (block.output_gradient @ block.value.mT)).sum(dim=1),
        lambda w, g: (w * g).sum(1),
        True,
    ),
    "shares of rows": (
        lambda block: torch.nn.functional.normalize(block.weights.amax(dim=1), p=1, dim=-1, eps=1e-300),
        lambda w, g: _row_shares(w),
        False,
    ),
}


def test_every_kind_of_map_has_a_maker():
    def all_kinds(kind):
        return {kind, *(part for each in kind.__subclasses__() for part in all_kinds(each))}

    ours = {kind for kind in all_kinds(AttentionMap) if kind.__module__.startswith("captum_attn_lime.")}
    assert {kind for kind in ours if not inspect.isabstract(kind)} == set(MAKERS)


def _chosen(made, draw):
    heads = made.weights.shape[1]
    several = st.lists(st.integers(-heads, heads - 1), min_size=1, max_size=3)
    if made.options is not None:
        return made.options["heads"], made.options["head_fusion"]
    return draw(st.one_of(st.none(), several)), draw(st.sampled_from(sorted(FUSIONS)))


@by_kind
@many
@given(data=st.data())
def test_the_verbs_equal_the_formula(kind, data):
    made, draw = MAKERS[kind](data.draw), data.draw
    attention = made.attention
    assert type(attention) is kind
    assert attention.shape == made.weights.shape
    chosen, fusion = _chosen(made, draw)
    options = {"heads": chosen, "head_fusion": fusion}
    of_heads = slice(None) if chosen is None else chosen
    matrix = FUSIONS[fusion](made.weights[:, of_heads], axis=1)
    r = draw(vectors(attention.shape))
    with blocks_of(draw(block_sizes())):
        assert error(attention.vecmat(r, **options), product(r, matrix)) < 1e-10
        if matrix.shape[1] == matrix.shape[2]:
            share = draw(st.sampled_from([0.0, 0.3, 1.0]))
            factor = (1 - share) * matrix + share * np.eye(len(matrix[0]))
            sums = np.ones(1) if fusion == "mean" else factor.sum(-1, keepdims=True)
            factor = factor / np.where(sums == 0, 1, sums)
            assert error(attention.residual_vecmat(r, residual=share, **options), product(r, factor)) < 1e-10
        if made.gradient is not None:
            gated = np.maximum(made.weights * (made.gradient @ made.value.swapaxes(2, 3)), 0)[:, of_heads]
            expected = product(r, FUSIONS[fusion](gated, axis=1))
            assert error(attention.gated_vecmat(r, **options), expected) < 1e-9


@by_kind
@pytest.mark.parametrize("name", COMBINATIONS)
@many
@given(data=st.data())
def test_a_function_of_the_heads_equals_that_of_the_whole(kind, name, data):
    combine, dense, by_key = COMBINATIONS[name]
    made, draw = MAKERS[kind](data.draw), data.draw
    r, whole_rows = draw(vectors(made.attention.shape)), not by_key or draw(st.booleans())
    chosen, _ = _chosen(made, draw)
    with blocks_of(draw(block_sizes())):
        if made.value is None:
            with pytest.raises(SelectionError, match="heads fused"):
                made.attention.reduce(r, combine, heads=chosen, whole_rows=whole_rows)
            return
        found = made.attention.reduce(r, combine, heads=chosen, whole_rows=whole_rows)
    of_heads = slice(None) if chosen is None else chosen
    gradient = made.gradient @ made.value.swapaxes(2, 3)
    assert error(found, product(r, dense(made.weights[:, of_heads], gradient[:, of_heads]))) < 1e-9


@by_kind
@given(data=st.data())
@settings(max_examples=3)
def test_a_map_is_shown_in_one_short_line(kind, data):
    attention = MAKERS[kind](data.draw).attention
    attention.name = "layer.1"
    shown = repr(attention)
    assert shown.startswith(f"{kind.__name__}('layer.1', (B, H, Q, K)={attention.shape}, {attention.kind}")
    assert len(shown) < 100


def test_what_does_not_fit_is_refused():
    attention = DenseMap(torch.full((1, 2, 3, 3), 1 / 3), name="a.b")
    with pytest.raises(SelectionError, match=r"'a\.b' needs one weight per query, shape \(B, Q\) = \(1, 3\)"):
        attention.reduce(torch.ones(1, 4), lambda block: block.weights.sum(1))
    with pytest.raises(SelectionError, match="head 2 is out of range"):
        attention.reduce(torch.ones(1, 3), lambda block: block.weights.sum(1), heads=2)
    with pytest.raises(SelectionError, match=r"'a\.b' was captured without its values"):
        attention.reduce(torch.ones(1, 3), lambda block: block.value.sum((1, 3))[:, None].expand(-1, 3, -1))
    with pytest.raises(UnreadableAttentionError, match="is NaN"):
        attention.reduce(torch.ones(1, 3), lambda block: block.weights.sum(1) * torch.nan)
    fused = HeadFusedMap(attention)
    with pytest.raises(SelectionError, match="heads fused"):
        fused.reduce(torch.ones(1, 3), lambda block: block.weights.mean(1))
