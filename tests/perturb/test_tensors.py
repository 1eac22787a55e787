"""Rows, sequences, pictures and plain tensors with features taken out get the answers of copies that run one by one."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import ImageAdapter, SequenceAdapter, TabularAdapter
from captum_attn_lime.errors import ForwardError, InputError, TargetError
from captum_attn_lime.perturb import perturbed

RNG = np.random.default_rng(0)
ROWS = np.column_stack([RNG.normal(size=(40, 2)) * 3, RNG.integers(0, 3, size=40), RNG.normal(size=40)])
SERIES = RNG.normal(size=(30, 4, 2))


class Table(nn.Module):
    """Numeric columns and categories apart."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(3, 4), nn.Linear(7, 3)

    def forward(self, x_num, x_cat):
        return self.head(torch.cat([x_num, self.embed(x_cat[:, 0])], dim=1).tanh())


def table() -> TabularAdapter:
    torch.manual_seed(0)
    names = ["a", "b", "kind", "c"]
    return TabularAdapter(Table().eval(), training_data=ROWS, feature_names=names, categorical_features=["kind"])


def series() -> SequenceAdapter:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    return SequenceAdapter(model, training_data=SERIES, feature_names=["u", "v"])


def masks(n: int, rows: int = 20) -> np.ndarray:
    kept = np.random.default_rng(1).random((rows, n)) < 0.5
    kept[0], kept[1], kept[2] = True, False, kept[3]
    return kept


def drawn(training, removal, n_draws, seed):
    """The stand-ins, each an example like the training data's."""
    if removal != "marginal":
        typical = training.mean(axis=0)
        if training is ROWS:
            values, counts = np.unique(ROWS[:, 2], return_counts=True)
            typical[2] = values[counts.argmax()]
        return typical[None]
    return training[np.random.default_rng(seed).choice(len(training), size=n_draws, replace=False)]


@pytest.mark.parametrize("removal", ["baseline", "mean", "marginal"])
def test_a_row(removal):
    adapter = table()
    x = adapter.encode(ROWS[:2])
    options = dict(n_draws=7, seed=5) if removal == "marginal" else {}
    game = perturbed(adapter, x, 1, removal=removal, example=1, batch_size=9, unit="probability", **options)
    assert game.names == ("a", "b", "kind", "c")
    kept = masks(4)
    bases = drawn(ROWS, removal, 7, 5)
    expected = [np.mean([adapter.predict_proba(np.where(row, ROWS[1], base))[0, 1] for base in bases]) for row in kept]
    np.testing.assert_allclose(game.scores(kept), expected, atol=1e-6)
    assert np.std(expected) > 1e-2


@pytest.mark.parametrize("removal", ["baseline", "mean", "marginal"])
@pytest.mark.parametrize("features", ["cell", "step", "series"])
def test_a_sequence(features, removal):
    adapter = series()
    x = adapter.encode(SERIES[3], features=features)
    options = dict(n_draws=6, seed=2) if removal == "marginal" else {}
    game = perturbed(adapter, x, 0, removal=removal, batch_size=10, **options)
    kept = masks(len(game.names))
    bases = drawn(SERIES, removal, 6, 2)
    expected = []
    for row in kept:
        stays = np.array(row)[x.feature_mask[0].numpy()]
        expected.append(np.mean([adapter.logits(np.where(stays, SERIES[3], base))[0, 0] for base in bases]))
    np.testing.assert_allclose(game.scores(kept), expected, atol=1e-6)


def test_draws_are_those_of_the_seed_and_at_most_the_training_data():
    adapter = table()
    x = adapter.encode(ROWS[0])
    kept = masks(4)
    one, same, other = (
        perturbed(adapter, x, 0, removal="marginal", n_draws=5, seed=seed).scores(kept) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    every = perturbed(adapter, x, 0, removal="marginal", n_draws=1000).scores([[False] * 4])
    assert every[0] == pytest.approx(adapter.logits(ROWS)[:, 0].mean(), abs=1e-6)


def test_a_regression():
    adapter = TabularAdapter(nn.Linear(2, 2), feature_names=["a", "b"], class_names=["x", "y"], task="regression")
    game = perturbed(adapter, adapter.encode([1.0, 2.0]), "y")
    assert game.explained.label == "prediction of output 'y'"
    assert game.scores([[True, True]])[0] == pytest.approx(adapter.logits([1.0, 2.0])[0, 1], abs=1e-6)


# ---------------------------------------------------------------- pictures


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(16, 16, 3)).astype(np.uint8)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.cut(x).flatten(2).tanh().cumsum(2).mean(2))


def pictures() -> ImageAdapter:
    torch.manual_seed(0)
    return ImageAdapter(Patches().eval(), mean=0.5, std=0.25, size=16, batch_size=6)


def hidden(image, labels, removal):
    if removal in ("baseline", "segment"):
        out = image.copy()
        for k in np.unique(labels):
            out[labels == k] = image[labels == k].mean(axis=0).astype(np.uint8)
        return out
    if removal == "mean":
        return np.broadcast_to(image.reshape(-1, 3).mean(axis=0).astype(np.uint8), image.shape)
    if removal == "black":
        return np.zeros_like(image)
    if removal == "blur":
        from scipy.ndimage import gaussian_filter

        return np.rint(gaussian_filter(image.astype(float), (1, 1, 0))).astype(np.uint8)
    return np.broadcast_to(np.array(removal, dtype=np.uint8), image.shape)


