"""LimeTabular: the official explainer's numbers, and what each of the three semantics means."""

from __future__ import annotations

import captum.attr
import numpy as np
import pandas as pd
import pytest
import torch
from lime.lime_tabular import LimeTabularExplainer
from sklearn.linear_model import LinearRegression
from torch import nn

from captum_attn_lime.adapters import TabularAdapter
from captum_attn_lime.errors import ForwardError, InputError, TargetError
from captum_attn_lime.lime import LimeTabular, LimeText, explanation_weights

NAMES = ["age", "colour", "income", "city"]


def table(n: int = 300) -> np.ndarray:
    r = np.random.RandomState(0)
    return np.stack([r.normal(40, 10, n), r.randint(0, 3, n), r.normal(0, 2, n), r.randint(0, 2, n)], axis=1)


class TwoKinds(nn.Module):
    """Additive: 0.1 age - income, 2 for colour 1, -3 for city 1; class 1 has the opposite sign."""

    def forward(self, x_num, x_cat):
        score = 0.1 * x_num[:, 0] - x_num[:, 1] + 2.0 * (x_cat[:, 0] == 1) - 3.0 * (x_cat[:, 1] == 1)
        return torch.stack([score, -score], dim=1)


def adapter(**options) -> TabularAdapter:
    frame = pd.DataFrame(table(), columns=NAMES)
    return TabularAdapter(TwoKinds(), training_data=frame, categorical_features=["colour", "city"], **options)


ROW = [55.0, 1, 2.0, 0]


def lime(a=None, **options) -> LimeTabular:
    return LimeTabular(adapter() if a is None else a, **options)


