"""submodular_pick: the official picks over our explanations, against the paper's greedy algorithm by brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from lime.lime_text import LimeTextExplainer
from lime.submodular_pick import SubmodularPick
from torch import nn

from captum_attn_lime import global_view, submodular_pick
from captum_attn_lime.adapters import SequenceAdapter, TabularAdapter, TextAdapter, WordTokenizer
from captum_attn_lime.errors import InputError, TextError
from captum_attn_lime.lime import LimeImage, LimeSequence, LimeTabular, LimeText, explanation_weights
from tests.models import text as models

NAMES = ["age", "colour", "income"]


def texts(n: int = 12) -> list[str]:
    r = np.random.RandomState(0)
    words = sorted({word for text in models.CORPUS[:2] for word in text.replace(",", "").split()} | {"it", "is", "bad"})
    return [" ".join(r.choice(words, r.randint(3, 8))) for _ in range(n)]


def bag() -> TextAdapter:
    torch.manual_seed(1)
    tokenizer = WordTokenizer.fit([*models.CORPUS, "it is"])
    return TextAdapter(models.BagOfWords(len(tokenizer), 2).eval(), tokenizer)


def brute_force(rows: list[dict[str, float]], picks: int) -> list[int]:
    """Return Algorithm 2 of the paper, with sets and sums; of equal gains the last example."""
    importance: dict[str, float] = {}
    for name in {name for row in rows for name in row}:
        importance[name] = sum(abs(row.get(name, 0.0)) for row in rows) ** 0.5

    def covered(chosen: list[int]) -> float:
        names = {name for k in chosen for name, weight in rows[k].items() if weight != 0}
        return sum(importance[name] for name in names)

    picked: list[int] = []
    for _ in range(picks):
        rest = [k for k in range(len(rows)) if k not in picked]
        gains = {k: covered([*picked, k]) for k in rest}
        most = max(gains.values())
        picked.append(max(k for k in rest if gains[k] >= most - 1e-12))
    return picked


@pytest.mark.parametrize("features", [2, 10])
def test_picks_of_texts_are_the_papers(features):
    lime, given = LimeText(bag()), texts()
    found = submodular_pick(lime, given, picks=4, num_samples=100, num_features=features, target=1, seed=3)
    rows = []
    for text in given:
        explanation = lime.explain(text, 1, num_samples=100, num_features=features, seed=3)
        rows.append({str(name): weight for name, weight in explanation.as_list(label=1)})
        assert len(rows[-1]) <= features
    assert list(found.picked) == brute_force(rows, 4)
    expected = pd.DataFrame(rows).fillna(0.0)
    np.testing.assert_allclose(found.weights[expected.columns].to_numpy(), expected.to_numpy(), atol=1e-12)
    assert found.weights.shape == expected.shape
    importance = np.sqrt(expected.abs().sum())
    pd.testing.assert_series_equal(found.importance[expected.columns], importance, check_names=False)
    covered = [importance[(expected.iloc[list(found.picked[:k])] != 0).any()].sum() for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(found.coverage, np.array(covered) / importance.sum())
    assert found.picked_explanations[0].as_list(label=1) == found.explanations[found.picked[0]].as_list(label=1)
    assert "4 of 12 explained examples" in repr(found)


def test_picks_are_those_of_the_official_classes_run_naively():
    adapter, given = bag(), texts()

    class Fresh:  # an official explainer whose random numbers start anew for each text
        def explain_instance(self, text, function, **options):
            explainer = LimeTextExplainer(random_state=0)
            return explainer.explain_instance(text, function, num_samples=200, **options)

    official = SubmodularPick(Fresh(), given, adapter.predict_proba, method="full", num_exps_desired=3, num_features=4)
    found = submodular_pick(LimeText(adapter), given, picks=3, num_samples=200, num_features=4)
    assert list(found.picked) == official.V
    for ours, theirs in zip(found.explanations.values(), official.explanations, strict=True):
        label = theirs.available_labels()[0]
        a, b = dict(ours.as_list(label=label)), dict(theirs.as_list(label=label))
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[k] for k in b], list(b.values()), atol=1e-6)


def test_the_seed_decides_and_numpys_own_state_stays():
    lime, given = LimeText(bag()), texts()

    def run(seed, state):
        np.random.seed(state)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        found = submodular_pick(lime, given, picks=2, sample=6, num_samples=50, seed=seed)
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
        return found

    a, b, c = run(0, 1), run(0, 2), run(5, 1)
    assert a.picked == b.picked
    pd.testing.assert_frame_equal(a.weights, b.weights)
    assert len(a.explanations) == len(set(a.explanations)) == 6
    assert set(a.picked) <= set(a.explanations)
    assert list(a.explanations) != list(c.explanations)
    # the numbers are those of the examples, not of the draw
    for number, explanation in a.explanations.items():
        assert explanation.domain_mapper.indexed_string.raw == given[number]
    assert run(None, 1).picked == a.picked  # the explainer's own seed is 0


class Rows(nn.Module):
    def forward(self, x):
        score = 0.1 * x[:, 0] + 3.0 * (x[:, 1] == 1) - x[:, 2] ** 2
        return torch.stack([score, -score], dim=1)


def table(n: int = 60) -> np.ndarray:
    r = np.random.RandomState(0)
    return np.stack([r.normal(40, 10, n), r.randint(0, 3, n), r.normal(0, 2, n)], axis=1)


@pytest.mark.parametrize("form", ["array", "frame"])
def test_rows_are_picked_by_condition_and_viewed_by_column(form):
    frame = pd.DataFrame(table(), columns=NAMES)
    adapter = TabularAdapter(Rows(), training_data=frame, categorical_features=["colour"])
    lime = LimeTabular(adapter)
    given = frame[:10] if form == "frame" else table()[:10]
    found = submodular_pick(lime, given, picks=3, num_samples=200, num_features=2, target=0)
    rows, by_column = [], {name: [] for name in NAMES}
    for k in range(10):
        explanation = lime.explain(table()[k], 0, num_samples=200, num_features=2)
        rows.append(dict(explanation.as_list(label=0)))
        for column, weight in explanation_weights(explanation, 0).items():
            by_column[NAMES[column]].append(abs(weight))
    assert list(found.picked) == brute_force(rows, 3)
    assert any("<" in name for name in found.weights.columns)
    for name in found.global_view.index:
        row = found.global_view.loc[name]
        assert row["mean"] == pytest.approx(np.mean(by_column[name]))
        assert row["sd"] == pytest.approx(np.std(by_column[name], ddof=1))
        assert row["count"] == len(by_column[name])
    assert sorted(found.global_view.index) == sorted(name for name in NAMES if by_column[name])
    assert found.global_view["mean"].is_monotonic_decreasing


def test_regression_over_sequences():
    class Model(nn.Module):
        def forward(self, x):
            return x[:, 0, 0] ** 2 - 2 * x[:, 2, 1]

    sequences = np.random.RandomState(0).normal(size=(80, 3, 2))
    adapter = SequenceAdapter(Model(), training_data=sequences, feature_names=["a", "b"], task="regression")
    found = submodular_pick(LimeSequence(adapter), sequences[:5], picks=2, num_samples=200, num_features=3)
    rows = [{str(n): w for n, w in e.as_list(label=1)} for e in found.explanations.values()]
    assert list(found.picked) == brute_force(rows, 2)
    assert set(found.global_view.index) <= {f"{s}_t-{k}" for s in "ab" for k in range(3)}
    assert found.global_view.index[0] == "b_t-0"


def test_pairs_of_texts_and_a_bar(capsys):
    torch.manual_seed(1)
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    pairs = [("a fine film", "it is good"), ("a dull cast", "it is bad"), ("good acting", "a long film")]
    options = dict(picks=1, num_samples=50, explained_text="second", target=0)
    found = submodular_pick(LimeText(adapter), pairs, show_progress=True, **options)
    assert set(found.weights.columns) == {"it", "is", "good", "bad", "a", "long", "film"}
    assert "submodular_pick: 100%" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"example 0 cannot be explained.*explained_text"):
        submodular_pick(LimeText(adapter), pairs, picks=1)


def test_what_cannot_be_picked_is_refused():
    lime, given = LimeText(bag()), texts(3)
    with pytest.raises(InputError, match=r"picks=4 exceeds the 3 explained example"):
        submodular_pick(lime, given, picks=4)
    with pytest.raises(InputError, match=r"picks=2 exceeds the 1 explained example"):
        submodular_pick(lime, given, picks=2, sample=1)
    with pytest.raises(InputError, match="picks must be a whole number"):
        submodular_pick(lime, given, picks=0)
    with pytest.raises(InputError, match=r"sequence of texts.* str"):
        submodular_pick(lime, "a fine film")
    with pytest.raises(InputError, match="examples share; got LimeImage"):
        submodular_pick(LimeImage(lambda x: x), given)
    with pytest.raises(TextError, match="example 1 cannot be explained"):
        submodular_pick(lime, ["a fine film", "", "bad"], picks=1, num_samples=20)


def test_global_view_by_hand():
    names = [("good", "film", "good", "it"), ("film", "it"), ("film",)]
    scores = [[0.5, 1.0, -0.2, np.nan], torch.tensor([-3.0, 0.25, 99.0], requires_grad=True), np.array([2])]
    view = global_view(scores, names)
    assert list(view.index) == ["film", "good", "it"]
    assert view.loc["film"].tolist() == pytest.approx([2.0, 1.0, 3])
    assert view.loc["good", "mean"] == pytest.approx(0.3)
    assert np.isnan(view.loc["good", "sd"])
    assert view["count"].tolist() == [3, 1, 1]


def test_global_view_of_rollout_over_a_batch_is_that_of_single_texts():
    from captum_attn_lime import AttentionAttribution, features

    torch.manual_seed(1)
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    given, rollout = texts(5), AttentionAttribution(adapter)
    x = adapter.encode(given)
    cells = rollout.attribute(**x.arguments(rollout))
    view = global_view(features.pool(cells, x.feature_mask, "first"), x.feature_names)
    collected: dict[str, list[float]] = {}
    for text in given:
        one = adapter.encode(text)
        scores = rollout.attribute(one.inputs, additional_forward_args=one.forward_args)[0]
        own: dict[str, float] = {}
        for cell, feature in enumerate(one.feature_mask[0].tolist()):
            if feature < len(one.words[0]):
                name = one.feature_names[0][feature]
                own[name] = own.get(name, 0.0) + float(scores[cell])
        for name, value in own.items():
            collected.setdefault(name, []).append(value)
    assert set(view.index) == set(collected)
    for name, values in collected.items():
        assert view.loc[name, "mean"] == pytest.approx(np.mean(values), rel=1e-4)
        assert view.loc[name, "count"] == len(values)


def test_global_view_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="names must hold"):
        global_view([[1.0]], ["a", "b"])
    with pytest.raises(InputError, match="names must hold"):
        global_view([[1.0]], ["a"])
    with pytest.raises(InputError, match="example 0 has 2 features, but 1 scores"):
        global_view([[1.0]], [("a", "b")])
    with pytest.raises(InputError, match="infinite"):
        global_view([[np.inf]], [("a",)])
    with pytest.raises(InputError, match=r"shape \(2, 3\).*features.pool"):
        global_view(torch.zeros(1, 2, 3), [("a",)])
    with pytest.raises(InputError, match="no scores"):
        global_view([], [])
    with pytest.raises(InputError, match="must be numbers"):
        global_view([["x"]], [("a",)])