@pytest.mark.parametrize("removal", ["baseline", "segment", "mean", "black", "blur", 90, (10, 20, 30)], ids=str)
@pytest.mark.parametrize("features", ["patches", "halves"])
def test_a_picture(features, removal):
    adapter = pictures()
    labels = np.arange(16)[:, None] // 8 + np.zeros((16, 16), dtype=int)
    x = adapter.encode([picture(1), picture()], features="patches" if features == "patches" else labels)
    labels = x.segments[1]
    game = perturbed(adapter, x, 2, removal=removal, example=1)
    kept = masks(len(game.names), 15)
    base = hidden(picture(), labels, removal)
    copies = [np.where(row[labels][:, :, None], picture(), base) for row in kept]
    expected = np.concatenate([adapter.logits(image) for image in copies])[:, 2]
    np.testing.assert_allclose(game.scores(kept), expected, atol=1e-4)
    assert expected.std() > 1e-2


# ---------------------------------------------------------------- any function of tensors


def forward(x, y, scale):
    return torch.stack([x.sum(1) * scale[:, 0], (x[:, 0] * y[:, 1]).sin() + y.sum(1)], dim=1)[:, :, None] * torch.ones(
        2
    )


def test_a_function_of_two_inputs_with_arguments_and_a_mask():
    x, y = torch.randn(3, 3), torch.randn(3, 2)
    scale = torch.randn(3, 1)
    mask = (torch.tensor([[0, 1, 1]]), torch.tensor([[2, 0]]))
    bases = (torch.ones(1, 3), 0.5)
    own = dict(baselines=bases, additional_forward_args=scale, feature_mask=mask)
    game = perturbed(forward, (x, y), (1, 0), example=2, batch_size=3, **own)
    assert game.names == ("0", "1", "2")
    assert game.explained.index == (1, 0)
    kept = masks(3)
    expected = []
    for row in torch.from_numpy(kept):
        one = torch.where(row[mask[0]], x[2:], bases[0])
        two = torch.where(row[mask[1]], y[2:], torch.tensor(0.5))
        expected.append(float(forward(one, two, scale[2:])[0, 1, 0]))
    np.testing.assert_allclose(game.scores(kept), expected, rtol=1e-5)
    assert game.scores(kept).dtype == np.float64


def test_a_module_is_asked_in_eval_mode_and_an_adapters_forward_is_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    game = perturbed(model, torch.ones(1, 3), 1)
    kept = [[True, False, True]]
    expected = model[0](torch.tensor([[1.0, 0, 1.0]])).detach()[0, 1]
    assert game.scores(kept)[0] == pytest.approx(float(expected), abs=1e-6)
    assert model.training
    adapter = table()
    x = adapter.encode(ROWS[:1])
    own = dict(baselines=x.baselines, feature_mask=x.feature_mask)
    found = perturbed(adapter.forward, x.inputs, 1, **own).scores(masks(4))
    with pytest.raises(InputError, match=r"adapter\.forward"):
        perturbed(adapter, x.inputs, 1, **own)
    np.testing.assert_allclose(found, perturbed(adapter, x, 1).scores(masks(4)), atol=1e-6)


@pytest.mark.parametrize("make", [table, series, pictures], ids=lambda make: make.__name__)
def test_a_used_object_says_what_a_fresh_one_says(make):
    adapter = make()
    x = adapter.encode({table: ROWS[0], series: SERIES[0], pictures: picture()}[make])
    game = perturbed(adapter, x, 1)
    kept = masks(len(game.names))
    before = game.scores(kept)
    for other in (copy.deepcopy(game), pickle.loads(pickle.dumps(game))):
        np.testing.assert_array_equal(other.scores(kept), before)
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.mul_(1.5)
    np.testing.assert_array_equal(game.scores(kept), perturbed(adapter, x, 1).scores(kept))
    assert not np.allclose(game.scores(kept), before)


def test_what_does_not_fit_is_refused():
    adapter = table()
    x = adapter.encode(ROWS[0])
    for options, message in [
        (dict(removal="blur"), "TabularAdapter does not support"),
        (dict(removal="marginal", n_draws=0), "positive number of draws"),
        (dict(n_draws=3), "require removal='marginal'"),
    ]:
        with pytest.raises(InputError, match=message):
            perturbed(adapter, x, 0, **options)
    bare = TabularAdapter(nn.Linear(2, 2), feature_names=["a", "b"])
    for removal in ("mean", "marginal"):
        with pytest.raises(InputError, match="needs training data"):
            perturbed(bare, bare.encode([1, 2]), 0, removal=removal)
    with pytest.raises(InputError, match="no example 2"):
        perturbed(torch.sum, torch.ones(2, 3), example=2)
    with pytest.raises(InputError, match="function's own unit"):
        perturbed(lambda x: x.sum(1), torch.ones(2, 3), removal="mean")
    with pytest.raises(InputError, match="must be an adapter or a function"):
        perturbed("model", torch.ones(1, 2))
    with pytest.raises(TargetError, match="does not select one number"):
        perturbed(nn.Identity(), torch.ones(1, 3))
    game = perturbed(lambda x: 1 / x.sum(1), torch.ones(1, 3))
    with pytest.raises(ForwardError, match="NaN or an infinite value"):
        game.scores([[False] * 3])
