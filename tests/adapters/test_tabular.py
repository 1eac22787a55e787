"""TabularAdapter: rows to tensors and back, the bare model's numbers, baselines, errors."""

from __future__ import annotations

import captum.attr
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from captum_attn_lime.adapters import TabularAdapter
from captum_attn_lime.errors import ForwardError, InputError

# Columns: age, colour (category), income, city (category).
ROWS = np.array([[30.0, 2, 1.5, 0], [40.0, 0, 2.5, 1], [50.0, 2, 0.5, 1], [20.0, 1, 3.5, 1]])
NAMES = ["age", "colour", "income", "city"]
FRAME = pd.DataFrame(ROWS, columns=NAMES)


class TwoKinds(nn.Module):
    """Known function of numeric and categorical columns."""

    def __init__(self, classes: int = 2):
        super().__init__()
        self.colour, self.city = nn.Embedding(3, classes), nn.Embedding(2, classes)
        self.linear = nn.Linear(2, classes)

    def forward(self, x_num, x_cat):
        return self.linear(x_num) + self.colour(x_cat[:, 0]) + self.city(x_cat[:, 1])


def adapter(**options) -> TabularAdapter:
    return TabularAdapter(TwoKinds(), training_data=FRAME, categorical_features=["colour", 3], **options)


def test_columns_are_split_in_the_models_kinds_and_come_back():
    a = adapter()
    x = a.encode(FRAME)
    numbers, categories = x.inputs
    assert numbers.tolist() == ROWS[:, [0, 2]].tolist()
    assert categories.tolist() == ROWS[:, [1, 3]].tolist()
    assert (numbers.dtype, categories.dtype) == (torch.float32, torch.int64)
    assert [m[0].tolist() for m in x.feature_mask] == [[0, 2], [1, 3]]
    assert x.feature_names == (tuple(NAMES),) * 4
    assert [b[0].tolist() for b in x.baselines] == [[35.0, 2.0], [2, 1]]
    np.testing.assert_array_equal(a.rows_of(x.inputs), ROWS)
    np.testing.assert_array_equal(x.rows, ROWS)
    assert a.column_groups(4) == ((0, 2), (1, 3))


def test_baselines_are_chosen_for_each_encoding():
    a = adapter()
    assert [b[0].tolist() for b in a.encode(FRAME, baselines="zero").baselines] == [[0, 0], [0, 0]]
    own = a.encode(FRAME, baselines=[1, 2, 3, 1]).baselines
    assert [b.tolist() for b in own] == [[[1, 3]] * 4, [[2, 1]] * 4]
    frame = pd.DataFrame([[1, 3, 2, 1]], columns=["city", "income", "colour", "age"])  # in another order
    assert [b[0].tolist() for b in a.encode(ROWS, baselines=frame).baselines] == [[1, 3], [2, 1]]
    with pytest.raises(InputError, match="which the training data has not"):
        a.encode(FRAME, baselines=[1, 7, 3, 1])


