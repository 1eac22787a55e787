import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.errors import InputError
from captum_attn_lime.metrics import agreement, jaccard_by_chance, kendall_tau, spearman, top_k_jaccard
from tests.reference import agreement as reference

# Few distinct values, so that ties are common.
vectors = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(st.integers(-4, 4), min_size=n, max_size=n)] * 2))
MEASURES = {
    "kendall_tau": kendall_tau,
    "spearman": spearman,
    "top_2_jaccard": lambda a, b: top_k_jaccard(a, b, 2),
}
RANGES = {"kendall_tau": (-1, 1), "spearman": (-1, 1), "top_2_jaccard": (0, 1)}
every_measure = pytest.mark.parametrize("name", MEASURES)


def same(x, y):
    """Equal, where NaN and None both mean that there is no answer."""
    if y is None or math.isnan(y):
        return math.isnan(x)
    return x == pytest.approx(y, abs=1e-12)


@every_measure
@given(vectors)
def test_measures_are_symmetric_and_in_range(name, pair):
    a, b = pair
    value = MEASURES[name](a, b)
    assert same(value, MEASURES[name](b, a))
    low, high = RANGES[name]
    assert math.isnan(value) or low <= value <= high


@every_measure
@given(vectors)
def test_a_vector_agrees_with_itself(name, pair):
    a, _ = pair
    value = MEASURES[name](a, a)
    assert math.isnan(value) or value == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["kendall_tau", "spearman"])
def test_reversed_order_is_minus_one(name):
    assert MEASURES[name]([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)


@every_measure
@given(vectors)
def test_only_the_order_counts(name, pair):
    a, b = pair
    grown = [math.exp(x) for x in a]  # strictly increasing, and exact enough for integers from -4 to 4
    assert same(MEASURES[name](grown, b), MEASURES[name](a, b))


@every_measure
@given(vectors, st.randoms(use_true_random=False))
def test_the_order_of_the_features_does_not_count(name, pair, random):
    a, b = pair
    order = random.sample(range(len(a)), len(a))
    moved = MEASURES[name]([a[i] for i in order], [b[i] for i in order])
    assert same(moved, MEASURES[name](a, b))


@every_measure
@given(vectors, st.data())
def test_features_without_a_value_are_left_out(name, pair, data):
    a, b = pair
    gaps = data.draw(st.sets(st.integers(0, len(a) - 1)))
    with_gaps = [math.nan if i in gaps else x for i, x in enumerate(a)]
    kept = [i for i in range(len(a)) if i not in gaps]
    expected = MEASURES[name]([a[i] for i in kept], [b[i] for i in kept])
    assert same(MEASURES[name](with_gaps, b), expected)
    assert same(MEASURES[name](b, with_gaps), expected)


@every_measure
@pytest.mark.parametrize(
    ("a", "b"),
    [([1, 1, 1, 1], [1, 2, 3, 4]), ([0.5] * 3, [0.5] * 3), ([], []), ([1], [2]), ([math.nan] * 3, [1, 2, 3])],
)
def test_no_answer_is_nan_without_a_warning(name, a, b):
    assert math.isnan(MEASURES[name](a, b))


def test_a_tie_across_the_kth_place_is_left_out():
    # Second and third tie for place two: only the first is surely in the top two.
    assert top_k_jaccard([3, 2, 2, 1], [3, 2, 2, 1], 2) == 1.0
    assert top_k_jaccard([3, 2, 2, 1], [3, 2, 1, 0], 2) == 0.5
    # The zeros of a sparse explanation do not fill the top.
    assert top_k_jaccard([5, 0, 0, 0], [5, 4, 0, 0], 3) == 0.5


def test_top_k_has_no_answer_when_all_features_are_in_it():
    assert math.isnan(top_k_jaccard([3, 2, 1], [1, 2, 3], 3))
    assert top_k_jaccard([3, 2, 1], [1, 2, 3], 2) == pytest.approx(1 / 3)


def test_chance_overlap_of_no_choice_is_nan():
    assert math.isnan(jaccard_by_chance(3, 5))


@every_measure
def test_length_mismatch_says_both_lengths(name):
    with pytest.raises(InputError, match="3 and 2 values"):
        MEASURES[name]([1, 2, 3], [1, 2])


@every_measure
@pytest.mark.parametrize("bad", [["a", "b", "c"], [1j, 2, 3], np.ones((3, 1)), 1.0, ["1", None, "x"], None])
def test_what_is_no_vector_of_numbers_is_refused(name, bad):
    with pytest.raises(InputError, match="first score vector"):
        MEASURES[name](bad, [1, 2, 3])


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_bad_k_is_refused(k):
    with pytest.raises(InputError, match="k is the size of the top"):
        top_k_jaccard([1, 2, 3], [1, 2, 3], k)


def table():
    return pd.DataFrame({"a": [0.1, 0.2, 0.3, 0.4], "b": [-1.0, 2.0, -3.0, 4.0], "c": [4.0, math.nan, 1.0, 0.0]})


def test_agreement_has_one_row_per_pair():
    out = agreement(table(), k=2)
    assert list(out.index) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert out.index.names == ["method_a", "method_b"]
    assert list(out.columns) == ["kendall_tau", "spearman", "top_k_jaccard"]
    assert out.attrs["k"] == 2
    assert out.attrs["signed"] is False
    # "c" has no value for one of the four features.
    of_three = jaccard_by_chance(3, 2)
    expected = {("a", "b"): jaccard_by_chance(4, 2), ("a", "c"): of_three, ("b", "c"): of_three}
    assert out.attrs["jaccard_by_chance"] == pytest.approx(expected)


def test_agreement_compares_magnitudes_unless_signed():
    magnitudes, signed = agreement(table(), k=1), agreement(table(), k=1, signed=True)
    assert magnitudes.loc[("a", "b"), "kendall_tau"] == 1.0
    assert signed.loc[("a", "b"), "kendall_tau"] == pytest.approx(reference.tau_b([1, 2, 3, 4], [-1, 2, -3, 4]))
    assert signed.attrs["signed"] is True


def test_agreement_drops_missing_features_pair_by_pair():
    out = agreement(table(), k=1)
    assert out.loc[("a", "c"), "kendall_tau"] == pytest.approx(reference.tau_b([0.1, 0.3, 0.4], [4, 1, 0]))


def test_agreement_of_one_method_is_empty():
    out = agreement(table()[["a"]])
    assert len(out) == 0
    assert list(out.columns) == ["kendall_tau", "spearman", "top_k_jaccard"]


def test_agreement_refuses_what_is_no_table():
    with pytest.raises(InputError, match="must be a DataFrame"):
        agreement({"a": [1, 2]})
    with pytest.raises(InputError, match="unique name"):
        agreement(pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]))
    with pytest.raises(InputError, match="'b' score vector"):
        agreement(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
