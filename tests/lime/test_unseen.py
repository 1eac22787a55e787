"""What LIME's samples say nothing of is said by name, without a standard error, and so is what ridge holds down."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from lime.lime_tabular import LimeTabularExplainer
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from torch import nn

from captum_attn_lime import LimeSequence, LimeTabular, LimeText, SequenceAdapter, TabularAdapter, TextAdapter
from captum_attn_lime._explained import Explained
from captum_attn_lime.adapters import ImageAdapter, WordTokenizer
from captum_attn_lime.lime import LimeImage, diagnosed, explain_until_separated, pooled
from captum_attn_lime.lime._diagnostics import Diagnostics, diagnose
from captum_attn_lime.lime._fit_warnings import Features
from captum_attn_lime.lime._fits import Fit, FitData
from captum_attn_lime.lime._standard_errors import order_errors, weight_errors

pytestmark = pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.LimeWarning")
NAMES = ["age", "insured", "region"]


class Sum(nn.Module):
    """Adds up its numbers, each with a weight of its own."""

    def forward(self, x):
        x = x.flatten(1)
        return x @ torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)


class Count(nn.Module):
    """A classifier that adds up a number for each token."""

    def __init__(self, numbers):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.tensor(numbers)[:, None])

    def forward(self, input_ids):
        z = self.table(input_ids).sum(1)
        return torch.cat([-z, z], dim=1)


def critic(**numbers):
    tokenizer = WordTokenizer({word: k for k, word in enumerate(["<pad>", "<unk>", *numbers])})
    return TextAdapter(Count([0.0, 0.0, *numbers.values()]), tokenizer)


def rows(insured, region=None, n=1000):
    r = np.random.RandomState(0)
    return np.column_stack([r.normal(size=n), insured(r, n), r.normal(size=n) if region is None else region(r, n)])


def tabular(training, **options):
    own = dict(training_data=training, feature_names=NAMES, task="regression")
    return LimeTabular(TabularAdapter(Sum(), **own), **options)


def said(diagnostics: Diagnostics, word: str) -> list[str]:
    return [text for text in diagnostics.warnings if word in text]


def often(r, n):
    return (r.rand(n) < 0.9).astype(float)


def never(r, n):
    return np.full(n, 3.0)


def ties(r, n):
    return np.where(r.rand(n) < 0.97, 5.0, 5.0 - r.exponential(size=n))


ONE_BIN = [
    (often, {}, 0.0),
    (never, {}, 3.0),
    (ties, {}, 5.0),
    (lambda r, n: (r.rand(n) < 0.95).astype(float), {"discretizer": "decile"}, 1.0),
    (never, {"categorical_features": ["insured"]}, 3.0),
    (never, {"categorical_features": ["insured"], "semantics": "gradient"}, 3.0),
]


@pytest.mark.parametrize(("column", "options", "value"), ONE_BIN)
def test_a_column_that_never_changes_is_named_and_has_no_error(column, options, value):
    found = tabular(rows(column), **options).explain([0.1, value, 0.2], num_samples=500).diagnostics
    assert len(said(found, "column 'insured'")) == 1
    assert "cannot see" in said(found, "insured")[0]
    assert found.weights[1] == pytest.approx(0.0, abs=1e-9)
    assert np.isnan([found.standard_errors[1], found.full_standard_errors[1], found.ridge_bias[1]]).all()
    assert np.isfinite([found.standard_errors[k] for k in (0, 2)]).all()
    assert 0.9 < found.top_k_probability(2) <= 1
    assert np.isnan(found.top_k_probability(3))
    assert "errors" in str(found)


def test_several_columns_are_named_in_one_warning():
    found = tabular(rows(often, never)).explain([0.1, 0.0, 3.0], num_samples=500).diagnostics
    assert said(found, "columns 'insured' and 'region' are one bin each")


def test_a_column_in_two_bins_is_seen():
    half = tabular(rows(lambda r, n: (r.rand(n) < 0.5).astype(float))).explain([0.1, 0.0, 0.2]).diagnostics
    assert not said(half, "insured")
    named = tabular(rows(often), categorical_features=["insured"]).explain([0.1, 0.0, 0.2]).diagnostics
    assert not said(named, "insured")
    assert named.weights[1] == pytest.approx(-2.0, abs=0.3)


@pytest.mark.parametrize("semantics", ["gradient", "times_input"])
def test_a_column_without_a_spread_has_no_scale(semantics):
    found = tabular(rows(never), semantics=semantics).explain([0.1, 3.0, 0.2], num_samples=500).diagnostics
    assert len(said(found, "column 'insured' has a single value in the training data")) == 1
    assert np.isnan(found.standard_errors[1])
    assert np.isfinite(found.standard_errors[0])


def test_nothing_is_seen_at_all():
    training = np.tile([1.0, 2.0, 3.0], (50, 1))
    found = tabular(training).explain(training[0], num_samples=50).diagnostics
    assert said(found, "columns 'age', 'insured' and 'region'")
    assert np.isnan(list(found.standard_errors.values())).all()
    assert np.isnan(found.top_k_probability(1))
    assert "the samples do not determine" in str(found)


def test_cells_of_a_sequence():
    training = np.random.RandomState(0).normal(size=(200, 2, 2))
    training[:, 1, 0] = 4.0
    adapter = SequenceAdapter(Sum(), training_data=training, feature_names=["heart", "lung"], task="regression")
    found = LimeSequence(adapter).explain(training[0], num_samples=300).diagnostics
    assert len(said(found, "column 'heart_t-0'")) == 1
    assert np.isnan(found.standard_errors[1])
    assert np.isfinite([found.standard_errors[k] for k in (0, 2, 3)]).all()


def test_words_that_no_sample_lost():
    words = {f"w{k}": 1.0 for k in range(12)}
    found = LimeText(critic(**words)).explain(" ".join(words), 1, num_samples=3, output="logits").diagnostics
    unseen = [k for k, error in found.standard_errors.items() if np.isnan(error)]
    assert all(found.weights[k] == 0 for k in unseen if f"'w{k}'" in said(found, "cannot see")[0])
    assert said(found, "do not determine")


def test_segments_of_a_picture():
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 2))
    adapter = ImageAdapter(model, size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    segments = np.arange(4).reshape(2, 2).repeat(8, 0).repeat(8, 1)
    picture = np.random.RandomState(0).randint(0, 255, (16, 16, 3)).astype(np.uint8)
    found = LimeImage(adapter).explain(adapter.encode(picture, features=segments), 1, num_samples=2).diagnostics
    assert said(found, "feature")
    assert np.isnan(list(found.standard_errors.values())).any()


def test_an_official_explainer():
    explainer = LimeTabularExplainer(rows(often), feature_names=NAMES, mode="regression", random_state=0)
    with diagnosed(explainer) as found:
        explainer.explain_instance(np.array([0.0, 0.0, 0.0]), lambda x: x @ [1.0, 2.0, 3.0], num_samples=300)
    assert said(found[1], "column 'insured' is one bin")
    assert np.isnan(found[1].standard_errors[1])


def test_another_regressor_has_its_unseen_columns_named():
    found = tabular(rows(often), model_regressor=Lasso(alpha=0.001)).explain([0.1, 0.0, 0.2]).diagnostics
    assert said(found, "insured")


def test_the_selection_and_several_runs():
    lime = tabular(rows(often))
    row = [0.1, 0.0, 0.2]
    found = pooled(lime.explain(row, num_samples=300, num_features=2, seed=seed) for seed in range(3)).diagnostics
    assert said(found, "insured")
    assert np.isnan(found.full_standard_errors[1])
    auto = explain_until_separated(lime, row, num_features=2).diagnostics
    assert auto.replicates.stopped == "separated"


def masks(n=80, d=4, seed=0):
    r = np.random.RandomState(seed)
    x = r.randint(0, 2, (n, d)).astype(float)
    x[0] = 1
    return x, r.normal(size=n) + x @ np.arange(1.0, d + 1), r.uniform(0.1, 1, n)


def fitted(x, y, kernel, regressor=None, features=None):
    """Return diagnostics of the fit over all features."""
    model = (regressor or Ridge(alpha=1)).fit(x, y, sample_weight=kernel)
    result = (model.intercept_, list(enumerate(model.coef_)), model.score(x, y, kernel), model.predict(x[:1]))
    data = FitData(x, y, kernel, (0,), 1, regressor, features or Features())
    return diagnose(Fit(data, result, Explained(1, "logit")))[0]


@pytest.mark.parametrize("copy", [lambda c: c, lambda c: 1 - c, lambda c: 2 * c + 3])
@pytest.mark.parametrize("regressor", [None, Ridge(alpha=0.1), LinearRegression()])
def test_features_that_go_together_are_not_told_apart(copy, regressor):
    x, y, kernel = masks()
    x = np.column_stack([x, copy(x[:, 1])])
    found = fitted(x, y, kernel, regressor, Features(["a", "b", "c", "d", "e"]))
    assert said(found, "features 'b' and 'e' change together")
    assert np.isnan([found.standard_errors[k] for k in (1, 4)]).all()
    alone = fitted(x[:, :4], y, kernel, LinearRegression())
    for k in (0, 2, 3):
        assert np.isfinite(found.standard_errors[k])
        assert found.weights[k] - found.ridge_bias[k] == pytest.approx(alone.weights[k], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.01, 1.0, 50.0])
def test_ridge_bias_is_the_weight_minus_that_of_a_refit_without_a_penalty(seed, alpha):
    x, y, kernel = masks(seed=seed)
    found = fitted(x, y, kernel, Ridge(alpha=alpha))
    plain = LinearRegression().fit(x, y, sample_weight=kernel).coef_
    bias = np.array(list(found.weights.values())) - plain
    np.testing.assert_allclose(list(found.ridge_bias.values()), bias, atol=1e-9)
    # The formula of the docstring, with the weights without a penalty in the place of the truth.
    centred = x - np.average(x, axis=0, weights=kernel)
    inner = centred.T @ (kernel[:, None] * centred) + alpha * np.eye(x.shape[1])
    np.testing.assert_allclose(list(found.ridge_bias.values()), -alpha * np.linalg.solve(inner, plain), atol=1e-9)


def test_least_squares_have_no_penalty_and_lasso_no_closed_form():
    assert set(fitted(*masks(), LinearRegression()).ridge_bias.values()) == {0.0}
    assert np.isnan(list(fitted(*masks(), Lasso(alpha=0.01)).ridge_bias.values())).all()


REACH = [
    ("good film", {"good": 1.0, "film": 0.0}, {}, {}),
    ("good good film", {"good": 1.0, "film": 0.0}, {}, {}),
    ("bad", {"bad": -2.0}, {}, {}),
    ("a good film", {"a": 0.0, "good": 2.0, "film": 1.0}, {}, {"num_samples": 8}),
    ("a good bad film", {"a": 0.0, "good": 2.0, "bad": -3.0, "film": 1.0}, {"kernel_width": 4}, {}),
    (" ".join(f"w{k}" for k in range(30)), {f"w{k}": float(k) for k in range(30)}, {"kernel_width": 2}, {}),
]


@pytest.mark.parametrize(("text", "numbers", "options", "call"), REACH)
def test_where_ridge_keeps_the_truth_out_of_reach_a_warning_says_so(text, numbers, options, call):
    found = LimeText(critic(**numbers), **options).explain(text, 1, output="logits", **call)
    diagnostics = found.diagnostics
    truth = {word: numbers[word] * text.split().count(word) for word in numbers}
    for k, (word, number) in enumerate(truth.items()):
        off = abs(diagnostics.weights[k] - number)
        assert off <= 4 * diagnostics.standard_errors[k] + 0.1 * max(map(abs, truth.values())) or diagnostics.warnings
        if not np.isnan(diagnostics.ridge_bias[k]):
            assert diagnostics.weights[k] - diagnostics.ridge_bias[k] == pytest.approx(number, abs=1e-4), word
    if len(truth) == 2:
        assert said(diagnostics, "ridge penalty")
        assert "penalty     moves weights by up to" in str(diagnostics)
        plain = LimeText(critic(**numbers), model_regressor=LinearRegression()).explain(text, 1, output="logits")
        assert not plain.diagnostics.warnings
        assert plain.diagnostics.weights == pytest.approx(dict(enumerate(truth.values())), abs=1e-4)


def test_the_penalty_of_an_ordinary_explanation_is_no_warning():
    words = {f"w{k}": float(k % 3) for k in range(12)}
    found = LimeText(critic(**words)).explain(" ".join(words), 1, output="logits").diagnostics
    assert not found.warnings
    assert 0 < max(map(abs, found.ridge_bias.values())) < 0.05
    assert "penalty" in str(found)


def test_many_segments_under_a_narrow_kernel_collapse():
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 2))
    adapter = ImageAdapter(model, size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    picture = np.random.RandomState(0).randint(0, 255, (32, 32, 3)).astype(np.uint8)
    segments = np.arange(16).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    lime = LimeImage(adapter, kernel_width=0.05)
    found = lime.explain(adapter.encode(picture, features=segments), 1, num_samples=1000, output="logits").diagnostics
    assert max(map(abs, found.ridge_bias.values())) > 0.5 * max(map(abs, found.weights.values()))
    assert said(found, "ridge penalty")


def test_one_warning_a_kind():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tabular(rows(often, never)).explain([0.1, 0.0, 3.0], num_samples=500)
    assert len([w for w in seen if "cannot see" in str(w.message)]) == 1
    assert all("insured" not in str(w.message) for w in seen)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 1e-300])
def test_more_features_than_samples_go_by_the_smaller_matrix(alpha):
    """Held against the formula with the matrix of features."""
    x, y, kernel = masks(n=20, d=33)
    centred = x - np.average(x, axis=0, weights=kernel)
    inner = centred.T @ (kernel[:, None] * centred) + alpha * np.eye(33)
    inverse = np.linalg.pinv(inner, hermitian=True)
    weights = inverse @ centred.T @ (kernel * y)
    residuals = y - np.average(y - x @ weights, weights=kernel) - x @ weights
    leverage = kernel / kernel.sum() + kernel * ((centred @ inverse) * centred).sum(axis=1)
    half = centred @ inverse * (kernel * residuals / np.sqrt(np.maximum(1 - leverage, 1e-3)))[:, None]
    found = weight_errors(x, residuals, kernel, alpha, weights)
    errors = np.sqrt((half**2).sum(axis=0))
    seen = x.std(axis=0) > 0
    np.testing.assert_allclose(found.standard_errors[seen], errors[seen], rtol=1e-6, atol=1e-9)
    assert np.isnan(found.ridge_bias).all()
    assert not found.is_determined


def test_order_errors_beyond_the_strongest_are_not_known():
    weights = np.linspace(5, 1, 250)
    found = order_errors(weights, np.eye(250) * 0.001)
    few = order_errors(weights[:200], np.eye(200) * 0.001)
    assert found.of_order[:199] == pytest.approx(few.of_order[:199])
    assert np.isnan(found.of_set[200:249]).all()
    assert found.of_set[249] == 0.0
