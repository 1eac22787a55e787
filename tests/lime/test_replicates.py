"""Runs with several seeds: pooled and fitted by official lime, compared by published indices, stopped in time."""

from __future__ import annotations

import copy
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from lime.lime_base import LimeBase
from lime.lime_text import LimeTextExplainer
from sklearn.linear_model import Lasso, LinearRegression

from captum_attn_lime import LimeTabular, LimeText, TabularAdapter
from captum_attn_lime.errors import InputError, LimeWarning
from captum_attn_lime.lime import (
    Replicates,
    coefficients_stability,
    explain_until_separated,
    explanation_weights,
    pooled,
    variables_stability,
)
from captum_attn_lime.lime._fits import FitData
from captum_attn_lime.lime._pooled import replicate_seeds
from captum_attn_lime.metrics import spearman
from tests.lime.test_diagnostics import Square, bag, explained, sandwich

TEXT = "a fine film it is not bad and the actors are good"


def official_runs(adapter, seeds, num_samples, **options):
    """The official explainer run once with each seed, with the samples that it fitted."""
    runs, fitted = [], []
    for seed in seeds:
        explainer = LimeTextExplainer(random_state=seed, feature_selection="none", **options)
        fit = explainer.base.explain_instance_with_data

        def keep(*args, fit=fit, **kwargs):
            fitted.append(args[:3])
            return fit(*args, **kwargs)

        explainer.base.explain_instance_with_data = keep
        runs.append(explainer.explain_instance(TEXT, adapter.predict_proba, labels=(1,), num_samples=num_samples))
    return runs, fitted


def runs_of(lime, *args, seeds, **options):
    return pooled(lime.explain(*args, seed=seed, **options) for seed in seeds)


def kernel(distances):
    return np.sqrt(np.exp(-(distances**2) / 6**2))


def test_pooled_is_one_official_fit_over_all_samples():
    adapter = bag(bend=2.0)
    found = runs_of(LimeText(adapter, kernel_width=6), TEXT, 1, num_samples=90, seeds=replicate_seeds(7, 3))
    replicates = found.diagnostics.replicates
    assert replicates.seeds == replicate_seeds(7, 3)
    runs, fitted = official_runs(adapter, replicates.seeds, 90, kernel_width=6)
    data, answers, distances = (np.concatenate(part) for part in zip(*fitted, strict=True))
    expected = LimeBase(kernel).explain_instance_with_data(data, answers, distances, 1, 10, feature_selection="none")
    weights = explanation_weights(found)
    assert weights == pytest.approx({int(k): w for k, w in expected[1]}, abs=1e-6)
    assert found.intercept[1] == pytest.approx(expected[0], abs=1e-6)
    assert found.diagnostics.r2_shown == pytest.approx(expected[2], abs=1e-6)
    assert (found.diagnostics.n_samples, replicates.samples) == (270, 90)
    samples = FitData(data, answers[:, 1], kernel(distances), (0, 90, 180), 1, None)
    assert list(found.diagnostics.full_standard_errors.values()) == pytest.approx(
        sandwich(samples, range(12)), rel=1e-3
    )
    for run, own in zip(runs, replicates.weights, strict=True):
        assert own == pytest.approx(explanation_weights(run), abs=1e-6)


def test_agreement_against_its_parts():
    adapter = bag(bend=2.0)
    replicates = runs_of(LimeText(adapter), TEXT, 1, num_samples=60, seeds=range(4)).diagnostics.replicates
    runs = replicates.weights
    tops = [set(sorted(run, key=lambda k: -abs(run[k]))[:5]) for run in runs]
    pairs = list(combinations(range(4), 2))
    assert replicates.k == 5
    assert replicates.vsi == pytest.approx(100 * np.mean([len(tops[a] & tops[b]) / 5 for a, b in pairs]))
    assert replicates.jaccard == pytest.approx(
        np.mean([len(tops[a] & tops[b]) / len(tops[a] | tops[b]) for a, b in pairs])
    )
    values = [[run[k] for k in range(12)] for run in runs]
    assert replicates.spearman == pytest.approx(np.mean([spearman(values[a], values[b]) for a, b in pairs]))
    errors = replicates.standard_errors()
    assert errors[3] == pytest.approx(np.std([run[3] for run in runs], ddof=1) / 2)
    assert replicates.vsi < 100
    assert replicates.stopped is None


