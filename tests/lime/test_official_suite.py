"""What lime's own tests assert, asserted of our classes: cases of ours, the same assertions.

lime's tests of texts, tables, discretizers and segmentation each have their like here. Those that do not apply: sparse
rows and ``training_data_stats``, which LimeTabular does not take (tensors are dense, and training data are at hand);
the parameter filters of lime's wrapper of scikit-image and its ``has_arg``, which LimeImage does not use.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lime.discretize import DecileDiscretizer, EntropyDiscretizer, QuartileDiscretizer
from lime.lime_tabular import LimeTabularExplainer
from lime.lime_text import IndexedCharacters, IndexedString
from skimage import segmentation
from skimage.data import astronaut
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression
from sklearn.naive_bayes import MultinomialNB
from torch import nn

from captum_attn_lime import ImageAdapter, LimeImage, LimeTabular, LimeText, TabularAdapter, TextAdapter, WordTokenizer
from captum_attn_lime.lime import explanation_weights
from captum_attn_lime.lime._units import UnitText

IRIS = load_iris()
SYNTHETIC = make_classification(n_samples=1000, n_features=20, n_informative=2, n_redundant=2, random_state=10)
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


class Estimator(nn.Module):
    """A fitted estimator of scikit-learn as a model that gives logits: the logarithms of its probabilities."""

    def __init__(self, estimator):
        super().__init__()
        self.estimator = estimator

    def forward(self, x):
        found = self.estimator.predict_proba(x.double().numpy())
        return torch.from_numpy(np.log(found + 1e-12))


class Reviews(nn.Module):
    """Multinomial naive Bayes over TF-IDF, computed from token ids."""

    def __init__(self, vectorizer, bayes, words):
        super().__init__()
        column = vectorizer.vocabulary_
        self.register_buffer("column", torch.tensor([column.get(word, -1) for word in words]))
        self.register_buffer("idf", torch.from_numpy(vectorizer.idf_))
        self.register_buffer("slopes", torch.from_numpy(bayes.feature_log_prob_))
        self.register_buffer("prior", torch.from_numpy(bayes.class_log_prior_))

    def forward(self, input_ids, attention_mask):
        columns = self.column[input_ids].where(attention_mask.bool(), -1)
        counts = nn.functional.one_hot(columns + 1, len(self.idf) + 1).sum(dim=1)[:, 1:]
        found = nn.functional.normalize(counts * self.idf, dim=1)
        return found @ self.slopes.T + self.prior


@pytest.fixture(scope="module")
def reviews():
    """An adapter of a classifier of film reviews, and a long text of unseen ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import film_reviews

        table = film_reviews.load_reviews()
        del sys.modules["film_reviews"]
    train, test = table.iloc[:3000], table.iloc[3000:]
    tokenizer = WordTokenizer.fit(train["text"], pattern=r"\w+", lower=False)
    words = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.get)
    vectorizer = TfidfVectorizer(lowercase=False, token_pattern=r"\w+")
    bayes = MultinomialNB(alpha=0.01).fit(vectorizer.fit_transform(train["text"]), train["label"])
    adapter = TextAdapter(Reviews(vectorizer, bayes, words).eval(), tokenizer, class_names=["rotten", "fresh"])
    text = " ".join(test["text"][test["label"] == 1][:4])
    plain = bayes.predict_proba(vectorizer.transform([text]))
    np.testing.assert_allclose(adapter.predict_proba([text]), plain, atol=1e-6)
    return adapter, text


def test_a_text_has_as_many_features_as_asked_for(reviews):
    adapter, text = reviews
    found = LimeText(adapter).explain(text, 1, num_samples=1000, num_features=6)
    assert len(found.as_list()) == 6


def test_the_seed_decides_the_explanation_of_a_text(reviews):
    adapter, text = reviews
    first, again, other = (
        LimeText(adapter, seed=seed).explain(text, 1, num_samples=500, num_features=6) for seed in (10, 10, 20)
    )
    assert first.as_map() == again.as_map()
    assert first.as_map() != other.as_map()


def string_of(adapter, text, **options):
    lime = LimeText(adapter, **options)
    return lime.explain(text, 1, num_samples=5).domain_mapper.indexed_string


def starts(parts):
    return np.cumsum([0, *map(len, parts)])[:-1]


