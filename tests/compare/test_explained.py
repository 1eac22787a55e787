"""The explained number: made from any form of a target, with its class, unit, sign and value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import (
    AttentionAttribution,
    ImageAdapter,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
)
from captum_attn_lime._explained import Explained, choose, class_index, one_number
from captum_attn_lime.adapters import WordTokenizer
from captum_attn_lime.adapters._targets import plain_target
from captum_attn_lime.errors import InputError, TargetError

NAMES = ("rotten", "fresh")


@pytest.mark.parametrize(
    "target", [1, np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor([1]), np.array([1]), [1], ["fresh"], "fresh"]
)
def test_every_form_of_a_target_names_the_class(target):
    found = choose([0.8, 0.2], target, "probability", NAMES)
    assert found == Explained(1, "probability", "fresh", 0.2)
    assert str(found) == "probability of class 'fresh': 0.2"


@pytest.mark.parametrize("target", [2, -1, True, "stale", 1.0, (0, 1), [0, 1], "Fresh"])
def test_what_is_no_class(target):
    with pytest.raises(TargetError, match=r"not one of the model's 2 classes.*'rotten', 'fresh'"):
        choose([0.8, 0.2], target, "probability", NAMES)


def test_a_name_that_two_classes_have_is_no_target():
    with pytest.raises(TargetError, match="pass an int"):
        class_index("a", 2, ["a", "a"])


def test_the_predicted_class_is_said_to_be_predicted():
    found = choose([-1.0, 2.0, 0.5], None, "logit")
    assert (found.index, found.is_predicted, str(found)) == (1, True, "logit of class 1 (predicted): 2")


def test_regressions_have_outputs_and_no_classes():
    assert str(choose([2.5], None, "prediction")) == "prediction: 2.5"
    assert str(choose([2.5, 3.5], "wind", "prediction", ["rain", "wind"])) == "prediction of output 'wind': 3.5"
    with pytest.raises(TargetError, match="one output"):
        choose([2.5], 1, "prediction")
    with pytest.raises(TargetError, match="2 numbers; pass target="):
        choose([2.5, 3.5], None, "prediction", ["rain", "wind"])


def test_a_class_at_a_position():
    found = choose(np.eye(3), (2, "c"), "logit", ["a", "b", "c"])
    assert (found.index, found.value, found.label) == ((2, 2), 1.0, "logit of class 'c' at position 2")
    for target in (None, 1, (3, 0), (0, 3), (0, 1, 2)):
        with pytest.raises(TargetError):
            choose(np.eye(3), target, "logit")


def test_two_numbers_do_not_stand_in_one_table():
    one, other = Explained(1, "probability", "fresh"), Explained(1, "logit", "fresh")
    assert one_number([]) is None
    assert one_number([("a", one), ("b", Explained(1, "probability", value=0.3))]) is one
    with pytest.raises(InputError, match="'a' explains the probability of class 'fresh', and 'b' the logit"):
        one_number([("a", one), ("b", other)])


class Slope(nn.Module):
    """One logit: twice the sum of the input."""

    def forward(self, x):
        return 2 * x.flatten(1).float().sum(dim=1, keepdim=True)


def adapters():
    rows, series = np.random.RandomState(0).normal(size=(50, 3)), np.random.RandomState(0).normal(size=(50, 3, 2))
    tokenizer = WordTokenizer.fit(["a fine film"])
    return {
        "table": (TabularAdapter(Slope(), training_data=rows, class_names=NAMES), rows[0]),
        "series": (SequenceAdapter(Slope(), training_data=series, class_names=NAMES), series[0]),
        "picture": (
            ImageAdapter(Slope(), mean=0.5, std=0.5, size=4, patch_size=2, class_names=NAMES),
            np.ones((4, 4, 3)),
        ),
        "text": (TextAdapter(Slope(), tokenizer, class_names=NAMES), "a fine film"),
    }


@pytest.mark.parametrize("kind", ["table", "series", "picture", "text"])
def test_one_logit_is_one_number_with_two_signs(kind):
    adapter, raw = adapters()[kind]
    x = adapter.encode(raw)
    z = float(adapter(x.inputs, *x.forward_args)[0, 0])
    for target, value in (("fresh", z), ("rotten", -z), (1, z), (0, -z)):
        found = adapter.explained(x.inputs, x.forward_args, target)
        assert (found.unit, found.value) == ("logit", pytest.approx(value, rel=1e-5))
        assert {found.name, found.opposite} == set(NAMES)
        with adapter.output_unit("logit", x.inputs, x.forward_args):
            answered = adapter(x.inputs, *x.forward_args)
        assert answered[0, found.index] == pytest.approx(value, rel=1e-5)
    predicted = adapter.explained(x.inputs, x.forward_args)
    assert (predicted.name, predicted.is_predicted) == (NAMES[int(z > 0)], True)
    p = adapter.explained(x.inputs, x.forward_args, 0, unit="probability")
    assert p.value == pytest.approx(adapter.predict_proba(raw)[0, 0])
    assert adapter(x.inputs, *x.forward_args).shape == (1, 1)  # outside of the block it answers as the model does


def test_another_adapter_and_another_thread_answer_as_they_are():
    from threading import Thread

    adapter, raw = adapters()["table"]
    other = adapters()["table"][0]
    x = adapter.encode(raw).inputs
    shapes = []
    with adapter.output_unit("probability", x) as reading:
        assert adapter(x).shape == (1, 2)
        assert other(x).shape == (1, 1)
        thread = Thread(target=lambda: shapes.append(adapter(x).shape))
        thread.start()
        thread.join()
    assert reading.is_used
    assert shapes == [(1, 1)]


def test_names_and_numpy_integers_are_targets_of_captums_form():
    rows = np.random.RandomState(0).normal(size=(60, 2))
    two = TabularAdapter(nn.Linear(2, 2).requires_grad_(False), training_data=rows, class_names=NAMES)
    x = two.encode(rows[:2]).inputs
    lime = LimeTabular(two)
    expected = lime.attribute(x, target=1, n_samples=50)
    for target in ("fresh", np.int64(1), ["fresh", np.int64(1)], np.array([1, 1])):
        assert torch.equal(lime.attribute(x, target=target, n_samples=50), expected)
    with pytest.raises(TargetError, match="'stale' is not one of"):
        lime.attribute(x, target="stale")
    with pytest.raises(TargetError, match="no class names"):
        LimeText(lambda x: x).attribute(x, target="fresh")
    one = TabularAdapter(Slope(), training_data=rows, class_names=NAMES)
    assert plain_target("fresh", one, (x,), ()) == 0  # the column of z
    with pytest.raises(TargetError, match="'rotten' is -z"):
        plain_target("rotten", one, (x,), ())


def test_names_are_targets_of_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, input_ids):
            return self.head(self.encoder(self.embed(input_ids)).mean(dim=1))

    adapter = TextAdapter(Model().eval(), WordTokenizer.fit(["a fine old film"]), class_names=NAMES)
    x = adapter.encode("a fine old film")
    relevance = AttentionAttribution(adapter, method="relevance")
    expected = relevance.attribute(**x.arguments(relevance), target=1)
    for target in ("fresh", ["fresh"], np.int64(1), np.array([1])):
        assert torch.equal(relevance.attribute(**x.arguments(relevance), target=target), expected)
    assert torch.equal(relevance.matrix(x.inputs, "fresh"), relevance.matrix(x.inputs, 1))
    with pytest.raises(TargetError, match="'stale' is not one of"):
        relevance.attribute(**x.arguments(relevance), target="stale")


@pytest.mark.parametrize("wrap", [nn.Identity(), nn.Sigmoid()])
def test_one_class_of_raw_input_by_index_and_name(wrap):
    model = nn.Sequential(nn.Linear(2, 1), wrap)
    adapter = TabularAdapter(model, class_names=["rotten", "fresh"])
    row = [[1.0, 2.0], [0.5, -1.0]]
    z = adapter.logits(row)
    for target, expected in (("fresh", z), (1, z), (np.int64(1), z), ("rotten", -z), (0, -z)):
        np.testing.assert_allclose(adapter.logits(row, target=target), expected)
        np.testing.assert_allclose(adapter.predict_proba(row, target=target), 1 / (1 + np.exp(-expected)), rtol=1e-6)
    with pytest.raises(TargetError, match="'stale' is not one of the model's 2 classes"):
        adapter.predict_proba(row, target="stale")
