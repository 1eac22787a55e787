"""Several classes from one set of samples: each as if explained alone, the model asked once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import (
    ImageAdapter,
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
    WordTokenizer,
    plot,
)
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime import (
    explain_until_separated,
    explanation_numbers,
    explanation_weights,
    pooled,
    word_weights,
)

CLASSES = [f"class {k}" for k in range(20)]
TEXT = "a fine film with a dull cast"


class Many(nn.Module):
    """20 logits that are linear in the input; it counts the examples that it sees."""

    def __init__(self, n, cells=None):
        super().__init__()
        slopes = torch.randn(n, 20, generator=torch.Generator().manual_seed(0))
        self.slopes, self.seen = nn.Parameter(slopes / 2, requires_grad=False), 0
        self.words = cells

    def forward(self, x):
        self.seen += len(x)
        x = nn.functional.one_hot(x, self.words).sum(dim=1) if self.words else x.flatten(1)
        return x.float() @ self.slopes


def lime(kind):
    rng = np.random.RandomState(0)
    if kind == "text":
        tokenizer = WordTokenizer.fit([TEXT])
        n = len(tokenizer.vocabulary)
        return LimeText(TextAdapter(Many(n, n), tokenizer, class_names=CLASSES)), TEXT
    if kind == "row":
        adapter = TabularAdapter(Many(4), training_data=rng.normal(size=(60, 4)), class_names=CLASSES)
        return LimeTabular(adapter, semantics="gradient"), [0.5, -1.0, 0.2, 1.5]
    if kind == "series":
        adapter = SequenceAdapter(Many(6), training_data=rng.normal(size=(60, 3, 2)), class_names=CLASSES)
        return LimeSequence(adapter), rng.normal(size=(3, 2))
    adapter = ImageAdapter(Many(48), mean=0.5, std=0.5, size=4, patch_size=2, class_names=CLASSES)
    return LimeImage(adapter), adapter.encode(rng.rand(4, 4, 3))


@pytest.fixture(params=["text", "row", "series", "image"])
def kind(request):
    return request.param


def test_each_class_is_as_if_explained_alone(kind):
    method, example = lime(kind)
    options = dict(num_samples=200, output="logits", num_features=3)
    several = method.explain(example, labels=[3, "class 17", np.int64(0)], **options)
    assert list(several.all_diagnostics) == [3, 17, 0]
    assert several.explained.name == "class 3"
    for label in (3, 17, 0):
        alone = method.explain(example, label, **options)
        assert explanation_weights(several, label) == pytest.approx(explanation_weights(alone))
        assert explanation_numbers(several, f"class {label}") == pytest.approx(explanation_numbers(alone))
        assert several.all_diagnostics[label].explained == alone.explained
        assert several.all_diagnostics[label].r2 == pytest.approx(alone.diagnostics.r2)
        assert several.all_diagnostics[label].standard_errors == pytest.approx(alone.diagnostics.standard_errors)


def test_twenty_classes_ask_the_model_as_often_as_one(kind):
    method, example = lime(kind)
    model = method.forward_func.model
    model.seen = 0
    method.explain(example, 3, num_samples=100)
    one, model.seen = model.seen, 0
    method.explain(example, labels=range(20), num_samples=100)
    assert model.seen == one


def test_the_highest_classes(kind):
    method, example = lime(kind)
    found = method.explain(example, top_labels=4, num_samples=60)
    values = [one.explained.value for one in found.all_diagnostics.values()]
    assert values == sorted(values, reverse=True)
    assert next(iter(found.all_diagnostics)) == method.explain(example, num_samples=60).explained.index
    assert len(method.explain(example, top_labels=99, num_samples=60).all_diagnostics) == 20


def test_replicates_of_several_classes():
    method, example = lime("row")
    several = pooled(method.explain(example, labels=[1, 2], num_samples=100, seed=seed) for seed in range(3))
    for label in (1, 2):
        alone = pooled(method.explain(example, label, num_samples=100, seed=seed) for seed in range(3))
        own = several.all_diagnostics[label]
        assert own.weights == pytest.approx(alone.diagnostics.weights)
        assert own.replicates.spearman == pytest.approx(alone.diagnostics.replicates.spearman)
    auto = explain_until_separated(method, example, labels=[1, 2], max_samples=2000, num_features=1)
    assert all(d.n_samples <= 2000 for d in auto.all_diagnostics.values())


def test_one_of_several_is_read_by_its_name():
    method, example = lime("text")
    found = method.explain(example, labels=["class 4", "class 9"], num_samples=60)
    assert found.as_list("class 9") == found.as_list(9)
    words = method.forward_func.encode(TEXT).words[0]
    assert torch.equal(word_weights(found, words, "class 9"), word_weights(found, words, 9))
    ax = plot.weights(found, label="class 9")
    assert "probability of class 'class 9'" in ax.texts[0].get_text()
    assert found.as_html().count("LIME of the probability of class") == 2
    with pytest.raises(TargetError, match="several classes"):
        explanation_weights(found)
    with pytest.raises(TargetError, match="was not explained"):
        explanation_weights(found, "class 5")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(target=1, labels=[2]), InputError, "pass only one of them"),
        (dict(labels=[2], top_labels=3), InputError, "pass only one of them"),
        (dict(labels=[]), InputError, "at least one class"),
        (dict(labels="class 1"), InputError, "pass a single class as target"),
        (dict(labels=[1, "class 1"]), InputError, "twice"),
        (dict(labels=[20]), TargetError, "target 20"),
        (dict(top_labels=0), InputError, "top_labels"),
    ],
)
def test_bad_choices(kind, options, error, message):
    method, example = lime(kind)
    with pytest.raises(error, match=message):
        method.explain(example, **options)


def test_a_regression_and_a_language_model_have_one_number():
    adapter = TabularAdapter(
        nn.Linear(2, 1), training_data=np.random.RandomState(0).normal(size=(30, 2)), task="regression"
    )
    with pytest.raises(InputError, match="the model is a regression"):
        LimeTabular(adapter).explain([0.0, 1.0], labels=[0])

    class Next(nn.Module):
        def forward(self, input_ids):
            return nn.functional.one_hot(input_ids, 9) * 3.0

    text = TextAdapter(Next(), WordTokenizer.fit([TEXT]), task="next_token")
    with pytest.raises(InputError, match="explained alone"):
        LimeText(text).explain(TEXT, labels=[1, 2])
    assert LimeText(text).explain(TEXT, "3", num_samples=50).explained.opposite == "any other token"
