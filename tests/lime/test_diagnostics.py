"""Diagnostics of official fits, held against sklearn, slow formulas, the spread over seeds and by hand."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lime.lime_base import LimeBase
from lime.lime_tabular import LimeTabularExplainer
from lime.lime_text import LimeTextExplainer
from sklearn.base import clone
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.metrics import r2_score

from captum_attn_lime import (
    LimeSequence,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
    WordTokenizer,
)
from captum_attn_lime._explained import Explained
from captum_attn_lime.adapters import ImageAdapter
from captum_attn_lime.errors import InputError, LimeWarning, TruncationWarning
from captum_attn_lime.lime import LimeImage, diagnosed, submodular_pick
from captum_attn_lime.lime._diagnostics import diagnose
from captum_attn_lime.lime._explanations import explanation_prediction, explanation_score, explanation_weights
from captum_attn_lime.lime._fits import Fit, FitData
from captum_attn_lime.lime._standard_errors import order_errors, ridge_alpha

TEXT = "a fine film it is not bad and the actors are good"


class Bag(torch.nn.Module):
    """A classifier of bags of words, the logit of its second class times a factor."""

    def __init__(self, factor: float = 0.3, bend: float = 0.0) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 1)
        self.factor, self.bend = factor, bend

    def forward(self, ids, attention_mask):
        own = self.table(ids)[..., 0] * attention_mask
        z = own.sum(1) + self.bend * torch.nn.functional.pad(own, (0, 4))[:, :4].prod(1)
        return torch.stack([torch.zeros_like(z), self.factor * z], dim=1)


def bag(**options):
    torch.manual_seed(1)
    return TextAdapter(Bag(**options).eval(), WordTokenizer.fit([TEXT]))


def neighbourhood(seed=0, n=90, d=5):
    """Samples, answers and kernel weights of a function that is not linear."""
    rng = np.random.RandomState(seed)
    x = rng.randint(0, 2, (n, d)).astype(float)
    x[0] = 1
    y = x @ rng.normal(size=d) + x[:, 0] * x[:, 1] * 2 + 0.3 * rng.normal(size=n)
    return FitData(x, y, rng.uniform(0.05, 1, n), (0,), 1, None)


def result_of(data, features):
    """What lime returns for a fit over these features."""
    model = clone(data.regressor or Ridge(alpha=1)).fit(data.x[:, features], data.y, sample_weight=data.kernel)
    score = model.score(data.x[:, features], data.y, sample_weight=data.kernel)
    found = sorted(zip(features, model.coef_, strict=True), key=lambda pair: -abs(pair[1]))
    return model.intercept_, found, score, model.predict(data.x[:1, features])


def linear(data):
    return data.linear(result_of(data, list(range(data.x.shape[1]))))


def sandwich(data, features, alpha=1.0):
    """HC2 standard errors with the intercept as a column, sample by sample."""
    z = np.column_stack([np.ones(len(data.x)), data.x[:, features]])
    penalty = alpha * np.diag([0.0] + [1.0] * len(features))
    inner, middle = penalty.copy(), np.zeros_like(penalty)
    for row, w in zip(z, data.kernel, strict=True):
        inner += w * np.outer(row, row)
    inverse = np.linalg.inv(inner)
    theta = inverse @ sum(w * y * row for row, w, y in zip(z, data.kernel, data.y, strict=True))
    for i, (row, w, y) in enumerate(zip(z, data.kernel, data.y, strict=True)):
        if i not in data.originals:
            leverage = w * row @ inverse @ row
            middle += (w * (y - row @ theta)) ** 2 / (1 - leverage) * np.outer(row, row)
    return np.sqrt(np.diag(inverse @ middle @ inverse))[1:]


@pytest.mark.parametrize("features", [[0, 1, 2, 3, 4], [1, 4]])
@pytest.mark.parametrize("regressor", [None, Ridge(alpha=0.3), LinearRegression()])
def test_numbers_against_slow_formulas(features, regressor):
    data = neighbourhood()
    data = FitData(data.x, data.y, data.kernel, data.originals, data.label, regressor)
    alpha = ridge_alpha(regressor)
    found = diagnose(Fit(data, result_of(data, features), Explained(1, "logit")))[0]
    model = Ridge(alpha=max(alpha, 1e-12)).fit(data.x, data.y, sample_weight=data.kernel)
    assert found.r2 == pytest.approx(r2_score(data.y, model.predict(data.x), sample_weight=data.kernel), abs=1e-9)
    assert found.r2_shown == result_of(data, features)[2]
    w = data.kernel
    assert found.effective_sample_size == pytest.approx(sum(w) ** 2 / sum(w * w))
    assert found.target_sd == pytest.approx(np.sqrt(np.cov(data.y, aweights=w, ddof=0)))
    assert found.n_distinct == len(np.unique(data.x, axis=0))
    assert (found.fx, found.n_samples, found.n_features) == (data.y[0], 90, 5)
    errors = [found.standard_errors[k] for k in features]
    np.testing.assert_allclose(errors, sandwich(data, features, alpha), rtol=1e-8)
    every = sandwich(data, [0, 1, 2, 3, 4], alpha)
    np.testing.assert_allclose(list(found.full_standard_errors.values()), every, rtol=1e-8)
    np.testing.assert_allclose(list(found.full_weights.values()), model.coef_, rtol=1e-6)
    assert found.weights.keys() == found.standard_errors.keys() == set(features)


def answers(features):
    """Probabilities that depend on pairs of features, from masks."""
    rng = np.random.RandomState(5)
    own, pair = rng.normal(size=features), rng.normal(size=features)

    def scores(kept):
        kept = np.asarray(kept, dtype=float)
        p = 1 / (1 + np.exp(-(kept @ own + (kept * np.roll(kept, 1, axis=1)) @ pair)))
        return np.stack([1 - p, p], axis=1)

    return scores


@pytest.mark.parametrize("kind", ["text", "image"])
def test_standard_errors_are_the_spread_over_seeds(kind):
    features, found = 8, []
    scores, make = answers(features), LimeText if kind == "text" else LimeImage
    for seed in range(60):
        lime = make(lambda x: x, seed=seed)
        names = [str(k) for k in range(features)]
        (fit,) = lime._fits(scores, names, 150, seed, {1: Explained(1, "probability")}, num_features=None)
        diagnostics = diagnose(fit)[0]
        found.append([list(diagnostics.full_weights.values()), list(diagnostics.full_standard_errors.values())])
    weights, errors = np.swapaxes(found, 0, 1)
    ratio = errors.mean(axis=0) / weights.std(axis=0, ddof=1)
    assert 0.85 < ratio.mean() < 1.2
    assert ratio.min() > 0.65
    assert ratio.max() < 1.5


def test_a_bound_on_the_order_holds_and_is_not_empty():
    """Drawn from the normal distribution that it assumes."""
    rng = np.random.RandomState(0)
    root = rng.normal(size=(6, 6)) * 0.12
    weights = np.array([2.0, -1.5, 1.1, -0.4, 0.2, 0.05])
    found = order_errors(weights, root.T)
    draws = np.abs(weights + rng.normal(size=(20000, 6)) @ root.T)
    ranked = np.argsort(-draws, axis=1)
    for k in range(1, 7):
        is_set = (np.sort(ranked[:, :k], axis=1) == np.arange(k)).all(axis=1).mean()
        is_order = (ranked[:, :k] == np.arange(k)).all(axis=1).mean()
        for wrong, bound in ((1 - is_set, found.of_set[k - 1]), (1 - is_order, found.of_order[k - 1])):
            assert wrong <= bound + 0.01
            assert bound <= 2 * wrong + 0.02 or wrong > 0.2


def test_the_weaker_feature_may_be_stronger_with_the_other_sign():
    rng = np.random.RandomState(0)
    weights, sd = np.array([0.5, 0.1]), np.array([0.1, 0.6])
    draws = np.abs(weights + sd * rng.normal(size=(200000, 2)))
    wrong = (draws[:, 1] > draws[:, 0]).mean()
    assert order_errors(weights, np.diag(sd)).of_set[0] == pytest.approx(wrong, abs=0.005)


def test_order_errors_of_equal_and_of_certain_weights():
    same = order_errors(np.array([1.0, -1.0, 0.5]), np.zeros((3, 3)))
    assert same.of_set == (0.5, 0.0, 0.0)
    assert same.of_order == (0.5, 0.5, 0.5)
    # Two weights that always move together are told apart, however uncertain both are.
    root = np.linalg.cholesky(np.full((2, 2), 1e-4) + 1e-9 * np.eye(2))
    together = order_errors(np.array([1.0, 0.9]), root.T)
    assert together.of_set[0] < 1e-6
    assert order_errors(np.array([1.0, 0.9]), np.eye(2)).of_set[0] > 0.4


@given(st.permutations(range(5)), st.floats(0.01, 100), st.integers(0, 20))
def test_laws_of_standard_errors(order, factor, seed):
    data = neighbourhood(seed)
    plain = linear(data)
    permuted = linear(FitData(data.x[:, order], factor * data.y, data.kernel, data.originals, 1, None))
    expected = [factor * plain.standard_errors[k] for k in order]
    np.testing.assert_allclose(list(permuted.standard_errors.values()), expected, rtol=1e-6)
    shifted = linear(FitData(data.x + 3.0, data.y - 7.0, data.kernel, data.originals, 1, None))
    np.testing.assert_allclose(list(shifted.standard_errors.values()), list(plain.standard_errors.values()), rtol=1e-6)
    a, b = plain.order_errors, permuted.order_errors
    np.testing.assert_allclose(a.of_set + a.of_order, b.of_set + b.of_order, atol=1e-8)


def test_other_regressors_have_no_closed_form():
    found = LimeText(bag(), model_regressor=Lasso(alpha=0.001)).explain(TEXT, 1, num_samples=200).diagnostics
    assert np.isnan(list(found.standard_errors.values())).all()
    assert np.isnan(found.top_k_probability(2))
    assert not found.separated(2)
    assert "model_regressor" in str(found)
    assert ridge_alpha(Ridge(fit_intercept=False)) is None


def explained(kind, **options):
    """Return one explanation of a class, the same one every time."""
    torch.manual_seed(0)
    rng = np.random.RandomState(0)
    if kind == "text":
        return LimeText(bag(bend=1.0)).explain(TEXT, 1, num_samples=300, **options)
    if kind in ("rows", "regression"):
        columns = 1 if kind == "regression" else 2
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, columns))
        task = "regression" if kind == "regression" else "classification"
        adapter = TabularAdapter(model, training_data=rng.normal(size=(80, 4)), task=task)
        target = None if kind == "regression" else 1
        return LimeTabular(adapter, semantics="gradient").explain(
            rng.normal(size=4), target, num_samples=300, **options
        )
    if kind == "sequence":
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
        adapter = SequenceAdapter(model, training_data=rng.normal(size=(80, 3, 2)))
        lime = LimeSequence(adapter, semantics="gradient")
        return lime.explain(rng.normal(size=(3, 2)), 1, num_samples=300, **options)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    picture = rng.randint(0, 255, (16, 16, 3)).astype(np.uint8)
    segments = np.arange(4).reshape(2, 2).repeat(8, 0).repeat(8, 1)
    adapter = image_adapter(model)
    return LimeImage(adapter).explain(adapter.encode(picture, features=segments), 1, num_samples=300, **options)


def image_adapter(model):
    return ImageAdapter(model, size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("kind", ["text", "rows", "regression", "sequence", "image"])
@pytest.mark.parametrize("num_features", [None, 2])
def test_every_class_gives_them(kind, num_features):
    found = explained(kind, num_features=num_features)
    diagnostics = found.diagnostics
    assert diagnostics.weights == explanation_weights(found)
    assert diagnostics.standard_errors.keys() == diagnostics.weights.keys()
    assert all(0 < error < 10 for error in diagnostics.standard_errors.values())
    assert diagnostics.r2_shown == explanation_score(found)
    assert diagnostics.local_prediction == explanation_prediction(found)
    assert diagnostics.intercept == pytest.approx(found.intercept[diagnostics.label])
    assert diagnostics.r2 >= diagnostics.r2_shown - 1e-4
    assert len(diagnostics.full_weights) == diagnostics.n_features
    assert diagnostics.label == 1
    assert diagnostics.explained == found.explained
    assert diagnostics.explained.unit == ("prediction" if kind == "regression" else "probability")
    assert diagnostics.explained.index == (0 if kind == "regression" else 1)
    assert diagnostics.explained.value == pytest.approx(diagnostics.fx)
    fx = getattr(found, "predicted_value", None) if kind == "regression" else getattr(found, "predict_proba", [0, 0])[1]
    if kind != "image":
        assert diagnostics.fx == pytest.approx(fx)
    again = (
        pickle.loads(pickle.dumps(found)).diagnostics if kind != "image" else pickle.loads(pickle.dumps(diagnostics))
    )
    assert again == diagnostics
    assert json.loads(json.dumps(diagnostics.to_dict()))["n_samples"] == 300


def test_the_linear_model_over_all_features_is_what_lime_shows_of_all():
    shown = explained("text").diagnostics
    selected = explained("text", num_features=2).diagnostics
    assert shown.full_weights == shown.weights
    assert shown.weights == explanation_weights(explained("text"))
    assert selected.full_weights == pytest.approx(shown.weights, abs=1e-9)
    assert selected.full_standard_errors == pytest.approx(shown.standard_errors, abs=1e-9)
    assert selected.r2_shown < selected.r2 == pytest.approx(shown.r2)


def test_the_report():
    diagnostics = explained("text", num_features=8).diagnostics
    report = str(diagnostics)
    assert report.startswith("LIME of the probability of class 1\n")
    assert f"R² {diagnostics.r2:.3f} of all 12 features, {diagnostics.r2_shown:.3f} of the 8 shown" in report
    assert "top 5" in report
    assert "warning" not in report
    assert explained("regression").diagnostics.__str__().startswith("LIME of the prediction\n")


@pytest.mark.parametrize("k", [0, 13, 1.5, True])
def test_top_k_of_no_such_number(k):
    with pytest.raises(InputError, match="from 1 to 12"):
        explained("text").diagnostics.top_k_probability(k)


def test_separated_says_what_the_probability_is():
    diagnostics = explained("text").diagnostics
    for k in (1, 3, 12):
        sure = diagnostics.top_k_probability(k, ordered=True)
        assert diagnostics.top_k_probability(k) >= sure
        assert diagnostics.separated(k, confidence=sure)
        assert diagnostics.separated(k) == (sure >= 0.95)
    assert diagnostics.top_k_probability(12) == 1


def warned(call):
    """Return an explanation's diagnostics and the messages of its LimeWarnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = call()
    own = [w for w in seen if w.category is LimeWarning]
    assert all(w.filename == __file__ for w in own)
    return found.diagnostics, [str(w.message) for w in own]