def test_groups_of_columns_are_one_feature_each():
    a = adapter()
    x = a.encode(FRAME, features=[["income", 1], ["city"]])
    assert x.feature_names[0] == ("age", "colour + income", "city")
    assert [m[0].tolist() for m in x.feature_mask] == [[0, 1], [1, 2]]
    method = captum.attr.FeatureAblation(a)
    found = method.attribute(**x.arguments(method), target=1)
    numbers, categories = (t.clone() for t in x.inputs)
    numbers[:, 1], categories[:, 0] = x.baselines[0][:, 1], x.baselines[1][:, 0]
    effect = a(*x.inputs)[:, 1] - a(numbers, categories)[:, 1]
    torch.testing.assert_close(found[0][:, 1], effect)
    torch.testing.assert_close(found[1][:, 0], effect)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("row", "features must be 'column' or a list of groups"),
        (["age", "city"], "features must be 'column' or a list of groups"),
        ([["age"], []], "features must be 'column' or a list of groups"),
        ([["age", "size"]], "features names 'size'"),
        ([["age", 1], ["colour"]], "a column twice"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(InputError, match=message):
        adapter().encode(FRAME, features=features)


@pytest.mark.parametrize(
    ("name", "default", "two"),
    [
        ("x_cat", None, True),
        ("cats", None, True),
        ("categorical_inputs", None, True),
        ("multiplicative", None, False),
        ("concat", None, False),
        ("location", None, False),
        ("indicator", None, False),
        ("return_categories", None, False),
        ("categorical", False, False),
    ],
)
def test_an_optional_second_parameter_is_for_categories_only_if_its_name_says_so(name, default, two):
    seen = []

    scope = {"seen": seen, "default": default}
    exec(f"def forward(self, x, {name}=default):\n    seen.append({name})\n    return x[:, :2]", scope)
    model = type("Model", (nn.Module,), {"forward": scope["forward"]})()
    a = TabularAdapter(model, categorical_features=[2])
    a.predict_proba([[1.0, 2.0, 0]])
    assert isinstance(seen[0], torch.Tensor) == two
    assert seen[0] is default or two


@given(st.sets(st.integers(0, 4)), st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1))
def test_rows_survive_the_way_to_tensors_and_back(categorical, rows):
    class Any(nn.Module):
        def forward(self, x_num, x_cat):
            return x_num

    a = TabularAdapter(Any(), categorical_features=tuple(categorical))
    table = np.array(rows, dtype=float)
    tensors = a.tensors(a.arrays(rows))
    np.testing.assert_array_equal(a.rows_of(tensors), table)
    assert len(tensors) == (len(categorical) > 0) + (len(categorical) < 5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_predict_proba_is_the_bare_model_row_by_row(batch_size):
    a = adapter(batch_size=batch_size)
    slow = [a.model(torch.tensor([[r[0], r[2]]]).float(), torch.tensor([[int(r[1]), int(r[3])]])) for r in ROWS]
    logits = torch.cat(slow).detach().double()
    np.testing.assert_allclose(a.logits(FRAME), logits, atol=1e-5)
    np.testing.assert_allclose(a.predict_proba(ROWS), logits.softmax(dim=1), atol=1e-5)
    assert a.predict_proba(ROWS).dtype == np.float64
    x = a.encode(FRAME)
    torch.testing.assert_close(a(*x.inputs).double(), logits)


FORMS = {
    "list": [30, 2, 1.5, 0],
    "array": ROWS[0],
    "tensor": torch.tensor(ROWS[0]),
    "series": FRAME.iloc[0],
    "series_in_another_order": FRAME.iloc[0][["city", "age", "income", "colour"]],
    "series_without_labels": pd.Series(ROWS[0]),
    "frame": FRAME.iloc[:1],
    "frame_in_another_order": FRAME.iloc[:1][["city", "age", "income", "colour"]],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_may_come_in_any_form(form):
    np.testing.assert_array_equal(adapter().arrays(FORMS[form]), ROWS[:1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([30, 2, 1.5], r"4 columns \(age, colour, income, city\), but got 3"),
        ([30, 2, float("nan"), 0], "column 'income' of row 0 is nan"),
        ([[30, 2, 1.5, 0], [float("inf"), 2, 1.5, 0]], "column 'age' of row 1 is inf"),
        ([30, 1.5, 1.5, 0], "'colour' has the value 1.5; categories are integers"),
        ([30, -1, 1.5, 0], "'colour' has the value -1"),
        ([30, 2, 1.5, 5], "'city' has the value 5, which the training data has not: it has 0, 1"),
        (["a", 2, 1.5, 0], "cannot be converted"),
        ([[[1.0]]], "expected a row"),
        ([], "expected a row"),
        (FRAME.rename(columns={"age": "Age"}), r"missing \['age'\], unknown \['Age'\]"),
        (FRAME.iloc[0].drop("age"), r"Series and the adapter have different columns: missing \['age'\]"),
    ],
)
def test_bad_rows(rows, message):
    for run in (adapter().encode, adapter().predict_proba):
        with pytest.raises(InputError, match=message):
            run(rows)


def test_one_tensor_models_keep_all_columns_in_order():
    a = TabularAdapter(nn.Linear(4, 3), categorical_features=[1, 3])
    x = a.encode(ROWS)
    assert x.inputs.tolist() == ROWS.tolist()
    assert x.baselines.tolist() == np.zeros((4, 4)).tolist()
    assert x.feature_names[0] == ("0", "1", "2", "3")
    assert x.forward_args == ()
    assert a(x.inputs).shape == (4, 3)


class Either(nn.Module):
    def forward(self, x_num, x_cat=None):
        assert (x_num is None) != (x_cat is None)
        x = x_num if x_cat is None else x_cat.float()
        return x.sum(dim=1)


@pytest.mark.parametrize("categorical", [(), (0, 1, 2, 3)])
def test_a_missing_kind_of_column_is_none(categorical):
    rows = np.arange(8.0).reshape(2, 4)
    a = TabularAdapter(Either(), categorical_features=categorical)
    x = a.encode(rows)
    assert isinstance(x.inputs, torch.Tensor)
    assert a(x.inputs).tolist() == [[6.0], [22.0]]
    assert a.predict_proba(rows).shape == (2, 2)


def test_ft_transformer_with_and_without_categories():
    from rtdl_revisiting_models import FTTransformer

    options = FTTransformer.get_default_kwargs(n_blocks=1)
    with_both = FTTransformer(n_cont_features=2, cat_cardinalities=[3, 2], d_out=2, **options).eval()
    a = TabularAdapter(with_both, training_data=FRAME, categorical_features=["colour", "city"])
    x = a.encode(FRAME.iloc[:2])
    torch.testing.assert_close(a(*x.inputs), with_both(*x.inputs))
    numeric = FTTransformer(n_cont_features=4, cat_cardinalities=[], d_out=2, **options).eval()
    b = TabularAdapter(numeric)
    torch.testing.assert_close(b(b.encode(ROWS).inputs), numeric(torch.tensor(ROWS).float(), None))


def test_captum_ablation_equals_replacing_columns_by_hand():
    a = adapter()
    x = a.encode(FRAME.iloc[:2])
    ablation = captum.attr.FeatureAblation(a)
    numbers, categories = ablation.attribute(**x.arguments(ablation), target=1)
    found = np.empty((2, 4))
    found[:, [0, 2]], found[:, [1, 3]] = numbers, categories
    base = np.array([35.0, 2, 2.0, 1])
    for column in range(4):
        changed = ROWS[:2].copy()
        changed[:, column] = base[column]
        expected = a.logits(ROWS[:2])[:, 1] - a.logits(changed)[:, 1]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-4)


def test_integrated_gradients_of_a_linear_model_are_weight_times_distance():
    model = nn.Linear(4, 2)
    a = TabularAdapter(model, training_data=ROWS)
    x = a.encode(ROWS)
    ig = captum.attr.IntegratedGradients(a)
    out = ig.attribute(**x.arguments(ig), target=1)
    torch.testing.assert_close(out.float(), model.weight[1].detach() * (x.inputs - torch.tensor(ROWS.mean(0)).float()))


def test_regression():
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))  # (n,)
    a = TabularAdapter(model, task="regression")
    np.testing.assert_allclose(a.predict(ROWS), model(torch.tensor(ROWS).float()).detach(), atol=1e-4)
    assert a(a.encode(ROWS).inputs).shape == (4, 1)
    with pytest.raises(InputError, match="use predict"):
        a.predict_proba(ROWS)
    with pytest.raises(InputError, match="use predict_proba"):
        adapter().predict(ROWS)
    two = TabularAdapter(nn.Linear(4, 2), task="regression", class_names=["height", "weight"])
    np.testing.assert_array_equal(two.predict(ROWS), two.logits(ROWS))
    assert two.predict(ROWS).shape == (4, 2)
    with pytest.raises(InputError, match="3 class_names"):
        TabularAdapter(nn.Linear(4, 2), task="regression", class_names=["a", "b", "c"]).predict(ROWS)


