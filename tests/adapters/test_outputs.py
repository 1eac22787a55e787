"""Outputs that are probabilities already: found out, said, or guessed with a word."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import (
    ImageAdapter,
    LimeImage,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
)
from captum_attn_lime.adapters import WordTokenizer
from captum_attn_lime.errors import InputError, OutputsWarning
from captum_attn_lime.lime import explanation_weights

ROWS = np.random.RandomState(0).normal(size=(300, 2))


def linear(columns):
    net = nn.Linear(2, columns).requires_grad_(False)
    net.weight[:] = torch.tensor([[0.0, 0.0], [3.0, -1.0], [1.0, 1.0]])[3 - columns - (columns < 3) :][:columns]
    net.bias.zero_()
    return net


class Squeezed(nn.Module):
    def __init__(self, net, last):
        super().__init__()
        self.net, self.last = net, last

    def forward(self, x):
        return self.last(self.net(x))


class Both(nn.Module):
    """The two columns 1 - p and p of a sigmoid."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        p = self.net(x).sigmoid()
        return torch.cat([1 - p, p], dim=1)


ENDS = {
    "softmax": lambda: (nn.Sequential(linear(2), nn.Softmax(1)), linear(2)),
    "three classes": lambda: (nn.Sequential(linear(3), nn.Softmax(1)), linear(3)),
    "sigmoid of a vector": lambda: (Squeezed(linear(1), lambda z: z.sigmoid()[:, 0]), linear(1)),
    "in place": lambda: (Squeezed(linear(1), torch.sigmoid_), linear(1)),
    "exp of log softmax": lambda: (Squeezed(linear(2), lambda z: z.log_softmax(1).exp()), linear(2)),
    "half precision": lambda: (Squeezed(linear(2), lambda z: z.softmax(1).half().float()), linear(2)),
    "two columns of a sigmoid": lambda: (Both(linear(1)), linear(1)),
    "log softmax": lambda: (nn.Sequential(linear(2), nn.LogSoftmax(1)), linear(2)),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_second_softmax(end):
    model, logits = ENDS[end]()
    found, plain = TabularAdapter(model, training_data=ROWS), TabularAdapter(logits, training_data=ROWS)
    np.testing.assert_allclose(found.predict_proba(ROWS), plain.predict_proba(ROWS), atol=2e-3)
    odds = found.logits(ROWS)
    both = [np.concatenate([-o, o], 1) if o.shape[1] == 1 else o for o in (odds, plain.logits(ROWS))]
    both = [o - o.max(axis=1, keepdims=True) for o in both]
    if end not in ("half precision", "two columns of a sigmoid"):
        np.testing.assert_allclose(*both, atol=1e-3)
    lime = [explanation_weights(LimeTabular(a).explain(ROWS[0], 1, num_samples=300)) for a in (found, plain)]
    for k, w in lime[1].items():
        assert lime[0][k] == pytest.approx(w, abs=2e-3)


class Opaque(nn.Module):
    """Probabilities whose making is hidden from torch."""

    def __init__(self, net, columns):
        super().__init__()
        self.net, self.columns = net, columns

    def forward(self, x):
        p = 1 / (1 + np.exp(-self.net(x).numpy()))
        return torch.from_numpy(np.concatenate([1 - p, p], axis=1) if self.columns == 2 else p)


def test_a_guess_is_said():
    adapter = TabularAdapter(Opaque(linear(1), 2), training_data=ROWS)
    with pytest.warns(OutputsWarning, match="read as probabilities.*outputs='probabilities'"):
        found = adapter.predict_proba(ROWS)
    np.testing.assert_allclose(found, TabularAdapter(linear(1)).predict_proba(ROWS), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = TabularAdapter(Opaque(linear(1), 2), training_data=ROWS, outputs="probabilities")
        np.testing.assert_allclose(said.predict_proba(ROWS), found)
        again = TabularAdapter(Opaque(linear(1), 2), training_data=ROWS, outputs="logits").predict_proba(ROWS)
    assert np.abs(again - found).max() > 0.1
    with pytest.warns(OutputsWarning, match="read as logits"):  # one column of these may be anything
        TabularAdapter(Opaque(linear(1), 1), training_data=ROWS).predict_proba(ROWS)


def test_an_ensemble_is_a_mixture_of_probabilities():
    other = linear(2)
    other.weight[:] = 0.3

    class Ensemble(nn.Module):
        def forward(self, x):
            return (a(x).softmax(1) + other(x).softmax(1)) / 2

    class OfOne(nn.Module):
        def forward(self, x):
            return torch.stack([b(x).sigmoid(), (0.5 * b(x)).sigmoid()]).mean(dim=0)

    a, b = linear(2), linear(1)
    adapter = TabularAdapter(Ensemble(), training_data=ROWS)
    np.testing.assert_allclose(adapter.predict_proba(ROWS), adapter.outputs(ROWS))
    one = TabularAdapter(OfOne(), training_data=ROWS)
    with pytest.warns(OutputsWarning, match="read as probabilities"):
        found = one.predict_proba(ROWS)
    np.testing.assert_allclose(found[:, 1:], one.outputs(ROWS))


def test_logits_that_sum_to_one_by_chance_are_logits():
    class Padded(nn.Module):
        def forward(self, x):
            z = x.sum(dim=1, keepdim=True)
            return torch.cat([torch.zeros_like(z), z], dim=1)

    adapter = TabularAdapter(Padded(), training_data=ROWS)
    np.testing.assert_allclose(adapter.predict_proba([0.5, 0.5])[0, 1], 1 / (1 + np.exp(-1.0)), atol=1e-6)


def test_logits_between_0_and_1_are_logits():
    small = nn.Sequential(nn.Linear(2, 1), nn.Hardtanh(0.1, 0.9)).requires_grad_(False)
    adapter = TabularAdapter(small, training_data=ROWS)
    z = adapter.outputs(ROWS)
    np.testing.assert_allclose(adapter.predict_proba(ROWS)[:, 1:], 1 / (1 + np.exp(-z)), atol=1e-12)
    gated = Squeezed(linear(2), lambda z: z.softmax(1) @ torch.tensor([[0.2, 0.1], [0.3, 0.9]]))
    several = TabularAdapter(gated, training_data=ROWS, task="multi_label")
    z = several.outputs(ROWS)
    np.testing.assert_allclose(several.predict_proba(ROWS), 1 / (1 + np.exp(-z)), atol=1e-12)


def test_several_sigmoids():
    model = nn.Sequential(linear(3), nn.Sigmoid())
    adapter = TabularAdapter(model, training_data=ROWS, task="multi_label")
    np.testing.assert_allclose(adapter.predict_proba(ROWS), model(torch.tensor(ROWS).float()), atol=1e-7)
    found = LimeTabular(adapter).explain(ROWS[0], 1, num_samples=100)
    assert found.explained.value == pytest.approx(adapter.predict_proba(ROWS[0])[0, 1])


def test_what_captums_methods_explain_is_said():
    adapter = TabularAdapter(nn.Sequential(linear(2), nn.Softmax(1)), training_data=ROWS)
    x = adapter.encode(ROWS[0])
    found = adapter.explained(x.inputs)
    assert found.unit == "probability"
    assert found.value == pytest.approx(float(adapter(x.inputs)[0, found.index]))


def test_texts_series_and_pictures():
    class Sum(nn.Module):
        def forward(self, x):
            return (x.float().flatten(1).mean(dim=1, keepdim=True)).sigmoid()

    tokenizer = WordTokenizer.fit(["a fine film"])
    text = TextAdapter(Sum(), tokenizer)
    series = SequenceAdapter(Sum(), training_data=np.random.RandomState(0).normal(size=(20, 3, 2)))
    picture = ImageAdapter(Sum(), mean=0.5, std=0.5, size=8, patch_size=4)
    for adapter, raw in ((text, "a fine film"), (series, np.ones((3, 2))), (picture, np.ones((8, 8, 3)) * 0.7)):
        p = float(adapter.outputs(raw)[0, 0])
        np.testing.assert_allclose(adapter.predict_proba(raw), [[1 - p, p]])
        np.testing.assert_allclose(adapter.logits(raw), [[np.log(p / (1 - p))]], rtol=1e-5)
    found = LimeImage(picture).explain(np.ones((8, 8, 3)) * 0.7, 0, num_samples=40)
    assert found.explained.value == pytest.approx(1 - p)
    assert LimeText(text).explain("a fine film", 1, output="logits", num_samples=40).explained.unit == "logit"


def test_bad_options():
    with pytest.raises(InputError, match="outputs must be one of"):
        TabularAdapter(linear(2), outputs="odds")
    with pytest.raises(InputError, match="does not go with task"):
        TabularAdapter(linear(2), outputs="predictions")
    with pytest.raises(InputError, match="it has no probability"):
        ImageAdapter(nn.Flatten(), mean=0.5, std=0.5, outputs="predictions").explained(
            torch.ones(1, 1, 1, 1), unit="probability"
        )


LATER_STEPS = {
    "clamp": lambda p: p.clamp(1e-4, 1 - 1e-4),
    "clip": lambda p: p.clip(max=1.0),
    "nan to num": lambda p: p.nan_to_num(),
    "round": lambda p: p.round(decimals=3),
    "where": lambda p: torch.where(p > 1e-9, p, 0.0),
    "minimum": lambda p: torch.minimum(p, torch.ones_like(p)),
    "flip": lambda p: p.flip(1),
    "columns": lambda p: p[:, [1, 2, 0]],
    "index select": lambda p: p.index_select(1, torch.tensor([2, 0, 1])),
    "roll": lambda p: p.roll(1, 1),
    "write": lambda p: torch.empty_like(p).copy_(p),
}


@pytest.mark.parametrize("step", LATER_STEPS)
def test_steps_behind_a_softmax(step):
    adapter = TabularAdapter(Squeezed(linear(3), lambda z: LATER_STEPS[step](z.softmax(1))), training_data=ROWS)
    np.testing.assert_allclose(adapter.predict_proba(ROWS[0]), adapter.outputs(ROWS[0]))


@pytest.mark.parametrize(
    ("end", "guessed"),
    [
        (lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), False),
        (nn.functional.hardsigmoid, False),
        (lambda z: 1 / (1 + (-z).exp()), True),
        (lambda z: (z.tanh() + 1) / 2, True),
    ],
)
def test_one_column_made_otherwise(end, guessed):
    adapter = TabularAdapter(Squeezed(linear(1), end), training_data=ROWS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = adapter.predict_proba(ROWS[0])
    np.testing.assert_allclose(found[:, 1:], adapter.outputs(ROWS[0]))
    assert bool(said) == guessed