def test_a_good_explanation_warns_of_nothing():
    diagnostics, messages = warned(lambda: explained("text"))
    assert (diagnostics.warnings, messages) == ((), [])
    assert diagnostics.r2 > 0.8


def test_a_constant_target():
    diagnostics, messages = warned(lambda: LimeText(bag(factor=0.0)).explain(TEXT, 1, num_samples=200))
    assert len(diagnostics.warnings) == len(messages) == 1
    assert "same score" in messages[0]
    assert "0.5 for every" in diagnostics.warnings[0]
    assert np.isnan(diagnostics.r2)
    assert diagnostics.target_sd < 1e-9
    assert diagnostics.top_k_probability(3) < 0.5


def test_a_constant_zero():
    diagnostics, messages = warned(lambda: LimeText(bag(factor=0.0)).explain(TEXT, 1, num_samples=200, output="logits"))
    assert len(diagnostics.warnings) == len(messages) == 1
    assert diagnostics.fx == 0


def test_a_saturated_probability_and_its_logit():
    lime = LimeText(bag(factor=40.0))
    for own in (0, 1):
        diagnostics, messages = warned(lambda own=own: lime.explain(TEXT, own, num_samples=300))
        assert any("saturated" in m for m in messages)
        assert any("saturated" in w for w in diagnostics.warnings)
    diagnostics, messages = warned(lambda: lime.explain(TEXT, 1, num_samples=300, output="logits"))
    assert messages == []
    assert diagnostics.r2 > 0.99


