"""How table models take their columns: categories first or last, by name, by what is looked up, by dictionary."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import LimeTabular, TabularAdapter
from captum_attn_lime.errors import ForwardError, InputError, TargetError

RANDOM = np.random.RandomState(0)
ROWS = np.column_stack([RANDOM.rand(60), RANDOM.randint(0, 3, 60), RANDOM.rand(60), RANDOM.randint(0, 3, 60)])
CODES = np.array([0.0, 5.0, -3.0])
TRUTH = CODES[ROWS[:, 1].astype(int)] * ROWS[:, 0] + 2 * CODES[ROWS[:, 3].astype(int)] + ROWS[:, 2]


class Priced(nn.Module):
    """A known function of numbers and categories."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(nn.Embedding.from_pretrained(torch.tensor(CODES)[:, None]) for _ in range(2))

    def price(self, numbers, categories):
        one, two = (table(categories[:, i].long())[:, 0] for i, table in enumerate(self.kinds))
        return one * numbers[:, 0] + 2 * two + numbers[:, 1]


def model_of(signature: str, numbers: str, categories: str) -> nn.Module:
    """Return the known function behind a forward of this signature."""
    scope: dict = {"torch": torch}
    exec(f"def forward(self, {signature}):\n    return self.price({numbers}, {categories})", scope)
    return type("Model", (Priced,), {"forward": scope["forward"]})()


def adapter_of(model: nn.Module, **options) -> TabularAdapter:
    return TabularAdapter(model, training_data=ROWS, categorical_features=[1, 3], task="regression", **options)


SIGNATURES = [
    ("x_cat, x_cont", "x_cont", "x_cat"),
    ("x_categ, x_numer, return_attn=False", "x_numer", "x_categ"),
    ("xCat, xNum", "xNum", "xCat"),
    ("categorical, continuous", "continuous", "categorical"),
    ("sparse, dense", "dense", "sparse"),
    ("x_cat, x", "x", "x_cat"),
    ("x, x_cat=None", "x", "x_cat"),
    ("x_cat, mask=None, x_num=None", "x_num", "x_cat"),
    ("*, x_cat, x_num", "x_num", "x_cat"),
    ("x_cat, x_num, /", "x_num", "x_cat"),
    ("a, b", "a", "b"),
    ("a, b", "b", "a"),
    ("*args", "args[1]", "args[0]"),
    ("*args", "args[0][:, [0, 2]]", "args[0][:, [1, 3]]"),
    ("x: dict[str, torch.Tensor]", "x['continuous']", "x['categorical']"),
    ("batch", "batch['x_num']", "batch.get('x_cat')"),
]


@pytest.mark.parametrize(("signature", "numbers", "categories"), SIGNATURES)
@pytest.mark.parametrize("known", [True, False])
def test_each_kind_of_column_goes_where_it_belongs(signature, numbers, categories, known):
    model = model_of(signature, numbers, categories)
    a = adapter_of(model) if known else TabularAdapter(model, categorical_features=[1, 3], task="regression")
    np.testing.assert_allclose(a.predict(ROWS), TRUTH, atol=1e-5)
    x = a.encode(ROWS)
    inputs = x.inputs if isinstance(x.inputs, tuple) else (x.inputs,)
    np.testing.assert_allclose(a(*inputs)[:, 0], TRUTH, atol=1e-5)


def test_integers_are_wanted_where_the_model_does_not_cast():
    class Strict(Priced):
        def forward(self, a, b):
            assert a.dtype == torch.int64
            return self.price(b, a)

    np.testing.assert_allclose(adapter_of(Strict()).predict(ROWS), TRUTH, atol=1e-5)


class Any_(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner

    def forward(self, *args, **kwargs):
        return self.net(*args, **kwargs)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        Any_,
        lambda m: Any_(nn.DataParallel(m)),
        lambda m: torch.compile(m, backend="eager"),
    ],
)
@pytest.mark.parametrize("signature", ["x_cat, x_cont", "a, b"])
def test_wrappers_are_asked_as_the_wrapped_model_is(wrap, signature):
    first, second = signature.split(", ")
    a = adapter_of(wrap(model_of(signature, second, first)))
    np.testing.assert_allclose(a.predict(ROWS), TRUTH, atol=1e-5)


@pytest.mark.parametrize(
    ("signature", "numbers", "categories", "names"),
    [
        ("a, b", "b", "a", {"numeric": "b", "categorical": "a"}),
        ("*args", "args[1]", "args[0]", {"numeric": 1, "categorical": 0}),
        ("**parts", "parts['u']", "parts['v']", {"numeric": "u", "categorical": "v"}),
        ("batch", "batch['u']", "batch['v']", {"numeric": "u", "categorical": "v"}),
    ],
)
def test_names_that_are_given(signature, numbers, categories, names):
    a = adapter_of(model_of(signature, numbers, categories), forward_names=names)
    np.testing.assert_allclose(a.predict(ROWS), TRUTH, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"numeric": "u", "categories": "v"}, "must give 'numeric' and 'categorical'"),
        ({"numeric": "a", "categorical": "a"}, "must give 'numeric' and 'categorical'"),
        ({"numeric": 0, "categorical": "a"}, "names or positions, not both"),
        ({"numeric": 0, "categorical": 2}, "positions run from 0"),
        ({"numeric": "u", "categorical": "v"}, "takes a, b"),
    ],
)
def test_names_that_do_not_fit(names, message):
    with pytest.raises(InputError, match=message):
        adapter_of(model_of("a, b", "a", "b"), forward_names=names)


