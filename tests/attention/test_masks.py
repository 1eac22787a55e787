"""What masks amount to, against the same masks looked at cell by cell."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_attn_lime.attention import _masks as masks
from tests.attention.cases import Case, cases

# Less than this and a key counts for nothing beside one that is not masked.
LOW = -1e30


def _written_out(bias: masks.KeyBias, case: Case) -> Tensor:
    """A bias per key and a causal flag as the mask (B, H, Q, K) that they stand for."""
    full = torch.zeros(case.shape, dtype=torch.float64)
    if bias.bias is not None:
        full = full + bias.bias
    return full.masked_fill(torch.ones(case.shape[2:]).triu(1).bool(), -math.inf) if bias.is_causal else full


@settings(max_examples=150)
@given(case=cases(), cells=st.sampled_from([1, 20, 2**19]))
def test_a_key_bias_stands_for_the_masks(case, cells):
    """Rows with a key have the same mask exactly; where it is a number that masks, it may be another such number."""
    with patch.object(masks, "_CELLS", cells):
        found = masks.as_key_bias(case.masks, case.is_causal, case.shape[2], torch.float64)
    if found is None:
        return
    expected, stands = case.merged(), _written_out(found, case)
    has_key = (expected > LOW).any(-1, keepdim=True)
    assert torch.equal((expected > LOW) & has_key, (stands > LOW) & has_key)
    counts = (expected > LOW) & has_key
    assert torch.equal(expected[counts], stands.expand_as(expected)[counts])
    # A row without any key has none in both, or its log-sum says that it is not to be trusted.
    without = ~has_key.squeeze(-1)
    for a, b in zip(expected[without], stands.expand_as(expected)[without], strict=True):
        assert bool((b <= LOW).all())
        assert bool((a == -math.inf).all()) == bool((b == -math.inf).all())


@settings(max_examples=150)
@given(case=cases(), data=st.data())
def test_the_range_of_keys_leaves_out_nothing_that_counts(case, data):
    n = case.shape[2]
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    low, high = masks.key_range(case.masks, case.is_causal, case.shape[3], rows)
    assert 0 <= low <= high <= case.shape[3]
    part = case.merged()[:, :, rows]
    counts = (part > LOW) | ((part > -math.inf) & ~(part > LOW).any(-1, keepdim=True))
    spread = (part <= LOW).all(-1) & (part > -math.inf).any(-1)  # told by no log-sum: such rows are computed whole
    counts = (counts & ~spread[..., None]).flatten(0, 2).any(0).nonzero()
    if len(counts):
        assert low <= int(counts[0])
        assert int(counts[-1]) < high


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_the_range_of_a_band_is_no_wider_than_the_band(dtype):
    band = torch.ones(50, 50, dtype=torch.bool).tril().triu(-4)
    mask = band if dtype == torch.bool else torch.zeros(50, 50).masked_fill(~band, torch.finfo(dtype).min)
    for shape in ((50, 50), (1, 50, 50), (1, 1, 50, 50)):
        assert masks.key_range([mask.reshape(shape)], False, 50, torch.arange(20, 30)) == (16, 30)
    assert masks.key_range([band], True, 50, torch.tensor([0])) == (0, 1)
    nothing = torch.zeros(50, 50, dtype=torch.bool)
    assert masks.key_range([nothing], False, 50, torch.arange(5)) == (0, 0)


@settings(max_examples=100)
@given(case=cases(), data=st.data())
def test_a_part_of_a_mask_is_that_part_of_the_whole(case, data):
    b, h, q, k = case.shape
    examples, keys = slice(data.draw(st.integers(0, b - 1)), b), slice(data.draw(st.integers(0, k - 1)), k)
    heads = data.draw(st.one_of(st.none(), st.lists(st.integers(0, h - 1), min_size=1, max_size=3).map(torch.tensor)))
    rows = data.draw(st.one_of(st.just(slice(0, q)), st.lists(st.integers(0, q - 1), min_size=1).map(torch.tensor)))
    for mask in case.masks:
        whole = mask.expand(b, h, q, k)[examples]
        whole = (whole if heads is None else whole[:, heads])[:, :, rows][..., keys]
        assert torch.equal(masks.part_of(mask, examples, heads, rows, keys).expand_as(whole), whole)


@settings(max_examples=100)
@given(case=cases().filter(lambda c: c.shape[2] == c.shape[3]))
def test_self_allowed_are_the_diagonal(case):
    found = masks.self_allowed(case.masks, case.shape[0], case.shape[2], torch.device("cpu"))
    expected = torch.ones(case.shape[0], case.shape[2], dtype=torch.bool)
    for mask in case.masks:
        allowed = mask if mask.dtype == torch.bool else mask > masks.MASKED
        expected &= allowed.expand(case.shape).diagonal(dim1=-2, dim2=-1).any(1)
    assert torch.equal(found, expected)
    assert torch.equal(case.map().reads_itself(), expected)


def test_a_mask_is_looked_through_in_parts_and_no_further_than_needed(monkeypatch):
    monkeypatch.setattr(masks, "_CELLS", 8)
    looked: list[int] = []
    real = torch.Tensor.__eq__
    rows = torch.ones(40, 8, dtype=torch.bool)
    rows[1, 3] = False
    monkeypatch.setattr(torch.Tensor, "__eq__", lambda a, b: looked.append(1) or real(a, b))
    assert masks._same_for_all_queries(rows) is None
    assert len(looked) == 2