def test_a_single_feature():
    diagnostics, messages = warned(lambda: LimeText(bag()).explain("film", 1, num_samples=200))
    assert any("single feature" in m for m in messages)
    assert any("single feature" in w for w in diagnostics.warnings)
    assert diagnostics.n_distinct == 2


def test_a_single_word_without_special_tokens_has_the_weight_of_removing_it():
    adapter = bag()
    found = LimeText(adapter, model_regressor=LinearRegression()).explain("film", 1, num_samples=50)
    p = adapter.predict_proba("film")[0, 1]
    # Without its only word the text is the tokenizer's stand-in, the unknown token.
    unknown = adapter.model.table.weight[WordTokenizer.fit([TEXT]).unk_token_id].item()
    empty = 1 / (1 + np.exp(-0.3 * unknown))
    assert found.diagnostics.weights == pytest.approx({0: p - empty}, abs=1e-6)


def test_too_few_samples_and_few_effective_ones():
    lime = LimeText(bag())
    diagnostics, messages = warned(lambda: lime.explain(TEXT, 1, num_samples=119))
    assert ["few samples" in m for m in messages] == [True]
    assert "119 samples" in diagnostics.warnings[0]
    assert warned(lambda: lime.explain(TEXT, 1, num_samples=200))[1] == []
    narrow = LimeText(bag(), kernel_width=3)
    diagnostics, messages = warned(lambda: narrow.explain(TEXT, 1, num_samples=200))
    assert diagnostics.effective_sample_size < 60
    assert any("few samples" in m for m in messages)