def test_the_models_dtype_decides():
    a = TabularAdapter(nn.Linear(4, 2).double())
    assert a.encode(ROWS).inputs.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(task="ranking"), "task must be"),
        (dict(batch_size=0), "batch_size"),
        (dict(categorical_features=["size"], training_data=FRAME), "names 'size'"),
        (dict(categorical_features=[7], training_data=FRAME), "got 7; there are 4"),
        (dict(categorical_features=[2], training_data=FRAME), "'income' has the value 1.5"),
        (dict(training_data=FRAME.assign(age=np.nan)), "column 'age' of row 0 is nan"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        TabularAdapter(nn.Linear(4, 2), **options)


def test_tensors_that_are_not_the_models():
    a = adapter()
    x = a.encode(ROWS)
    for wrong in (x.inputs[0], (*x.inputs, x.inputs[0])):
        with pytest.raises(InputError, match="two tensors"):
            a(*(wrong if isinstance(wrong, tuple) else (wrong,)))
    with pytest.raises(InputError, match="expected"):
        a.rows_of((x.inputs[1], x.inputs[0][:, :1]))
    with pytest.raises(InputError, match="one tensor"):
        TabularAdapter(nn.Linear(4, 2))(*x.inputs)
    with pytest.raises(InputError, match="names column 9"):
        TabularAdapter(nn.Linear(4, 2), categorical_features=[9]).encode(ROWS)


def test_models_of_three_inputs_are_refused():
    class Three(nn.Module):
        def forward(self, x, y, z):
            return x

    with pytest.raises(ForwardError, match="x, y, z"):
        TabularAdapter(Three())