def columns(parts: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    out = np.empty((len(parts[0]), 4))
    out[:, [0, 2]], out[:, [1, 3]] = parts
    return out


@pytest.mark.parametrize(("target", "sign"), [(0, 1), (1, -1)])
def test_gradient_of_an_additive_model(target, sign):
    a = adapter()
    x = a.encode(ROW)
    method = lime(a, semantics="gradient", model_regressor=LinearRegression())
    found = columns(method.attribute(**x.arguments(method), target=target, n_samples=500))[0]
    # Own category against the others: colour 1 is worth 2, city 0 is worth 3 more than city 1.
    np.testing.assert_allclose(found, sign * np.array([0.1, 2.0, -1.0, 3.0]), atol=1e-3)


def test_times_input_is_integrated_gradients_from_the_means():
    model = nn.Linear(3, 2)
    rows = np.random.RandomState(0).normal([1, 2, 3], [1, 5, 0.1], size=(200, 3))
    a = TabularAdapter(model, training_data=rows)
    x = a.encode(rows[:2])
    method = LimeTabular(a, semantics="times_input", model_regressor=LinearRegression())
    ig = captum.attr.IntegratedGradients(a)
    expected = ig.attribute(**x.arguments(ig), target=1).float()
    found = method.attribute(**x.arguments(method), target=1, n_samples=300)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_contrast_does_not_change_inside_a_bin():
    a = adapter()
    training = table()
    q1, q2, q3 = np.percentile(training[:, 0], [25, 50, 75])
    rows = [[q1 + 0.1 * (q2 - q1), 1, 2.0, 0], [q1 + 0.9 * (q2 - q1), 1, 2.0, 0], [q3 + 1, 1, 2.0, 0]]
    x = a.encode(rows)
    method = lime(a)
    found = columns(method.attribute(**x.arguments(method), target=0, n_samples=2000))
    np.testing.assert_allclose(found[0], found[1], atol=0.02)
    assert found[2, 0] > found[0, 0] + 0.5  # the highest quarter of ages stands out


@pytest.mark.parametrize("semantics", ["contrast", "gradient", "times_input"])
def test_attribute_is_the_official_explainer_run_by_hand(semantics):
    a = adapter()
    x = a.encode(ROW)
    official = LimeTabularExplainer(
        table(),
        mode="regression",
        categorical_features=[1, 3],
        feature_selection="none",
        discretize_continuous=semantics == "contrast",
        random_state=7,
    )
    explained = official.explain_instance(x.rows[0], lambda rows: a.logits(rows)[:, 1], num_samples=400)
    weights = np.zeros(4)
    for column, weight in explained.local_exp[1]:
        weights[column] = weight
    if semantics != "contrast":
        training = table()
        for column in (0, 2):
            weights[column] /= training[:, column].std()
            if semantics == "times_input":
                weights[column] *= ROW[column] - training[:, column].mean()
    method = lime(a, semantics=semantics, seed=7)
    found = columns(method.attribute(**x.arguments(method), target=1, n_samples=400))[0]
    np.testing.assert_allclose(found, weights, atol=1e-4)


@pytest.mark.parametrize("target", [0, [0, 1], torch.tensor([1, 0])], ids=["int", "list", "tensor"])
def test_a_batch_is_its_rows_one_by_one(target):
    a = adapter()
    rows = [ROW, [20.0, 2, -1.0, 1]]
    method = lime(a)
    together = method.attribute(**a.encode(rows).arguments(method), target=target, n_samples=100)
    for i, row in enumerate(rows):
        own = target if isinstance(target, int) else int(target[i])
        alone = method.attribute(**a.encode(row).arguments(method), target=own, n_samples=100)
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(all_[i : i + 1], one, atol=1e-5, rtol=0)
            assert all_.is_contiguous()
    flat = method.attribute(**a.encode(rows).arguments(method), target=target, n_samples=100, return_input_shape=False)
    np.testing.assert_allclose(flat, columns(together), atol=1e-6)


def test_a_function_of_tensors_with_its_own_arguments():
    training = table()[:, [0, 2, 1]]  # one tensor after the other
    inputs = (torch.tensor([[55.0, 2.0], [30.0, 1.0]]), torch.tensor([[1], [1]]))
    seen = []

    def model(numbers, category, scale):
        seen.append(category)
        return scale * (0.1 * numbers[:, 0] - numbers[:, 1] + 2.0 * (category[:, 0] == 1))

    method = LimeTabular(model, training, semantics="gradient", model_regressor=LinearRegression())
    scale = torch.tensor([1.0, -2.0])
    numbers, category = method.attribute(inputs, additional_forward_args=scale, n_samples=400)
    torch.testing.assert_close(numbers, torch.tensor([[0.1, -1.0], [-0.2, 2.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(category[0], torch.tensor([2.0]), atol=1e-3, rtol=0)
    assert set(torch.cat(seen).flatten().tolist()) == {0, 1, 2}  # integer columns are drawn as categories
    assert category.dtype == numbers.dtype == torch.float32


def test_bins_of_a_single_value_are_drawn_as_that_value():
    rows = np.stack([np.full(100, 5.0), np.random.RandomState(0).normal(size=100)], axis=1)
    rows[:50, 1] = rows[:, 1].min()  # half the column at its least value: a bin of one value
    seen = []

    def model(x):
        seen.append(x)
        return x[:, 1]

    LimeTabular(model, rows).attribute(torch.tensor(rows[:1]).float(), n_samples=200)
    drawn = torch.cat(seen)
    assert drawn[:, 0].unique().tolist() == [5.0]
    assert drawn[:, 1].min() == np.float32(rows[:, 1].min())


def test_explain_is_the_official_explainer():
    a = adapter(class_names=["no", "yes"])
    official = LimeTabularExplainer(
        table(), categorical_features=[1, 3], feature_selection="none", feature_names=NAMES, random_state=2
    )

    def naive(rows):
        return np.concatenate([a.predict_proba(row) for row in rows])

    expected = official.explain_instance(np.array(ROW), naive, labels=(0,), num_samples=150)
    found = lime(a, seed=2).explain(ROW, 0, num_samples=150)
    one, two = explanation_weights(expected), explanation_weights(found)
    np.testing.assert_allclose([two[k] for k in one], list(one.values()), atol=1e-6)
    assert found.as_list(label=0)[0][0] == expected.as_list(label=0)[0][0]
    assert found.class_names == ["no", "yes"]


def test_explain_takes_the_predicted_class_and_selects_columns():
    a = adapter()
    found = lime(a).explain(pd.Series(ROW, index=NAMES), num_samples=100, num_features=2)
    assert list(found.local_exp) == [int(a.predict_proba(ROW).argmax())]
    assert len(explanation_weights(found)) == 2


def test_regression():
    rows = np.random.RandomState(0).normal(size=(200, 2))
    a = TabularAdapter(nn.Linear(2, 1), training_data=rows, task="regression")
    found = LimeTabular(a, semantics="gradient", model_regressor=LinearRegression()).explain(rows[0], num_samples=200)
    slope = a.model.weight[0].detach().numpy() * rows.std(axis=0)
    weights = explanation_weights(found)
    np.testing.assert_allclose([weights[0], weights[1]], slope, atol=1e-4)
    with pytest.raises(TargetError, match="one output"):
        LimeTabular(a).explain(rows[0], 1)


def test_the_plain_way_works_too():
    a = adapter()
    official = LimeTabularExplainer(table(), categorical_features=[1, 3], random_state=0)
    assert explanation_weights(official.explain_instance(np.array(ROW), a.predict_proba, num_samples=100))
    rows = table()[:, [0, 2]]
    b = TabularAdapter(nn.Linear(2, 1), task="regression")
    regression = LimeTabularExplainer(rows, mode="regression", random_state=0)
    assert explanation_weights(regression.explain_instance(rows[0], b.predict, num_samples=100))


def test_equal_calls_give_equal_results():
    a = adapter()
    x = a.encode(ROW)
    method = lime(a)
    one, two = (method.attribute(**x.arguments(method), target=0, n_samples=50)[0] for _ in range(2))
    other = lime(a, seed=1).attribute(x.inputs, target=0, n_samples=50)[0]
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(semantics="slope"), "semantics must be"),
        (dict(semantics="gradient", discretizer="decile"), "discretizer has no effect"),
        (dict(sample_around_instance=True), "sample_around_instance has no effect"),
        (dict(training_labels=[1]), "training_labels"),
        (dict(discretizer="entropy"), "needs training_labels"),
        (dict(categorical_features=[9]), "got 9"),
        (dict(training_data=[[1.0, 2.0]]), "4 columns"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        lime(**options)


def test_other_discretizers():
    labels = (table()[:, 0] > 40).astype(int)
    a = adapter()
    x = a.encode(ROW)
    for options in (dict(discretizer="decile"), dict(discretizer="entropy", training_labels=labels)):
        method = lime(a, **options)
        assert method.attribute(**x.arguments(method), target=0, n_samples=50)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (torch.ones(1, 3), {}, InputError, "4 columns"),
        (torch.ones(1, 2, 2), {}, InputError, r"\(1, 2, 2\)"),
        (torch.ones(1, 4), {}, InputError, "columns per tensor"),
        (None, dict(target=4), TargetError, "target 4"),
        (None, dict(target=None), TargetError, "does not select one number"),
        (None, dict(target=0, n_samples=0), InputError, "n_samples"),
    ],
)
def test_bad_arguments(inputs, options, error, message):
    a = adapter()
    inputs = a.encode(ROW).inputs if inputs is None else inputs
    with pytest.raises(error, match=message):
        lime(a).attribute(inputs, **{"target": 0, **options})


def test_rows_that_cannot_be_explained():
    with pytest.raises(InputError, match="training data"):
        LimeTabular(lambda x: x.sum(1))
    with pytest.raises(InputError, match="is nan"):
        LimeTabular(lambda x: x.sum(1), np.ones((3, 2))).attribute(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ForwardError, match="NaN"):
        LimeTabular(lambda x: x.sum(1).log(), table()[:, :1]).attribute(torch.tensor([[-1.0]]))
    with pytest.raises(InputError, match="TabularAdapter"):
        LimeTabular(lambda x: x.sum(1), np.ones((3, 2))).explain([1.0, 2.0])
    with pytest.raises(InputError, match="one row, but got 2"):
        lime().explain([ROW, ROW])
    with pytest.raises(TargetError, match="target 2"):
        lime().explain(ROW, 2)
    with pytest.raises(InputError, match="a function"):
        LimeTabular("model")


@pytest.mark.parametrize("semantics", ["contrast", "gradient"])
def test_values_on_a_quartile_stay_in_their_bin_in_float32(semantics):
    from sklearn.datasets import load_iris

    torch.manual_seed(0)
    rows = load_iris().data
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    a = TabularAdapter(model, training_data=rows, task="regression")
    quartiles = np.percentile(rows, [25, 50, 75], axis=0)
    on = [row for row in rows if (row == quartiles).any()][:12]
    assert any(np.float32(row[0]) > row[0] for row in on)  # rounding would carry some over the edge
    method = LimeTabular(a, semantics=semantics)
    for row in on:
        weights = explanation_weights(method.explain(row, num_samples=300))
        scale = rows.std(axis=0) if semantics == "gradient" else np.ones(4)
        expected = np.array([weights[i] for i in range(4)]) / scale
        found = method.attribute(a.encode(row).inputs, target=0, n_samples=300)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dropout_of_an_adapter_is_off_and_comes_back():
    rows = np.random.RandomState(0).normal(size=(50, 3))
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).train()
    a = TabularAdapter(model, training_data=rows)
    method = LimeTabular(a)
    one, two = (method.attribute(a.encode(rows[0]).inputs, target=0, n_samples=60) for _ in range(2))
    assert torch.equal(one, two)
    assert all(m.training for m in model.modules())


def test_progress_is_shown(capsys):
    a = adapter()
    method = lime(a)
    method.attribute(**a.encode([ROW, ROW]).arguments(method), target=0, n_samples=20, show_progress=True)
    assert "40/40" in capsys.readouterr().err


def test_it_is_a_captum_perturbation_attribution():
    assert isinstance(lime(), captum.attr.PerturbationAttribution)
    assert lime().get_name() == "Lime Tabular"
    assert lime().multiplies_by_inputs
    assert not lime(semantics="gradient").multiplies_by_inputs


def test_the_argument_order_is_that_of_captums_lime():
    from inspect import signature

    from captum.attr import Lime

    captums = list(signature(Lime.attribute).parameters)
    assert list(signature(LimeText.attribute).parameters) == captums
    captums.remove("baselines")  # lime draws from training data
    assert list(signature(LimeTabular.attribute).parameters) == captums


def test_features_of_several_columns_get_the_sum_of_their_numbers():
    rows, x = np.random.default_rng(0).normal(size=(20, 3)), torch.tensor([[0.3, -0.2, 1.0]])
    mask = torch.tensor([[0, 0, 1]])
    options = dict(target=0, n_samples=100)
    method = LimeTabular(lambda x: x.sum(dim=1, keepdim=True), rows, semantics="times_input")
    alone, found = (method.attribute(x, feature_mask=m, **options)[0] for m in (None, mask))
    torch.testing.assert_close(found, torch.stack([alone[0] + alone[1]] * 2 + [alone[2]]))
    both = method.attribute(x, feature_mask=mask, return_input_shape=False, **options)
    torch.testing.assert_close(both, found[None, 1:])
    with pytest.raises(InputError, match="slopes do not add up"):
        LimeTabular(lambda x: x, rows, semantics="gradient").attribute(x, feature_mask=mask, **options)


@pytest.mark.parametrize("column", ["city", 3, np.int64(3)])
def test_names_of_categories_by_the_columns_name_or_index(column):
    method = lime(categorical_names={column: ["Bonn", "Köln"], "colour": np.array(["red", "green", "blue"])})
    names = [name for name, _ in method.explain(ROW, num_samples=300).as_list()]
    assert {"city=Bonn", "colour=green"} <= set(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"town": ["Bonn", "Köln"]}, "categorical_names names 'town'"),
        ({7: ["Bonn", "Köln"]}, "got 7"),
        ({"age": ["young", "old"]}, "'age', which is not one of categorical_features"),
        ({"city": ["Bonn"]}, "1 names for the categories of 'city', which go up to 1"),
        ({"city": ["Bonn", "Köln"], 3: ["a", "b"]}, "'city' twice"),
        ({"city": "Bonn"}, "a list of names"),
        ({"city": {0: "Bonn", 1: "Köln"}}, "a list of names"),
        ([["Bonn", "Köln"]], "must be a dict"),
    ],
)
def test_names_of_categories_that_do_not_fit(names, message):
    with pytest.raises(InputError, match=message):
        lime(categorical_names=names)
