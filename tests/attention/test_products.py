"""Products with an attention map equal the formula, whichever way they are computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_attn_lime.attention import AttentionMap, ScoreMap
from captum_attn_lime.attention import _fused as fused
from captum_attn_lime.attention._combine import Fuse
from captum_attn_lime.errors import SelectionError
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
many = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


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
            attention = case.map(log_sums=log_sums)
            found = AttentionMap._reduce(attention, vectors_of, everything, Fuse("mean"), whole_rows=False)
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


# Numbers below which float32 keeps no digits of a score beside: rows masked by them alone are rounded in any way.
ROUGH = {"keys_10000"}
ROUGH_IN_HALF = {"keys_min", "causal_float", "left_float", "right_float", "window_float"}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@settings(max_examples=80)
@given(data=st.data())
def test_narrower_types_are_computed_in_float32(dtype, data):
    """The weights of a bfloat16 model are those of its bfloat16 queries and keys."""
    rough = ROUGH | (ROUGH_IN_HALF if dtype == torch.float16 else set())
    case = data.draw(cases([kind for kind in KINDS if kind not in rough], dtype))
    weights = softmax_of(case)
    attention = case.map(log_sums=kernel_log_sums(case) if data.draw(st.booleans(), "log_sums") else None)
    r = data.draw(vectors(case.shape))
    fusion = data.draw(st.sampled_from(sorted(FUSIONS)))
    assert attention.dtype == torch.float32
    assert error(attention.dense(), weights) < 2e-5
    with blocks_of(data.draw(block_sizes())):
        found = attention.vecmat(r, head_fusion=fusion)
    assert found.dtype == torch.float32
    assert error(found, product(r, FUSIONS[fusion](weights, axis=1))) < 2e-5 * case.shape[2]


def _call(kind: str, n: int = 18, dtype: torch.dtype = torch.float64, key_heads: int = 2) -> Case:
    query, key = torch.randn(2, 4, n, 8).to(dtype), torch.randn(2, key_heads, n, 8).to(dtype)
    masks = () if kind in ("none", "flag") else (make_mask(kind, (2, 4, n, n), dtype, 1),)
    return Case(query, key, masks, None, kind == "flag")


def _took(case: Case, r: torch.Tensor, *, given_sums: bool = False, **options: object) -> list[str]:
    """How the product was computed, and that it is right."""
    attention = case.map(log_sums=kernel_log_sums(case) if given_sums else None)
    weights = softmax_of(case)
    heads, fusion = options.get("heads"), options.get("head_fusion", "mean")
    matrix = FUSIONS[fusion](weights if heads is None else weights[:, heads], axis=1)
    with ways() as taken:
        found = attention.vecmat(r, **options)
    digits = 1e-12 if case.query.dtype == torch.float64 else 1e-5 * r.shape[-1]
    assert error(found, product(r, matrix)) < digits
    return taken


def _real_rows(case: Case) -> torch.Tensor:
    """Positive weights on all rows that some key is open to."""
    seen = (case.merged() > -1e30).any(-1).any(1)
    return (torch.rand(seen.shape) + 0.1) * seen


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "kind",
    [
        *("none", "flag", "keys", "keys_min", "keys_inf", "keys_written_out", "key_bias", "one_row", "causal"),
        *("causal_float", "left_bool", "left_float", "right_bool", "right_float"),
    ],
)
def test_padding_and_causality_in_every_form_go_through_the_kernel(kind, key_heads, dtype):
    case = _call(kind, dtype=dtype, key_heads=key_heads)
    r = _real_rows(case)
    assert _took(case, r) == ["log_sums", "vecmat"]
    assert _took(case, r, given_sums=True) == ["vecmat"]
    signed = r * (torch.arange(r.shape[1]) % 3 - 0.5)
    assert _took(case, signed) == ["log_sums", "matmat"]
    assert _took(case, torch.stack([r, signed], 1), given_sums=True) == ["matmat"]


@pytest.mark.parametrize("kind", ["rows", "by_query", "bias", "bias_by_head", "bias_by_all", "window", "window_float"])
def test_masks_that_differ_by_row_go_by_tiles_where_log_sums_are_known(kind):
    case = _call(kind)
    r = _real_rows(case)
    assert _took(case, r) == ["whole_rows"]
    assert _took(case, r, given_sums=True) == ["tiles"]


@pytest.mark.parametrize("kind", ["none", "flag", "left_bool", "window"])
def test_what_the_kernel_cannot_do_goes_by_tiles_or_rows(kind):
    case = _call(kind)
    r = _real_rows(case)
    several = torch.rand(2, 9, 18)  # more vectors than a head is wide
    few = torch.zeros(2, 18)
    few[:, 9:11] = 1.0
    for vector, options in (
        (r, {"heads": [2, 0]}),
        (r, {"head_fusion": "max"}),
        (r, {"head_fusion": "min"}),
        (several, {}),
        (few, {}),
    ):
        assert _took(case, vector, **options) == ["whole_rows"]
        assert _took(case, vector, given_sums=True, **options) == ["tiles"]


def test_rows_of_padding_that_attend_to_all_keys_alike_are_not_told_by_log_sums():
    """Left padding by the least number of the type: softmax spreads such rows over all keys, those ahead too."""
    case = _call("left_float")
    assert bool((case.merged() < -1e30).all(-1).any())
    ones = torch.ones(2, 18)
    assert _took(case, ones) == ["log_sums", "whole_rows"]
    assert _took(case, ones, given_sums=True) == ["whole_rows"]
    assert _took(case, ones, given_sums=True, head_fusion="max") == ["whole_rows"]


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_scores_too_large_for_log_sums_are_not_left_to_them(size, fusion):
    """Whole numbers, so that float32 has every score exactly."""
    query, key = (torch.randint(-size, size, (2, 2, 16, 4)).float() for _ in range(2))
    case = Case(query, key, (), 1.0, True)
    way = {"mean": ["vecmat"], "max": ["tiles"]}[fusion] if size == 4 else ["whole_rows"]
    assert _took(case, torch.rand(2, 16), given_sums=True, head_fusion=fusion) == way


def test_a_number_that_masks_what_is_ahead_is_no_causality_where_nothing_else_is_left():
    """Row 0 sees key 0 only, which padding takes away: what is left are keys masked by a mere number."""
    n, least = 12, torch.finfo(torch.float64).min
    ahead = torch.zeros(n, n, dtype=torch.float64).masked_fill(torch.ones(n, n).triu(1).bool(), least)
    padding = torch.ones(1, 1, 1, n, dtype=torch.bool)
    padding[..., :3] = False
    case = Case(*torch.randn(2, 1, 2, n, 4, dtype=torch.float64), (ahead, padding), None, False)
    assert softmax_of(case)[0, 0, 0, 3:].min() > 0
    assert _took(case, torch.ones(1, n)) == ["whole_rows"]


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_a_sliding_window_computes_only_the_keys_inside(fusion, monkeypatch):
    n, window, rows = 96, 5, 8
    band = torch.ones(n, n, dtype=torch.bool).tril().triu(1 - window)
    case = Case(*torch.randn(2, 1, 2, n, 4, dtype=torch.float64), (band,), None, False)
    cells, real = [], ScoreMap._scores

    def counted(self: ScoreMap, block: object, heads: list[int]) -> torch.Tensor:
        scores = real(self, block, heads)
        cells.append(scores.shape[-2] * scores.shape[-1])
        return scores

    monkeypatch.setattr(ScoreMap, "_scores", counted)
    size = 2 * 8 * n * rows  # two heads in float64, so many rows of all keys
    with blocks_of((size, rows, n)):
        assert _took(case, torch.rand(1, n), given_sums=True, head_fusion=fusion) == ["tiles"]
    assert sum(cells) == rows * rows + (n // rows - 1) * rows * (rows + window - 1)


def test_rows_of_zeros_are_not_computed(monkeypatch):
    case = _call("window", n=40)
    needed, real = set(), ScoreMap._scores

    def noted(self: ScoreMap, block: object, heads: list[int]) -> torch.Tensor:
        needed.update(block.queries.tolist())
        return real(self, block, heads)

    r = torch.zeros(2, 40)
    r[0, [3, 4, 17]] = 1.0
    r[1, 30] = -1.0
    monkeypatch.setattr(ScoreMap, "_scores", noted)
    assert _took(case, r, given_sums=True) == ["tiles"]
    assert needed == {3, 4, 17, 30}
    needed.clear()
    assert torch.equal(case.map().vecmat(r * 0), torch.zeros(2, 40, dtype=torch.float64))
    assert not needed


@pytest.mark.parametrize("way", ["vecmat", "matmat", "tiles", "whole_rows"])
def test_one_query_or_key_for_all_examples_is_shared(way):
    """Learned queries of a pooling come with a batch of one."""
    wide = Case(torch.randn(3, 2, 9, 4).double(), torch.randn(3, 2, 7, 4).double(), (), None, False)
    for query, key in ((wide.query[:1], wide.key), (wide.query, wide.key[:1])):
        case = Case(query.expand(3, -1, -1, -1), key.expand(3, -1, -1, -1), (), None, False)
        sums = kernel_log_sums(case) if way in ("vecmat", "tiles") else None
        r = torch.rand(3, 9) - (0.5 if way == "matmat" else 0.0)
        expected = product(r, softmax_of(case).mean(1))
        for attention in (case.map(log_sums=sums), ScoreMap(query, key, log_sums=sums)):
            assert error(attention.vecmat(r), expected) < 1e-13


def test_a_query_that_is_not_square_has_no_residual():
    attention = ScoreMap(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 1, 4), name="cross")
    with pytest.raises(SelectionError, match="square attention, but it has 5 queries and 1 keys"):
        attention.residual_vecmat(torch.ones(1, 5))
    assert math.isclose(float(attention.vecmat(torch.ones(1, 5))), 5.0, rel_tol=1e-6)
