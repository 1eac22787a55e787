"""The picture of weights: lengths, whiskers, colours and names are what came in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from lime.lime_text import LimeTextExplainer
from matplotlib import pyplot

from captum_attn_lime import plot
from captum_attn_lime.errors import InputError
from tests.lime.test_diagnostics import TEXT, bag, explained

VALUES = {"good": 0.3, "$film$": -0.02, "not": -0.2, "": 0.1}
ERRORS = {"good": 0.02, "$film$": 0.03, "not": 0.1, "": np.nan}


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def lengths(ax):
    return [bar.get_width() for bar in ax.containers[0]]


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def whiskers(ax):
    """Start and end of each whisker, by its place."""
    if not ax.collections:
        return {}
    return {round(float(line[0, 1])): line[:, 0].tolist() for line in ax.collections[0].get_segments()}


def test_bars_whiskers_and_names():
    ax = plot.weights(VALUES, errors=ERRORS, title="costs $5")
    assert names(ax) == ["good", "not", "␣", "$film$"]
    assert lengths(ax) == [0.3, -0.2, 0.1, -0.02]
    found = whiskers(ax)
    assert found.keys() == {0, 1, 3}
    assert found[0] == pytest.approx([0.3 - 1.96 * 0.02, 0.3 + 1.96 * 0.02])
    assert found[1] == pytest.approx([-0.2 - 1.96 * 0.1, -0.2 + 1.96 * 0.1])
    assert "standard errors" in ax.get_xlabel()
    assert not any(label.get_parse_math() for label in [*ax.get_yticklabels(), ax._left_title])
    low, high = ax.get_xlim()
    assert low < -0.2 - 1.96 * 0.1
    assert high > 0.3 + 1.96 * 0.02


def test_colours_tell_the_sign_and_whether_it_is_sure():
    ax = plot.weights({"a": 1.0, "b": -0.9, "c": 0.8, "d": -0.7}, errors={"a": 0.1, "b": 0.1, "c": 0.5, "d": 0.5})
    plus, minus, pale_plus, pale_minus = (np.array(bar.get_facecolor()[:3]) for bar in ax.containers[0])
    assert plus[0] > plus[2]
    assert minus[2] > minus[0]
    assert pale_plus.min() > plus.min()
    assert pale_minus.min() > minus.min()
    assert pale_plus[0] > pale_plus[2]
    assert "pale" in ax.get_xlabel()
    assert "pale" not in plot.weights([1.0, 2.0], errors=[0.1, 0.1]).get_xlabel()


def test_no_whiskers_without_errors():
    ax = plot.weights([0.2, -0.4], names=["a", "b"])
    assert (names(ax), lengths(ax)) == (["b", "a"], [-0.4, 0.2])
    assert whiskers(ax) == {}
    assert ax.get_xlabel() == "weight"


def test_top_and_missing_values():
    ax = plot.weights({"a": 1.0, "b": np.nan, "c": -3.0}, top=2)
    assert names(ax)[0] == "c"
    assert "2 of 3" in ax.get_ylabel()
    ax = plot.weights({"b": np.nan, "a": 1.0})
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_ydata().tolist() for line in crosses] == [[names(ax).index("b")]] == [[1]]


def test_arrays_series_and_tensors():
    for values in (np.array([0.5, -1.0]), torch.tensor([0.5, -1.0], requires_grad=True)):
        assert lengths(plot.weights(values, errors=torch.tensor([0.1, 0.2]))) == [-1.0, 0.5]
    series = pd.Series([0.5, -1.0], index=["a", "b"])
    ax = plot.weights(series, errors=pd.Series([0.2, 0.1], index=["b", "a"]))
    assert names(ax) == ["b", "a"]
    assert whiskers(ax)[0] == pytest.approx([-1 - 0.392, -1 + 0.392])


@pytest.mark.parametrize("kind", ["text", "rows", "regression", "image"])
def test_an_explanation_brings_its_errors_and_names(kind):
    found = explained(kind)
    diagnostics = found.diagnostics
    ax = plot.weights(found, title="LIME")
    ids = list(diagnostics.weights)
    assert lengths(ax) == [diagnostics.weights[k] for k in ids]
    for place, k in enumerate(ids):
        half = 1.96 * diagnostics.standard_errors[k]
        middle = diagnostics.weights[k]
        assert whiskers(ax)[place] == pytest.approx([middle - half, middle + half])
    shown = [f"segment {k}" for k in ids] if kind == "image" else [name for name, _ in found.as_list(label=1)]
    assert names(ax) == shown
    assert f"{diagnostics.n_samples} samples" in ax.texts[0].get_text()


def test_an_official_explanation_has_names_and_no_errors():
    found = LimeTextExplainer(random_state=0).explain_instance(TEXT, bag().predict_proba, num_samples=60)
    ax = plot.weights(found)
    assert names(ax) == [name for name, _ in found.as_list()]
    assert whiskers(ax) == {}
    given = plot.weights(found, errors={k: 0.01 for k, _ in found.local_exp[1]}, names={k: f"w{k}" for k in range(12)})
    assert names(given)[0] == f"w{found.local_exp[1][0][0]}"
    assert len(whiskers(given)) == 10
    several = LimeTextExplainer(random_state=0).explain_instance(
        TEXT, bag().predict_proba, num_samples=60, labels=(0, 1)
    )
    with pytest.raises(InputError, match=r"of the classes \[0, 1\].*label="):
        plot.weights(several)


def test_names_by_feature_id():
    found = explained("rows", num_features=2)
    ax = plot.weights(found, names=["one", "two", "three", "four"])
    assert names(ax) == [["one", "two", "three", "four"][k] for k in found.diagnostics.weights]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.weights([]), "empty"),
        (lambda: plot.weights([[1.0]]), "dimensions"),
        (lambda: plot.weights({"a": "x"}), "numbers"),
        (lambda: plot.weights([1.0], top=0), "at least 1"),
        (lambda: plot.weights([1.0, 2.0], errors=[0.1]), "2 weights but 1 errors"),
        (lambda: plot.weights([1.0, 2.0], errors=[0.1, -0.1]), "negative"),
        (lambda: plot.weights({"a": 1.0}, errors={"b": 0.1}), "but the weights have"),
        (lambda: plot.weights({"a": 1.0, "b": 2.0}, names=["c"]), "2 weights but 1 names"),
        (lambda: plot.weights(pd.Series([1.0, 2.0], index=["a", "a"])), "twice"),
    ],
)
def test_bad_data_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