@pytest.mark.parametrize("bow", [True, False])
def test_the_units_of_a_text_are_limes(reviews, bow):
    text = "Please, take your time. Please"
    found, expected = string_of(reviews[0], text, bow=bow), IndexedString(text, bow=bow)
    parts = ["Please", ", ", "take", " ", "your", " ", "time", ". ", "Please"]
    assert list(found.as_np) == list(expected.as_np) == parts
    assert list(found.string_start) == list(expected.string_start) == list(starts(parts))
    assert list(found.inverse_vocab) == list(expected.inverse_vocab)
    assert found.inverse_vocab[:4] == ["Please", "take", "your", "time"]
    assert list(found.positions) == list(expected.positions)
    if bow:
        assert found.positions == [[0, 8], [2], [4], [6]]
    for removed in ([], [0], [1, 3], range(found.num_words())):
        assert found.inverse_removing(list(removed)) == expected.inverse_removing(list(removed))
    assert found.inverse_removing([]) == text


def pairs_of_letters(text):
    return [text[i : i + 2] for i in range(0, len(text), 2)]


def test_units_of_a_function_are_limes(reviews):
    text = "aabbccddaa"
    found = string_of(reviews[0], text, split_expression=pairs_of_letters)
    assert list(found.as_np) == ["aa", "bb", "cc", "dd", "aa"]
    assert list(found.string_start) == [0, 2, 4, 6, 8]
    assert (found.inverse_vocab, found.positions) == (["aa", "bb", "cc", "dd"], [[0, 4], [1], [2], [3]])


def test_nothing_removed_is_the_text_itself(reviews):
    text = "This is a good movie. This, it is a great movie."

    def words(text):
        return re.split(r"(?:\W+)|$", text)

    for options in (dict(split_expression=words), dict(), dict(features="word"), dict(features=re.compile(r"\w+"))):
        assert string_of(reviews[0], text, **options).inverse_removing([]) == text


@pytest.mark.parametrize("bow", [True, False])
def test_characters_as_units(bow):
    text = "Please, take your time"
    found = UnitText(text, [(i, i + 1) for i in range(len(text))], bow=bow)
    expected = IndexedCharacters(text, bow=bow)
    assert list(found.inverse_vocab) == list(expected.inverse_vocab)
    assert [list(np.ravel(p)) for p in found.positions] == [list(np.ravel(p)) for p in expected.positions]
    assert list(found.string_start) == list(range(len(text)))


@pytest.fixture(scope="module")
def forest():
    return RandomForestClassifier(n_estimators=60, random_state=0).fit(IRIS.data[::2], IRIS.target[::2])


@pytest.fixture(scope="module")
def flowers(forest):
    return TabularAdapter(
        Estimator(forest).double(),
        training_data=IRIS.data[::2],
        feature_names=IRIS.feature_names,
        class_names=list(IRIS.target_names),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(model_regressor=LinearRegression()),
        dict(discretizer="entropy", training_labels=IRIS.target[::2]),
    ],
    ids=["ridge", "least squares", "entropy"],
)
@pytest.mark.parametrize("flower", [1, 63, 117])  # one of each kind that the forest has not seen
def test_petals_tell_iris_flowers(flowers, options, flower):
    lime = LimeTabular(flowers, **options)
    found = lime.explain(IRIS.data[flower], int(IRIS.target[flower]), num_features=2)
    names = " and ".join(name for name, _ in found.as_list(label=int(IRIS.target[flower])))
    assert names.count("petal width") == 1
    assert names.count("petal length") == 1


@pytest.fixture(scope="module")
def synthetic():
    rows, labels = SYNTHETIC
    forest = RandomForestClassifier(n_estimators=30, random_state=10).fit(rows, labels)
    names = [f"feature{i}" for i in range(20)]
    return TabularAdapter(Estimator(forest).double(), training_data=rows, feature_names=names)


def test_a_row_has_as_many_features_as_asked_for(synthetic):
    lime = LimeTabular(synthetic)
    assert len(lime.explain(SYNTHETIC[0][3], 1, num_samples=500, num_features=10).as_list()) == 10
    assert len(lime.explain(SYNTHETIC[0][3], 1, num_samples=500).as_list()) == 20


@pytest.mark.parametrize("kind", ["quartile", "decile", "entropy"])
def test_the_seed_decides_the_explanation_of_a_row(synthetic, kind):
    labels = SYNTHETIC[1] if kind == "entropy" else None

    def found(seed):
        lime = LimeTabular(synthetic, discretizer=kind, training_labels=labels, seed=seed)
        return lime.explain(SYNTHETIC[0][3], 1, num_samples=300).as_map()

    assert found(10) == found(10)
    assert found(10) != found(20)