def test_indices_by_hand():
    # Pairs share 2, 1 and 1 of 2 features.
    assert variables_stability([[4, 7], [7, 4], [4, 9]]) == pytest.approx(100 * (1 + 0.5 + 0.5) / 3)
    intervals = [{0: (0.0, 1.0), 1: (5.0, 6.0)}, {0: (0.9, 2.0), 1: (7.0, 8.0)}, {0: (1.5, 3.0), 2: (0.0, 1.0)}]
    # Of feature 0 two of three pairs overlap; of feature 1 the only pair does not; feature 2 has no pair.
    assert coefficients_stability(intervals) == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert np.isnan(coefficients_stability([{0: (0.0, 1.0)}, {1: (0.0, 1.0)}]))
    assert np.isnan(coefficients_stability([{0: (0.0, np.nan)}, {0: (0.0, 1.0)}]))


def test_selected_features_are_what_is_compared():
    found = runs_of(LimeText(bag(bend=2.0)), TEXT, 1, num_samples=80, seeds=range(3), num_features=2)
    replicates = found.diagnostics.replicates
    assert replicates.k == 2
    assert len(found.diagnostics.weights) == 2
    assert len(replicates.weights[0]) == 12
    assert 0 <= replicates.csi <= 100


def test_what_cannot_be_pooled():
    lime = LimeText(bag(bend=2.0))
    one, two = (lime.explain(TEXT, 1, num_samples=60, seed=seed) for seed in (0, 1))
    for others, message in [
        ([], "at least two"),
        ([one.local_exp], "but got .*dict"),
        ([one], "same samples"),
        ([pooled([one, two])], "numbers of samples"),
        ([lime.explain(TEXT, 0, num_samples=60, seed=1)], "explained numbers;"),
        ([lime.explain(TEXT, 1, num_samples=60, seed=1, output="logits")], "explained numbers;"),
        ([lime.explain(TEXT, 1, num_samples=60, seed=1, num_features=2)], "numbers of features shown"),
        ([lime.explain(TEXT + " good", 1, num_samples=60, seed=1)], "their texts"),
        ([lime.explain(TEXT[:20], 1, num_samples=60, seed=1)], "their features"),
    ]:
        with pytest.raises(InputError, match=message):
            pooled([one, *others])
    rows = LimeTabular(
        TabularAdapter(torch.nn.Linear(2, 2), training_data=np.random.RandomState(0).normal(size=(40, 2)))
    )
    with pytest.raises(InputError, match="scores of the inputs differ"):
        pooled([rows.explain([0.1, 0.2], 1, num_samples=60), rows.explain([2.1, 0.2], 1, num_samples=60, seed=1)])


@pytest.mark.parametrize("kind", ["rows", "regression", "sequence", "image"])
def test_every_class_pools(kind):
    single, *others = (explained(kind, seed=seed) for seed in (1, 2, 3))
    found = pooled([single, *others])
    diagnostics = found.diagnostics
    assert diagnostics.n_samples == 900
    assert diagnostics.weights == explanation_weights(found)
    first = diagnostics.replicates.weights[0]
    assert first == pytest.approx(explanation_weights(single), abs=1e-9)
    mean = {k: np.mean([run[k] for run in diagnostics.replicates.weights]) for k in first}
    largest = max(map(abs, mean.values()))
    assert diagnostics.weights == pytest.approx(mean, abs=0.15 * largest)
    assert diagnostics.weights != first
    typical = np.median([diagnostics.standard_errors[k] / single.diagnostics.standard_errors[k] for k in first])
    # The picture's model is nearly linear: what is left is the penalty's part, which itself falls with the samples.
    assert typical == pytest.approx(3 ** (-1.5 if kind == "image" else -0.5), rel=0.3)
    if kind == "regression":
        assert found.local_exp[0] == [(k, -w) for k, w in found.local_exp[1]]
        runs = [explained(kind, seed=seed) for seed in diagnostics.replicates.seeds]
        ends = [(run.min_value, run.max_value) for run in runs]
        assert (found.min_value, found.max_value) == (min(a for a, _ in ends), max(b for _, b in ends)) != ends[0]


def test_bins_are_the_same_in_every_replicate():
    rng = np.random.RandomState(0)
    x = rng.normal(size=(120, 3))
    adapter = TabularAdapter(Square(), training_data=x, task="regression")
    lime = LimeTabular(adapter, discretizer="entropy", training_labels=(x[:, 0] > 0.2).astype(int))
    found = runs_of(lime, x[0], num_samples=200, seeds=range(3))
    assert found.diagnostics.n_distinct <= 2**3 * 3**3
    assert len(found.diagnostics.replicates.weights) == 3


