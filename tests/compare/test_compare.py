"""compare: every form of attribution on the same features, and every misfit refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import FeatureAblation, LayerIntegratedGradients
from torch import nn

from captum_attn_lime import (
    AttentionAttribution,
    LimeTabular,
    LimeText,
    TabularAdapter,
    TextAdapter,
    WordTokenizer,
    compare,
)
from captum_attn_lime.adapters import Encoding
from captum_attn_lime.errors import InputError, TargetError
from tests.families import HandWritten

TEXT = "A fine film, a fine cast!"


@pytest.fixture(scope="module")
def adapter():
    torch.manual_seed(0)
    return TextAdapter(HandWritten().eval(), WordTokenizer.fit([TEXT]))


@pytest.fixture(scope="module")
def x(adapter):
    return adapter.encode(TEXT)


@pytest.fixture(scope="module")
def pieces():
    """Three words of one, two and two cells, and a special cell at each end (feature 3)."""
    mask = torch.tensor([[3, 0, 1, 1, 2, 2, 3]])
    ids = torch.arange(7)[None]
    return Encoding(ids, (), torch.zeros_like(ids), mask, (("good", "dull", "good"),))


def _values(numbers):
    return torch.tensor([numbers], dtype=torch.float32)


def test_cells_become_features(pieces):
    found = compare(
        {
            "per cell": _values([9, 1, 2, 3, 4, 5, 9]),
            "repeated": _values([9, 1, 2, 2, 4, 4, 9]),
            "embeddings": _values([9, 1, 2, 3, 4, 5, 9])[..., None] * torch.tensor([0.25, 0.75]),
            "features": [1.0, 2.0, 3.0],
            "array": np.array([[0, 1, 1, 0, 0, 2, 0]]),
        },
        pieces,
    )
    assert list(found.scores.index) == ["good", "dull", "good"]
    assert found.scores["per cell"].tolist() == [1, 5, 9]
    assert found.scores["repeated"].tolist() == [1, 2, 4]
    assert found.scores["embeddings"].tolist() == [1, 5, 9]
    assert found.scores["features"].tolist() == [1, 2, 3]
    assert found.scores["array"].tolist() == [1, 1, 2]
    assert len(found.agreement) == 10


def test_the_reading_can_be_said(pieces):
    repeated = _values([9, 1, 2, 2, 4, 4, 9])
    assert compare({"a": repeated}, pieces, reduction="sum").scores["a"].tolist() == [1, 4, 8]
    both = compare({"a": repeated, "b": repeated}, pieces, reduction={"b": "sum"}).scores
    assert both["a"].tolist() == [1, 2, 4]
    assert both["b"].tolist() == [1, 4, 8]


def test_a_vector_over_features_may_lack_values(pieces):
    words = np.array([1.0, np.nan, 3.0])
    words.flags.writeable = False  # as a column of a DataFrame is
    found = compare({"LIME": words, "other": [1.0, 2.0, 3.0]}, pieces, k=1)
    assert found.scores["LIME"].isna().tolist() == [False, True, False]
    assert found.agreement.loc[("LIME", "other"), "kendall_tau"] == 1.0


@pytest.mark.parametrize("target", [1, np.int64(1), torch.tensor(1), torch.tensor([1]), [1]])
def test_every_form_of_target_picks_the_class_of_an_explanation(adapter, x, target):
    explanation = LimeText(adapter).explain(TEXT, target=0, num_samples=50)
    with pytest.raises(TargetError, match="class 1 was not explained"):
        compare({"LIME": explanation}, x, target=target)


def test_methods_that_know_no_features_are_summed_also_where_tokens_agree(pieces):
    class PerCell:
        def attribute(self, inputs, target=None):
            return _values([9, 1, 2, 2, 4, 4, 9])

    class PerFeature(PerCell):
        def attribute(self, inputs, target=None, feature_mask=None):
            return super().attribute(inputs)

    embedded = _values([9, 1, 2, 2, 4, 4, 9])[..., None] * torch.tensor([0.25, 0.75])
    found = compare({"cell": PerCell(), "feature": PerFeature(), "embeddings": embedded}, pieces).scores
    assert found["cell"].tolist() == [1, 4, 8]
    assert found["feature"].tolist() == [1, 2, 4]
    assert found["embeddings"].tolist() == [1, 4, 8]
    asked = compare({"cell": PerCell()}, pieces, reduction="first").scores
    assert asked["cell"].tolist() == [1, 2, 4]


def test_uneven_cells_of_a_method_that_knows_features_are_read_once(pieces):
    class Noisy:
        def attribute(self, inputs, target=None, feature_mask=None):
            return _values([9, 1, 2, 2.0000002, 4, 4, 9])

    assert compare({"a": Noisy()}, pieces).scores["a"].tolist() == [1, 2, 4]


ROWS = np.stack([np.linspace(0, 4, 40), np.linspace(9, -9, 40), np.arange(40) % 3], axis=1)


@pytest.fixture
def table():
    torch.manual_seed(0)
    return TabularAdapter(
        nn.Linear(3, 2), training_data=ROWS, feature_names=["age", "pay", "city"], categorical_features=["city"]
    )


@pytest.mark.parametrize("ours", [True, False], ids=["LimeTabular", "official"])
@pytest.mark.parametrize("semantics", ["contrast", "gradient"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS[4], None),
        (ROWS[4] + [0.3, 0, 0], "its 'age' is 0.7.*, not 0.41"),
        (ROWS[4] + [0, 0, 1], "its 'city' is 2.*, not 1"),
    ],
    ids=["same", "number", "category"],
)
def test_an_explanation_of_another_row_is_refused(table, ours, semantics, row, message):
    from lime.lime_tabular import LimeTabularExplainer

    if ours:
        explanation = LimeTabular(table, semantics=semantics).explain(row, target=1, num_samples=50)
    else:
        explainer = LimeTabularExplainer(
            ROWS,
            feature_names=["age", "pay", "city"],
            categorical_features=[2],
            discretize_continuous=semantics == "contrast",
        )
        explanation = explainer.explain_instance(row, table.predict_proba, labels=(1,), num_samples=50)
    x = table.encode(ROWS[4])
    if message is None:
        assert not compare({"LIME": explanation}, x, target=1).scores.isna().any().any()
    else:
        with pytest.raises(InputError, match=f"'LIME' is of another row: {message}"):
            compare({"LIME": explanation}, x, target=1)


def test_rows_that_lime_shows_alike_are_told_apart(table):
    explanation = LimeTabular(table).explain(ROWS[4] + [0.0001, 0, 0], target=1, num_samples=50)
    with pytest.raises(InputError, match="of another row"):
        compare({"LIME": explanation}, table.encode(ROWS[4]), target=1)


def test_columns_of_an_explanation_must_be_those_of_the_row(table):
    x = table.encode(ROWS[4])
    other = TabularAdapter(nn.Linear(3, 2), training_data=ROWS, feature_names=["pay", "age", "city"])
    explanation = LimeTabular(other, categorical_features=["city"]).explain(ROWS[4], target=1, num_samples=50)
    with pytest.raises(InputError, match="column 0 is 'pay', not 'age'"):
        compare({"LIME": explanation}, x, target=1)
    numbered = TabularAdapter(table.model, training_data=ROWS, categorical_features=[2])
    explanation = LimeTabular(numbered, categorical_names={2: ["Bonn", "Oslo", "Rome"]}).explain(
        ROWS[4], target=1, num_samples=50
    )
    assert len(compare({"LIME": explanation}, x, target=1).scores) == 3
    named = LimeTabular(table).explain(ROWS[4], target=1, num_samples=50)
    assert len(compare({"LIME": named}, numbered.encode(ROWS[4]), target=1).scores) == 3
    narrow = TabularAdapter(nn.Linear(2, 2), training_data=ROWS[:, :2])
    short = LimeTabular(narrow).explain(ROWS[4, :2], target=1, num_samples=50)
    with pytest.raises(InputError, match="2 columns, not 3"):
        compare({"LIME": short}, x, target=1)


def test_options_are_checked_before_methods_run(pieces):
    class Slow:
        def attribute(self, inputs, target=None):
            raise RuntimeError("ran")

    for bad in ({"k": 0}, {"reduction": "mean"}):
        with pytest.raises(InputError):
            compare({"slow": Slow()}, pieces, **bad)


def test_progress_is_shown_on_request(pieces, capsys):
    seen = []

    class Method:
        def attribute(self, inputs, target=None, show_progress=False):
            seen.append(show_progress)
            return inputs.float()

    compare({"quiet": Method()}, pieces)
    assert capsys.readouterr().err == ""
    compare({"shown": Method()}, pieces, show_progress=True)
    assert "compare" in capsys.readouterr().err
    assert seen == [False, True]


def test_the_page_says_what_the_agreement_compares(pieces):
    given = {"a": [1.0, -2.0, 3.0], "b": [3.0, 2.0, 1.0]}
    page = compare(given, pieces, k=1).to_html()
    assert "compares magnitudes" in page
    assert "top-1 overlap of 0.33 on average" in page
    assert "with their signs" in compare(given, pieces, k=1, signed=True).to_html()
    assert "Random scores" not in compare(given, pieces, k=5).to_html()
    lacking = compare({**given, "c": [1.0, float("nan"), 2.0]}, pieces, k=1).to_html()
    assert "top-1 overlap of 0.33 to 0.50 (depending on the pair) on average" in lacking


def test_real_methods_side_by_side(adapter, x):
    ablation = FeatureAblation(adapter)
    lime = LimeText(adapter)
    explanation = lime.explain(TEXT, target=1, num_samples=200)
    found = compare(
        {
            "rollout": AttentionAttribution(adapter),
            "gradients": LayerIntegratedGradients(adapter, adapter.embedding),
            "ablation": ablation.attribute(**x.arguments(ablation), target=1),
            "LIME": explanation,
        },
        x,
        target=1,
    )
    assert list(found.scores.index) == ["A", "fine", "film", ",", "a", "fine", "cast", "!"]
    weights = dict(explanation.as_list(label=1))
    # lime tells "A" from "a" and divides a repeated word's weight over its places.
    assert found.scores["LIME"].iloc[[0, 2]].tolist() == pytest.approx([weights["A"], weights["film"]])
    assert found.scores["LIME"].iloc[[1, 5]].tolist() == pytest.approx([weights["fine"] / 2] * 2)
    assert found.scores["LIME"].iloc[[3, 7]].isna().all()
    assert found.scores["rollout"].to_numpy() == pytest.approx(
        AttentionAttribution(adapter).attribute(x.inputs, additional_forward_args=x.forward_args)[0].numpy(), abs=1e-6
    )
    assert isinstance(found.attributions["gradients"], torch.Tensor)
    assert found.is_text


def test_a_table():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.embed = HandWritten(), nn.Parameter(torch.randn(3, 32))

        def forward(self, rows):
            x = rows[:, :, None] * self.embed
            for layer in self.body.layers:
                x = x + layer(x, None)
            return self.body.head(x.mean(1))

    training = np.random.default_rng(0).normal(size=(40, 3))
    adapter = TabularAdapter(Rows().eval(), training_data=training, feature_names=["age", "income", "height"])
    x = adapter.encode(training[0])
    lime = LimeTabular(adapter, training, feature_names=["age", "income", "height"])
    found = compare(
        {"rollout": AttentionAttribution(adapter), "LIME": lime.explain(training[0], target=1, num_samples=200)},
        x,
        target=1,
    )
    assert list(found.scores.index) == ["age", "income", "height"]
    assert not found.scores.isna().any().any()
    assert not found.is_text
    assert found.plot(title="table").axes
    assert "income" in found.to_html()


def test_pictures_and_page(adapter, x, tmp_path):
    found = compare({"rollout": AttentionAttribution(adapter), "<i>zero</i>": torch.zeros_like(x.inputs).float()}, x)
    figure = found.plot(title="a $title$")
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    page = found.save_html(tmp_path / "page.html", title="<script>alert(1)</script>", prediction="a & b")
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;i&gt;zero" in text
    assert "a &amp; b" in text
    assert repr(found) == f"Comparison of rollout, <i>zero</i> over 8 features; {found.explained}"
    assert found.explained.is_predicted
    assert "<i>zero" not in found._repr_html_()


def test_one_method_has_nothing_to_agree_with(adapter, x):
    found = compare({"rollout": AttentionAttribution(adapter)}, x)
    assert found.agreement.empty
    assert found.plot().axes
    assert "How far" not in found.to_html()


@pytest.mark.parametrize(
    ("attributions", "message"),
    [
        ({}, "at least one"),
        ([torch.zeros(1, 7)], "mapping"),
        ({1: torch.zeros(1, 7)}, "names must be strings"),
        ({"a": torch.zeros(1, 6)}, r"shape \(1, 6\), but the input has shape \(1, 7\)"),
        ({"a": torch.zeros(2, 7)}, r"shape \(2, 7\)"),
        ({"a": (torch.zeros(1, 7), torch.zeros(1, 7))}, r"\(1, 7\), \(1, 7\)"),
        ({"a": torch.full((1, 7), float("nan"))}, "'a' contains NaN"),
        ({"a": [float("nan")] * 3}, "'a' contains NaN"),
        ({"a": [1.0, float("inf"), 0.0]}, "'a' contains NaN or infinite"),
        ({"a": FeatureAblation}, r"class FeatureAblation; pass an instance, FeatureAblation\(model\)"),
        ({"a": "words"}, "'a' is str"),
        ({"a": None}, "'a' is NoneType"),
    ],
)
def test_what_does_not_fit_is_refused(pieces, attributions, message):
    with pytest.raises(InputError, match=message):
        compare(attributions, pieces)


def test_options_that_do_not_fit_are_refused(adapter, x, pieces):
    zeros = torch.zeros(1, 7)
    with pytest.raises(InputError, match="holds 2; encode a single one"):
        compare({"a": zeros}, adapter.encode([TEXT, TEXT]))
    with pytest.raises(InputError, match="auto, sum, first"):
        compare({"a": zeros}, pieces, reduction="mean")
    with pytest.raises(InputError, match="names 'b'"):
        compare({"a": zeros}, pieces, reduction={"b": "sum"})
    with pytest.raises(InputError, match="k is the size"):
        compare({"a": zeros}, pieces, k=0)
    other = LimeText(adapter).explain("another fine film", target=1, num_samples=50)
    with pytest.raises(InputError, match="of another text: 'another fine film'"):
        compare({"LIME": other}, x, target=1)


def test_agreement_is_that_of_the_scores(pieces):
    found = compare({"a": [1.0, -2.0, 3.0], "b": [3.0, 2.0, 1.0]}, pieces, k=1)
    assert found.agreement.loc[("a", "b"), "spearman"] == pytest.approx(-1.0)
    signed = compare({"a": [1.0, -2.0, 3.0], "b": [3.0, 2.0, 1.0]}, pieces, k=1, signed=True)
    assert signed.agreement.loc[("a", "b"), "spearman"] == pytest.approx(
        pd.Series([2, 1, 3]).corr(pd.Series([3, 2, 1]))
    )


def test_relevance_stands_beside_the_others_and_is_that_of_the_class(adapter, x):
    def found(target):
        methods = {name: AttentionAttribution(adapter, method=name) for name in ("relevance", "rollout")}
        return compare({**methods, "ablation": FeatureAblation(adapter)}, x, target=target)

    first, second = found(0), found(1)
    assert not np.allclose(first.scores["relevance"], second.scores["relevance"], atol=1e-3)
    assert first.scores["rollout"].tolist() == second.scores["rollout"].tolist()
    method = AttentionAttribution(adapter, method="relevance")
    by_token = method.attribute(**{**x.arguments(method), "feature_mask": None}, target=1)[0]
    words = x.feature_mask[0]
    expected = [float(by_token[words == k].sum()) for k in range(len(second.scores))]
    np.testing.assert_allclose(second.scores["relevance"], expected, atol=1e-6)
