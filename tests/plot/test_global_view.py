"""The picture of global views: what is drawn is the tables' numbers, side by side."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from captum_attn_lime import plot
from captum_attn_lime.errors import InputError


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def view(**features):
    return pd.DataFrame.from_dict(features, orient="index", columns=["mean", "sd", "count"])


LIME = view(good=(0.4, 0.1, 9), film=(0.1, 0.2, 5), rare=(0.9, np.nan, 1))
ROLLOUT = view(film=(0.02, 0.01, 6), good=(0.01, 0.002, 9), a=(0.01, 0.0, 7))


def labels(ax):
    return [t.get_text() for t in ax.get_yticklabels()]


def whiskers(ax, method=0):
    """Return the ends of a method's whiskers, by their place from above."""
    segments = [line for c in ax.collections for line in c.get_segments()]
    return sorted((round(float(s[0][1]), 3), float(s[0][0]), float(s[1][0])) for s in segments)


def test_one_view_has_bars_whiskers_and_counts():
    ax = plot.global_view(LIME, title="costs $5")
    assert labels(ax) == ["rare", "good", "film"]
    assert [bar.get_width() for bar in ax.containers[0]] == pytest.approx([0.9, 0.4, 0.1])
    # the single example has no whisker, and no whisker of magnitudes reaches below 0
    assert [w[1:] for w in whiskers(ax)] == [pytest.approx((0.3, 0.5)), pytest.approx((0.0, 0.3))]
    assert [t.get_text() for t in ax.texts] == ["1", "9", "5"]
    assert ax.get_legend() is None
    assert ax.get_title(loc="left") == "costs $5"
    assert ax.get_xlim()[1] >= 0.9
    ax.figure.savefig(BytesIO())


def test_several_views_are_each_scaled_by_their_own_largest_mean():
    ax = plot.global_view({"LIME": LIME, "rollout": ROLLOUT}, min_count=2, title="both")
    assert labels(ax) == ["good", "film", "a"]
    bars = {c.get_label(): [b.get_width() for b in c] for c in ax.containers if hasattr(c, "patches")}
    assert bars["LIME"] == pytest.approx([1.0, 0.25, 0.0])
    assert bars["rollout"] == pytest.approx([0.5, 1.0, 0.5])
    drawn = [pytest.approx(w) for w in [(0.75, 1.25), (0.4, 0.6), (0.0, 0.75), (0.5, 1.5)]]
    assert [w[1:] for w in whiskers(ax)] == drawn
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["LIME", "rollout"]
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == 1  # LIME has no "a"
    assert sorted(t.get_text() for t in ax.texts) == sorted(["9", "5", "6", "9", "7"])
    assert "the method's largest" in ax.get_xlabel()


def test_axes_given_and_the_number_of_features():
    _, given = pyplot.subplots()
    ax = plot.global_view(LIME, ax=given, max_features=2)
    assert ax is given
    assert labels(ax) == ["rare", "good"]
    assert ax.get_ylabel() == "the strongest 2 of 3 features"


def test_bad_tables_are_refused():
    with pytest.raises(InputError, match=r"views lacks \['sd'\]"):
        plot.global_view(LIME.drop(columns="sd"))
    with pytest.raises(InputError, match=r"views\['LIME'\] must be a DataFrame"):
        plot.global_view({"LIME": [1.0]})
    with pytest.raises(InputError, match="views has a feature twice"):
        plot.global_view(pd.concat([LIME, LIME]))
    with pytest.raises(InputError, match="no feature has 99 examples"):
        plot.global_view(LIME, min_count=99)
    with pytest.raises(InputError, match="max_features"):
        plot.global_view(LIME, max_features=0)
    with pytest.raises(InputError, match="empty"):
        plot.global_view({})