def test_auto_stops_when_the_order_is_plain():
    adapter = bag()
    adapter.model.table.weight.data[:, 0] = torch.linspace(-3, 6, 40)
    found = explain_until_separated(LimeText(adapter), TEXT, 1, num_features=2, output="logits").diagnostics
    assert found.replicates.stopped == "separated"
    assert (len(found.replicates.seeds), found.n_samples) == (2, 500)
    assert found.separated(2)
    assert "are separated" in str(found)


def test_auto_stops_at_the_budget_where_features_are_equal():
    adapter = bag()
    adapter.model.table.weight.data[:] = 1.0
    found = explain_until_separated(LimeText(adapter), TEXT, 1, max_samples=1100).diagnostics
    assert found.replicates.stopped == "budget"
    assert (len(found.replicates.seeds), found.n_samples) == (4, 1000)
    assert not found.separated(5)
    assert "max_samples" in str(found)


def test_auto_adds_no_run_that_is_not_needed():
    adapter = bag(bend=2.0)
    lime = LimeText(adapter)
    found = explain_until_separated(lime, TEXT, 1, num_features=5, max_samples=20000).diagnostics
    runs = len(found.replicates.seeds)
    assert found.replicates.stopped == "separated"
    assert runs > 2
    seeds = found.replicates.seeds
    before = runs_of(lime, TEXT, 1, seeds=seeds[:-1], num_samples=250, num_features=5).diagnostics
    assert not before.separated(5)
    again = runs_of(lime, TEXT, 1, seeds=seeds, num_samples=250, num_features=5).diagnostics
    assert again.weights == found.weights


def test_no_ranking_is_believed_with_fewer_than_ten_samples_a_feature():
    torch.manual_seed(0)
    rows = np.random.RandomState(0).normal(size=(80, 60))
    adapter = TabularAdapter(torch.nn.Linear(60, 1), training_data=rows, task="regression")
    lime = LimeTabular(adapter, semantics="gradient", model_regressor=LinearRegression())
    found = explain_until_separated(lime, np.zeros(60), max_samples=2000).diagnostics
    assert found.replicates.stopped == "separated"
    assert found.n_samples == 750


def test_what_ends_the_runs_warns_once_and_of_itself():
    adapter = bag()
    with pytest.warns(LimeWarning) as seen:
        found = explain_until_separated(LimeText(adapter), TEXT, 1, num_samples=20, max_samples=40)
    few = [w for w in seen if "few samples" in str(w.message)]
    assert len(few) == 1
    assert few[0].filename == __file__
    assert "40 samples" in str(found.diagnostics.warnings)


def test_the_seeds_of_neighbours_are_not_shared():
    seeds = [set(replicate_seeds(seed, 20)) for seed in range(30)]
    assert len(set.union(*seeds)) == 600
    assert replicate_seeds(4, 3) == replicate_seeds(4, 9)[:3]
    assert replicate_seeds(4, 1) == (4,)


def test_pooled_replicates_scatter_as_a_run_of_as_many_samples():
    adapter = bag(bend=2.0)
    several, single = [], []
    for seed in range(25):
        lime = LimeText(adapter, seed=1000 * seed)
        seeds = replicate_seeds(lime.seed, 4)
        several.append(list(runs_of(lime, TEXT, 1, num_samples=60, seeds=seeds).diagnostics.full_weights.values()))
        single.append(list(lime.explain(TEXT, 1, num_samples=240).diagnostics.full_weights.values()))
    ratio = np.std(several, axis=0).mean() / np.std(single, axis=0).mean()
    assert 0.75 < ratio < 1.33


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_samples="many"), "num_samples must be"),
        (dict(num_samples=1), "num_samples must be"),
        (dict(max_samples=499), "max_samples must be a whole number of at least 500"),
    ],
)
def test_bad_calls(options, message):
    with pytest.raises(InputError, match=message):
        explain_until_separated(LimeText(bag()), TEXT, 1, **options)


def test_separation_needs_standard_errors():
    lime = LimeText(bag(), model_regressor=Lasso(alpha=0.001))
    with pytest.raises(InputError, match="Lasso does not have"):
        explain_until_separated(lime, TEXT, 1)
    found = runs_of(lime, TEXT, 1, num_samples=80, seeds=range(2))
    assert np.isnan(found.diagnostics.replicates.csi)
    assert found.diagnostics.replicates.vsi > 0
    assert min(found.diagnostics.replicates.standard_errors().values()) >= 0


def test_replicates_are_plain_data():
    found = pooled(explained("rows", seed=seed) for seed in (0, 1)).diagnostics.replicates
    assert isinstance(copy.deepcopy(found), Replicates)
    assert str(found).startswith("2 of 300 samples, top 4: VSI 100")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found == copy.deepcopy(found)