def test_a_bad_fit_and_a_bad_selection():
    adapter = TabularAdapter(Square(), training_data=np.random.RandomState(0).normal(size=(200, 3)), task="regression")
    lime = LimeTabular(adapter, semantics="gradient")
    diagnostics, messages = warned(lambda: lime.explain([0.0, 0.0, 0.0], num_samples=400))
    assert diagnostics.r2 < 0.5
    assert ["below 0.5" in m for m in messages] == [True]
    assert "R² is 0." in diagnostics.warnings[0]
    diagnostics, messages = warned(lambda: explained("text", num_features=1))
    assert diagnostics.r2 > 0.5 > diagnostics.r2_shown
    assert ["num_features" in m for m in messages] == [True]


class Square(torch.nn.Module):
    def forward(self, x):
        return (x**2).sum(dim=1, keepdim=True)


def test_the_official_pick_warns_at_the_users_line():
    with pytest.warns(LimeWarning, match="few samples") as seen:
        submodular_pick(LimeText(bag()), [TEXT, TEXT[:20]], picks=1, num_samples=50)
    assert {w.filename for w in seen if w.category is LimeWarning} == {__file__}


def test_a_text_that_is_cut():
    adapter = TextAdapter(Bag().eval(), WordTokenizer.fit([TEXT]), max_length=6)
    with pytest.warns(TruncationWarning):
        diagnostics = LimeText(adapter).explain(TEXT, 1, num_samples=200).diagnostics
    assert ["longer" in w for w in diagnostics.warnings] == [True]


