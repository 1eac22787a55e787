"""Feature masks: pool, spread, split, and the laws that hold between them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.errors import InputError
from captum_attn_lime.features import by_position, is_repeated, pool, split, spread


@st.composite
def cells_and_masks(draw):
    """Values (2, n) and ids (1 or 2, n) over features 0 to k."""
    n, k = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rows = draw(st.sampled_from([1, 2]))
    ids = draw(st.lists(st.integers(0, k - 1), min_size=rows * n, max_size=rows * n))
    values = draw(st.lists(st.integers(-5, 5), min_size=2 * n, max_size=2 * n))
    return torch.tensor(values, dtype=torch.float64).view(2, n), torch.tensor(ids).view(rows, n)


@given(cells_and_masks())
def test_pool_against_a_loop(case):
    values, mask = case
    n = int(mask.max()) + 1
    for row in range(2):
        ids = mask[row if len(mask) == 2 else 0].tolist()
        for feature in range(n):
            own = [v for v, i in zip(values[row].tolist(), ids, strict=True) if i == feature]
            assert pool(values, mask)[row, feature] == sum(own)
            assert pool(values, mask, "first")[row, feature] == (own[0] if own else 0)
            mean = pool(values, mask, "mean")[row, feature]
            assert mean == pytest.approx(sum(own) / len(own) if own else 0)


@given(cells_and_masks())
def test_spread_then_split_then_pool_gives_the_values_back(case):
    values, mask = case
    features = pool(values, mask)
    cells = spread(features, mask.expand(2, -1))
    assert torch.allclose(pool(split(cells, mask), mask), features * (pool(torch.ones_like(values), mask) > 0))
    assert torch.equal(pool(cells, mask, "first"), features)
    counts = pool(torch.ones_like(values), mask)
    assert is_repeated(cells, mask) == bool((counts > 1).any())


def test_tuples_run_on_over_tensors():
    numbers, categories = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])
    masks = by_position((numbers, categories))
    assert [m.tolist() for m in masks] == [[[0, 1]], [[2]]]
    assert pool((numbers, categories), masks).tolist() == [[1.0, 2.0, 4.0]]
    across = (torch.tensor([[0, 1]]), torch.tensor([[1]]))
    assert pool((numbers, categories), across).tolist() == [[1.0, 6.0]]
    assert [t.tolist() for t in split((numbers, categories), across)] == [[[1.0, 1.0]], [[2.0]]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[0.0, 1.0]]), "integer"),
        (torch.tensor([[0, -1]]), "negative"),
        (torch.tensor([[0, 1, 2]]), r"shape \(1, 3\) does not broadcast"),
        ((torch.tensor([[0, 1]]), torch.tensor([[0]])), "2 tensor"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(InputError, match=message):
        pool(torch.ones(1, 2), mask)