@pytest.mark.parametrize("kind", [QuartileDiscretizer, DecileDiscretizer, EntropyDiscretizer])
@pytest.mark.parametrize(("seeds", "same"), [((10, 10), True), ((10, 20), False)])
def test_the_seed_of_a_discretizer_of_ones_own_is_not_the_samples(synthetic, kind, seeds, same):
    """As in lime: rows are drawn by the explainer's seed, and values within bins by the discretizer's."""
    rows, labels = SYNTHETIC
    found = []
    for seed in seeds:
        own = kind(rows, [], list(synthetic.feature_names), labels, random_state=seed)
        lime = LimeTabular(synthetic, discretizer=own, seed=10)
        found.append(lime.explain(rows[3], 1, num_samples=300).as_map())
    assert (found[0] == found[1]) is same


@pytest.mark.parametrize(("kind", "shares"), [("quartile", (25, 50, 75)), ("decile", range(10, 100, 10))])
def test_conditions_are_named_after_the_bins_of_the_training_rows(flowers, kind, shares):
    for flower in (0, 70, 120):
        found = LimeTabular(flowers, discretizer=kind).explain(IRIS.data[flower], 1, num_samples=50)
        names = dict(zip(found.as_map()[1], found.as_list(), strict=True))
        for (column, _), (name, _) in names.items():
            label = re.escape(IRIS.feature_names[column])
            low, high = re.fullmatch(rf"(?:(\S+) < )?{label}(?: <= (\S+))?(?: > \S+)?", name).groups()
            if " > " in name:
                low = name.rsplit(" ", 1)[1]
            edges = np.percentile(IRIS.data[::2, column], shares)
            value = IRIS.data[flower, column]
            below, above = edges[edges < value], edges[edges >= value]
            assert low == (f"{below.max():.2f}" if len(below) else None)
            assert high == (f"{above.min():.2f}" if len(above) else None)


def test_names_and_categorical_columns():
    rows = np.array([[0.0, 1.0], [1.0, 3.0], [1.0, 2.0]])

    def function(x):
        return x.sum(dim=1, keepdim=True)

    lime = LimeTabular(function, rows, categorical_features=[0, 1])
    assert (lime.feature_names, list(lime.categorical_features)) == (("0", "1"), [0, 1])
    lime = LimeTabular(function, rows, feature_names=["one", "two"], categorical_features=["one"])
    assert (lime.feature_names, list(lime.categorical_features)) == (("one", "two"), [0])


def test_categories_are_drawn_as_often_as_the_training_rows_have_them():
    rows = np.array([[0, 0, 2], [1, 1, 0], [0, 2, 2], [1, 3, 0]], dtype=float)
    seen = []

    class Sum(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.stack([x.sum(dim=1), -x.sum(dim=1)], dim=1).float()

    adapter = TabularAdapter(Sum(), training_data=rows, categorical_features=[0, 1, 2])
    LimeTabular(adapter).explain([0, 1, 2], 1, num_samples=4000)
    drawn = torch.cat(seen)[-4000:].numpy()
    expected = [{0: 0.5, 1: 0.5}, dict.fromkeys(range(4), 0.25), {0: 0.5, 2: 0.5}]
    for column, shares in enumerate(expected):
        values, counts = np.unique(drawn[:, column], return_counts=True)
        assert set(values) == set(shares)
        np.testing.assert_allclose(counts / 4000, [shares[v] for v in values], atol=0.03)


def test_rows_agree_with_the_plain_explainer(forest, flowers):
    explainer = LimeTabularExplainer(
        IRIS.data[::2], feature_names=IRIS.feature_names, random_state=7, feature_selection="none"
    )
    plain = explainer.explain_instance(IRIS.data[63], forest.predict_proba, labels=(1,), num_samples=800)
    found = LimeTabular(flowers, seed=7).explain(IRIS.data[63], 1, num_samples=800)
    assert explanation_weights(found) == pytest.approx(explanation_weights(plain), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("quickshift", dict(kernel_size=4, max_dist=200, ratio=0.2, rng=133)), ("slic", {}), ("felzenszwalb", {})],
)
def test_segments_are_those_of_scikit_image(name, options):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    adapter = ImageAdapter(model, mean=(0.5,) * 3, std=(0.25,) * 3, size=(48, 48))
    picture = astronaut()[100:148, 150:198]
    expected = getattr(segmentation, name)(picture, **options)
    found = LimeImage(adapter).explain(adapter.encode(picture, features=name, seed=133), 0, num_samples=20)
    np.testing.assert_array_equal(found.segments, np.unique(expected, return_inverse=True)[1].reshape(48, 48))
    assert len(explanation_weights(found)) == len(np.unique(expected))
