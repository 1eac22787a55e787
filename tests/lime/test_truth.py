"""LIME's answers where the truth is known: linear models of words, columns, cells and segments, in float64."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm
from sklearn.linear_model import LinearRegression
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
)
from captum_attn_lime.lime import explanation_weights

WORDS = ["the", "film", "starts", "well", "and", "ends", "badly", "but", "has", "a", "fine", "cast"]
TEXT = "The film starts well, and ends badly; but the film has a fine cast."


class Bag(nn.Module):
    """Logits (B, classes) that add up what each occurrence of a word is worth; padding is worth nothing."""

    def __init__(self, worth):
        super().__init__()
        self.worth = nn.Parameter(torch.as_tensor(worth, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        return (self.worth[input_ids] * attention_mask[:, :, None]).sum(dim=1)


def bag(classes=2, scale=1.0, **options):
    """An adapter, and by word what it is worth to each class."""
    tokenizer = WordTokenizer.fit([" ".join(WORDS)])
    worth = scale * np.random.RandomState(0).normal(size=(len(tokenizer.vocabulary), classes))
    adapter = TextAdapter(Bag(worth), tokenizer, **options)
    return adapter, {word: worth[k] for word, k in tokenizer.vocabulary.items()}


def words_of(explanation, label):
    """By word (small letters) its weight; of several units of the same word, a list would be needed."""
    return {word.lower(): weight for word, weight in explanation.as_list(label=label)}


@pytest.mark.parametrize(
    ("features", "removal"),
    [
        ("lime", None),
        ("lime", "delete"),
        ("lime", "attention"),
        (re.compile(r"\w+"), "delete"),
        (re.compile(r"\w+"), "attention"),
        ("word", "delete"),
    ],
)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_bag_of_words_gets_its_own_words_worth(features, removal, label):
    """All occurrences of a word go together, and so do their parts of the logit; signs between words stay."""
    adapter, worth = bag(classes=3)
    lime = LimeText(adapter, features=features, removal=removal, model_regressor=LinearRegression())
    text, exact = TEXT.lower(), 1e-6
    found = lime.explain(text, label, num_samples=300, output="logits")
    truth = {word: len(re.findall(rf"\b{word}\b", text)) * worth[word][label] for word in WORDS}
    if features == "word":
        # Signs are units, too: words that this model does not know. A copy without any unit is answered for an unknown
        # word, and counts little.
        truth |= {sign: text.count(sign) * worth["<unk>"][label] for sign in ",;."}
        exact = 1e-3
    assert words_of(found, label) == pytest.approx(truth, abs=exact)
    assert found.diagnostics.r2 == pytest.approx(1.0, abs=exact)


def test_replacing_by_a_token_gives_the_difference_to_it():
    adapter, worth = bag()
    lime = LimeText(adapter, removal="mask", model_regressor=LinearRegression())
    text = " ".join(WORDS)
    found = words_of(lime.explain(text, 1, num_samples=300, output="logits"), 1)
    base = worth["<unk>"][1]
    assert found == pytest.approx({word: worth[word][1] - base for word in WORDS}, abs=1e-6)


def test_a_probability_is_not_linear_but_its_logit_is():
    adapter, worth = bag(scale=2.0)
    lime = LimeText(adapter, model_regressor=LinearRegression())
    text = " ".join(WORDS) + "."  # the sign is there even where all words are removed
    linear, curved = (lime.explain(text, 1, num_samples=2000, output=o) for o in ("logits", "probability"))
    assert linear.diagnostics.r2 > 1 - 1e-9
    assert curved.diagnostics.r2 < 0.95
    assert words_of(linear, 1) == pytest.approx({word: worth[word][1] for word in WORDS}, abs=1e-6)


def test_labels_that_do_not_exclude_each_other():
    adapter, worth = bag(classes=4)
    adapter.model.config = SimpleNamespace(problem_type="multi_label_classification")
    lime, text = LimeText(adapter, model_regressor=LinearRegression()), " ".join(WORDS) + "."
    total = sum(worth[word] for word in WORDS) + worth["<unk>"]
    for label in range(4):
        found = lime.explain(text, label, num_samples=200, output="logits")
        assert words_of(found, label) == pytest.approx({word: worth[word][label] for word in WORDS}, abs=1e-6)
        own = lime.explain(text, label, num_samples=200).diagnostics.fx
        assert own == pytest.approx(1 / (1 + np.exp(-total[label])), abs=1e-6)


def test_one_text_of_a_pair_while_the_other_stays():
    tokenizer = WordTokenizer.fit([" ".join(WORDS)], separator="<sep>")
    worth = np.random.RandomState(1).normal(size=(len(tokenizer.vocabulary), 2))
    adapter = TextAdapter(Bag(worth), tokenizer)
    pair = ("the film starts well", "the cast ends badly")
    for segment, text in zip(("first", "second"), pair, strict=True):
        lime = LimeText(adapter, model_regressor=LinearRegression())
        found = words_of(lime.explain(pair, 1, explained_text=segment, num_samples=200, output="logits"), 1)
        truth = {word: worth[tokenizer.vocabulary[word], 1] for word in text.split()}
        assert found == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("n", [500, 3000])
def test_limes_own_ridge_is_within_its_errors_of_the_truth(n):
    """With ridge(1) there is a bias beside the errors: the smaller, the more samples."""
    adapter, worth = bag()
    found = LimeText(adapter).explain(" ".join(WORDS), 1, num_samples=n, output="logits")
    errors = {k: 4 * e for k, e in found.diagnostics.standard_errors.items()}
    names = found.domain_mapper.indexed_string
    for k, weight in explanation_weights(found).items():
        truth = worth[names.word(k)][1]
        assert abs(weight - truth) < errors[k] + 60 / n * max(1.0, abs(truth))


class Columns(nn.Module):
    """Numbers by slopes, categories by a number each; one output, or two opposite ones."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs
        self.slopes = nn.Parameter(torch.tensor([0.5, -2.0], dtype=torch.float64))
        self.kinds = nn.Parameter(torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64))

    def forward(self, x_num, x_cat):
        score = x_num @ self.slopes + self.kinds[x_cat[:, 0]]
        return score[:, None] if self.outputs == 1 else torch.stack([-score, score], dim=1)


