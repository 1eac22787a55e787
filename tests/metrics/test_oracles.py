"""Every public metric against a slow oracle of its own: a row of the table each, and one without a row fails."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime import metrics
from tests.reference import agreement as reference

# Few distinct values, so that ties are common.
PAIRS = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(st.integers(-4, 4), min_size=n, max_size=n)] * 2))
GAPPED = st.sampled_from([math.nan, -2.0, -1.0, 0.0, 0.5, 1.0])
TABLES = st.integers(1, 7).flatmap(
    lambda n: st.dictionaries(st.sampled_from("abc"), st.lists(GAPPED, min_size=n, max_size=n), min_size=1)
)
TEXTS = st.lists(st.lists(st.tuples(st.sampled_from("xyz"), GAPPED), min_size=1, max_size=5), min_size=1, max_size=4)


def _view_of(texts, behind):
    """Scores and names, with a score behind the names."""
    return [[score for _, score in text] + behind for text in texts], [[name for name, _ in text] for text in texts]


# Name: (the oracle, what both are given, the metric's answer as the oracle has it)
METRICS = {
    "kendall_tau": (reference.tau_b, PAIRS, float),
    "spearman": (reference.spearman_rho, PAIRS, float),
    "top_k_jaccard": (
        reference.jaccard,
        st.tuples(PAIRS, st.sampled_from([1, 2, 5])).map(lambda x: (*x[0], x[1])),
        float,
    ),
    "jaccard_by_chance": (reference.mean_jaccard_over_orders, st.sampled_from([(2, 1), (5, 1), (5, 3), (7, 6)]), float),
    "agreement": (reference.agreement, TABLES.map(lambda table: (pd.DataFrame(table),)), lambda x: x.T.to_dict("list")),
    "global_view": (
        reference.global_view,
        st.builds(_view_of, TEXTS, st.sampled_from([[], [0.5]])),
        lambda x: x.T.to_dict("list") | {"outside": [x.attrs["outside"]]},
    ),
}


def test_every_metric_has_an_oracle():
    public = {name for name in metrics.__all__ if callable(getattr(metrics, name))} | metrics.MEASURES.keys()
    assert METRICS.keys() == public, "give each public metric a row in METRICS"


@pytest.mark.parametrize("name", METRICS)
@given(data=st.data())
def test_a_metric_is_what_its_oracle_says(name, data):
    oracle, given_to_both, answer = METRICS[name]
    arguments = data.draw(given_to_both)
    found, expected = answer(getattr(metrics, name)(*arguments)), oracle(*arguments)
    if isinstance(found, float):
        found, expected = {"": [found]}, {"": [expected]}
    assert found.keys() == expected.keys()
    for row, values in expected.items():
        numbers = [math.nan if value is None else value for value in values]
        assert found[row] == pytest.approx(numbers, abs=1e-12, nan_ok=True), row


def test_the_strongest_feature_comes_first():
    view = metrics.global_view([[1.0, 3.0, 2.0]], [("a", "b", "c")])
    assert list(view.index) == ["b", "c", "a"]