def test_an_official_explainer_is_diagnosed():
    adapter = bag(bend=1.0)
    options = dict(labels=(0, 1), num_samples=300, num_features=4)
    plain = LimeTextExplainer(random_state=3).explain_instance(TEXT, adapter.predict_proba, **options)
    explainer = LimeTextExplainer(random_state=3)
    with diagnosed(explainer) as found:
        seen = explainer.explain_instance(TEXT, adapter.predict_proba, **options)
    assert seen.local_exp == plain.local_exp
    assert found.keys() == {0, 1}
    for label in (0, 1):
        assert found[label].weights == explanation_weights(seen, label)
        assert found[label].fx == seen.predict_proba[label]
    own = LimeText(adapter, seed=3).explain(TEXT, 1, num_samples=300, num_features=4).diagnostics
    assert found[1].standard_errors == pytest.approx(own.standard_errors, abs=1e-6)
    assert found[1].r2 == pytest.approx(own.r2, abs=1e-6)
    assert type(explainer.base) is LimeBase


def test_an_official_regression_is_diagnosed():
    rng = np.random.RandomState(0)
    explainer = LimeTabularExplainer(rng.normal(size=(60, 3)), mode="regression", random_state=0)
    with diagnosed(explainer) as found:
        seen = explainer.explain_instance(np.zeros(3), lambda x: x.sum(axis=1), num_samples=200)
    assert found[1].weights == explanation_weights(seen)
    assert found[1].explained == Explained(0, "prediction", value=seen.predicted_value)


def test_the_official_fit_is_left_as_it_was_after_an_exception():
    explainer = LimeTextExplainer(random_state=0)
    base, own = explainer.base, LimeBase.explain_instance_with_data
    with pytest.raises(ZeroDivisionError), diagnosed(explainer):
        explainer.explain_instance(TEXT, lambda texts: 1 / 0)
    assert explainer.base is base
    assert vars(base).keys() == {"kernel_fn", "verbose", "random_state"}
    assert LimeBase.explain_instance_with_data is own