def rows(n=4000):
    r = np.random.RandomState(0)
    kind = r.choice(3, n, p=[0.5, 0.3, 0.2])
    return np.stack([r.normal(10, 4, n), r.normal(0, 1, n), kind], axis=1)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("semantics", ["gradient", "times_input"])
def test_slopes_and_categories_of_a_table(task, semantics):
    data = rows()
    adapter = TabularAdapter(
        Columns(1 if task == "regression" else 2).double(), training_data=data, categorical_features=[2], task=task
    )
    x = adapter.encode(np.array([12.0, 0.5, 1]))
    lime = LimeTabular(adapter, semantics=semantics, model_regressor=LinearRegression())
    numbers, kind = lime.attribute(**x.arguments(lime), target=0 if task == "regression" else 1, n_samples=4000)
    truth = np.array([0.5, -2.0])
    if semantics == "times_input":
        truth = truth * (np.array([12.0, 0.5]) - data[:, :2].mean(axis=0))
    np.testing.assert_allclose(numbers[0].numpy(), truth, atol=0.05)
    # Kind 1 against the others, as often as they are: 2 - (0.5 * 0 + 0.2 * -1) / 0.7.
    assert float(kind[0, 0]) == pytest.approx(2 + 0.2 / 0.7, abs=0.15)


def drawn_mean(values):
    """Within a bin lime draws from a normal with the bin's mean and deviation, cut off at its least and greatest."""
    mean, deviation = values.mean(), values.std()
    ends = (np.array([values.min(), values.max()]) - mean) / deviation
    return truncnorm(*ends, loc=mean, scale=deviation).mean()


def test_a_bin_counts_against_the_other_bins():
    data = rows()
    adapter = TabularAdapter(Columns(1).double(), training_data=data, categorical_features=[2], task="regression")
    row = np.array([15.0, 0.1, 0])
    lime = LimeTabular(adapter, model_regressor=LinearRegression(), kernel_width=100.0)  # all samples count alike
    explanation = lime.explain(row, num_samples=20_000)
    found, errors = explanation_weights(explanation), explanation.diagnostics.standard_errors
    for column, slope in enumerate((0.5, -2.0)):
        values = data[:, column]
        edges = np.percentile(values, [25, 50, 75])
        bins, own = np.searchsorted(edges, values), np.searchsorted(edges, row[column])
        means = np.array([drawn_mean(values[bins == k]) for k in range(4)])
        contrast = means[own] - means[np.arange(4) != own].mean()  # a quarter of the rows each
        assert abs(found[column] - slope * contrast) < 3 * errors[column]
        assert errors[column] < 0.1 * abs(slope * contrast)


def test_cells_of_a_sequence():
    slopes = torch.from_numpy(np.random.RandomState(3).normal(size=(5, 2)))

    class Sum(nn.Module):
        def forward(self, x):
            score = (x * slopes).sum(dim=(1, 2))
            return torch.stack([-score, score], dim=1)

    data = np.random.RandomState(4).normal(2.0, 3.0, size=(500, 5, 2))
    adapter = SequenceAdapter(Sum().double(), training_data=data)
    x = adapter.encode(data[0])
    lime = LimeSequence(adapter, semantics="gradient", model_regressor=LinearRegression())
    found = lime.attribute(**x.arguments(lime), target=1, n_samples=400)
    np.testing.assert_allclose(found[0].numpy(), slopes, atol=1e-4)


def test_segments_of_a_picture():
    """Each segment's weight is what its pixels add beyond those of the colour that replaces it."""
    slopes = torch.from_numpy(np.random.RandomState(5).normal(size=(3, 8, 12)))

    class Sum(nn.Module):
        def forward(self, x):
            score = (x * slopes).sum(dim=(1, 2, 3))
            return torch.stack([score, -score], dim=1)

    adapter = ImageAdapter(Sum().double(), mean=(0.2, 0.4, 0.6), std=(0.5, 0.2, 0.25), size=(8, 12))
    picture = np.random.RandomState(6).randint(0, 256, size=(8, 12, 3)).astype(np.uint8)
    labels = np.arange(1, 97).reshape(8, 12) // 9  # crosswise over rows, of unequal size
    x = adapter.encode(picture, features=labels, baselines=0)
    lime = LimeImage(adapter, model_regressor=LinearRegression())
    found = explanation_weights(lime.explain(x, 0, num_samples=400, output="logits"))
    removed = picture / 255 / np.array([0.5, 0.2, 0.25])  # the means drop out
    added = (torch.from_numpy(removed).permute(2, 0, 1) * slopes).sum(dim=0).numpy()
    truth = {k: added[labels == label].sum() for k, label in enumerate(np.unique(labels))}
    assert found == pytest.approx(truth, abs=1e-3)
