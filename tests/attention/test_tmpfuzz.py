"""Products with an attention map equal the formula, whichever way they are computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_attn_lime.attention import AttentionMap, DenseMap, ScoreMap, fused
from tests.attention.cases import (
    FUSIONS,
    KINDS,
    Case,
    block_sizes,
    blocks_of,
    cases,
    error,
    kernel_log_sums,
    make_mask,
    product,
    softmax_of,
    vectors,
    ways,
)

# A key masked by -10,000 leaves that many digits fewer where nothing else is to be seen.
TOLERANCE = 2e-11
many = settings(max_examples=6000, derandomize=False, database=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(st.data())
def test_every_verb_equals_the_formula(data):
    case = data.draw(cases())
    weights, heads = softmax_of(case), case.shape[1]
    attention = case.map(log_sums=kernel_log_sums(case) if data.draw(st.booleans(), "log_sums") else None)
    r, sizes = data.draw(vectors(case.shape)), data.draw(block_sizes())
    fusion = data.draw(st.sampled_from(sorted(FUSIONS)))
    chosen = data.draw(st.one_of(st.none(), st.lists(st.integers(-heads, heads - 1), min_size=1, max_size=4)))
    matrix = FUSIONS[fusion](weights if chosen is None else weights[:, chosen], axis=1)
    with blocks_of(sizes):
        assert error(attention.dense(), weights) < TOLERANCE
        assert error(attention.vecmat(r, head_fusion=fusion, heads=chosen), product(r, matrix)) < TOLERANCE
        assert error(attention.row_sums(head_fusion=fusion, heads=chosen), matrix.sum(-1)) < TOLERANCE


@many
@given(st.data())
def test_the_residual_product_equals_that_of_normalised_rows(data):
    case = data.draw(cases().filter(lambda c: c.shape[2] == c.shape[3]))
    attention = case.map(log_sums=kernel_log_sums(case) if data.draw(st.booleans(), "log_sums") else None)
    r, sizes = data.draw(vectors(case.shape)), data.draw(block_sizes())
    fusion, share = data.draw(st.sampled_from(sorted(FUSIONS))), data.draw(st.sampled_from([0.0, 0.25, 1.0]))
    factor = (1 - share) * FUSIONS[fusion](softmax_of(case), axis=1) + share * np.eye(case.shape[2])
    if fusion != "mean":
        sums = factor.sum(-1, keepdims=True)
        factor = factor / np.where(sums == 0, 1, sums)
    with blocks_of(sizes):
        found = attention.residual_vecmat(r, residual=share, head_fusion=fusion)
    assert error(found, product(r, factor)) < TOLERANCE


@many
@given(st.data())
def test_each_way_equals_the_formula(data):
    """The kernel, its output with several vectors, a gradient, tiles and whole rows, each asked for by its name."""
    case = data.draw(cases())
    r = data.draw(vectors(case.shape))
    vectors_of = r if r.dim() == 3 else r[:, None]
    expected = product(vectors_of, softmax_of(case).mean(1))
    everything, sums = list(range(case.shape[1])), kernel_log_sums(case)
    with blocks_of(data.draw(block_sizes())):
        for log_sums in (None, sums):
            found = AttentionMap._product(case.map(log_sums=log_sums), vectors_of, everything, "mean")
            assert error(found, expected) < TOLERANCE
    plain = case.map()
    if r.shape[-2] <= case.query.shape[-1]:
        found = fused.by_gradient(case.query, case.key, plain.masks, plain.scale, plain.is_causal, vectors_of)
        assert error(found, expected) < TOLERANCE
    call = fused.readable(case.query, case.key, plain.masks, plain.scale, plain.is_causal)
    if call is None:
        return
    for given_sums in (fused.row_log_sums(call), sums):
        if not fused.is_exact(given_sums, vectors_of):
            continue
        if vectors_of.shape[1] <= case.query.shape[-1]:
            assert error(fused.matmat(call, given_sums, vectors_of), expected) < TOLERANCE
        if bool((vectors_of[:, 0] >= 0).all()):
            assert error(fused.vecmat(call, given_sums, vectors_of[:, 0]), expected[:, 0]) < TOLERANCE