class Product(nn.Module):
    def forward(self, a, b):
        return (a.float() * b.float()).sum(dim=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Product(), r"runs with \(numeric, categorical\) and with \(categorical, numeric\).*forward_names="),
        (model_of("batch", "batch['u']", "batch['v']"), r"cannot find out how .*KeyError 'u'.*forward_names="),
        (model_of("**parts", "parts['u']", "parts['v']"), r"cannot find out how .*forward_names="),
        (model_of("x_cat, x_num, mask", "x_num", "x_cat"), "needs x_cat, x_num, mask"),
    ],
)
def test_what_cannot_be_known_is_asked_for(model, message):
    with pytest.raises(ForwardError, match=message):
        adapter_of(model)


def test_one_kind_of_column():
    class NoCategories(nn.Module):
        def forward(self, x_categ, x_numer):
            assert x_categ.shape[1] == 0  # as tab-transformer-pytorch has it
            return x_numer.sum(dim=1)

    class CategoriesAlone(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.tensor(CODES)[:, None])

        def forward(self, x):
            return self.table(x).sum(dim=(1, 2))

    numbers, categories = ROWS[:, [0, 2]], ROWS[:, [1, 3]]
    a = TabularAdapter(NoCategories(), training_data=numbers, task="regression")
    np.testing.assert_allclose(a.predict(numbers), numbers.sum(1), atol=1e-6)
    b = TabularAdapter(CategoriesAlone(), training_data=categories, categorical_features=[0, 1], task="regression")
    np.testing.assert_allclose(b.predict(categories), CODES[categories.astype(int)].sum(1), atol=1e-6)


def test_trying_out_leaves_no_trace():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(3, 1), nn.BatchNorm1d(2)
            self.drop = nn.Dropout(0.5)

        def forward(self, a, b):
            return self.drop(self.norm(b)).sum(1) + self.table(a).sum((1, 2)) + torch.rand(1)

    model = Noisy().train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    adapter_of(model)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(m.training for m in model.modules())


def test_a_used_adapter_is_copied_and_lime_asks_it_rightly():
    a = adapter_of(model_of("x_cat, x_cont", "x_cont", "x_cat"))
    np.testing.assert_array_equal(copy.deepcopy(a).predict(ROWS), a.predict(ROWS))
    b = TabularAdapter(nn.Linear(4, 1), training_data=ROWS, categorical_features=[1, 3], task="regression")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(b)).predict(ROWS), b.predict(ROWS))
    x = a.encode(ROWS[:1])
    lime = LimeTabular(a)
    effects = lime.attribute(**x.arguments(lime), target=0, n_samples=400)
    assert [tuple(part.shape) for part in effects] == [(1, 2), (1, 2)]  # the numbers first, as the adapter has them


def test_tensors_that_are_no_rows():
    a = adapter_of(model_of("x_cat, x_cont", "x_cont", "x_cat"))
    numbers, categories = a.encode(ROWS[:2]).inputs
    for wrong in ((numbers[0], categories[0]), (categories,), (numbers[:, :1], categories)):
        with pytest.raises(InputError, match=r"adapter\.encode"):
            a(*wrong)
    with pytest.raises(InputError, match="dict"):
        a.encode({"a": 1.0})


def test_an_output_that_is_no_number():
    class Log(nn.Module):
        def forward(self, x):
            return x[:, :1].log()

    a = TabularAdapter(Log(), task="regression")
    with pytest.raises(ForwardError, match="Log gave NaN for row 1 and 1 more"):
        a.predict([[1.0, 2.0], [-1.0, 2.0], [-2.0, 0.0]])


def test_one_of_several_predictions_is_explained():
    class Both(nn.Module):
        def forward(self, x):
            return torch.stack([3 * x[:, 0], -2 * x[:, 2]], dim=1)

    a = TabularAdapter(Both(), training_data=ROWS, task="regression", class_names=["height", "weight"])
    np.testing.assert_allclose(a.predict(ROWS), np.stack([3 * ROWS[:, 0], -2 * ROWS[:, 2]], axis=1), atol=1e-6)
    lime = LimeTabular(a, semantics="gradient")
    for target, column, sign in ((0, 0, 1), (np.int64(1), 2, -1)):
        weights = dict(lime.explain(ROWS[0], target, num_samples=500).as_map()[1])
        assert max(weights, key=lambda c: abs(weights[c])) == column
        assert np.sign(weights[column]) == sign
    for wrong in (None, 2):
        with pytest.raises(TargetError, match=r"2 numbers|2 outputs"):
            lime.explain(ROWS[0], wrong)
