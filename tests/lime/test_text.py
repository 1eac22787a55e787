"""LimeText: the official explainer's numbers, from tensors and from raw texts."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lime.lime_text import LimeTextExplainer
from sklearn.linear_model import LinearRegression

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import ForwardError, InputError, TargetError, TextError, TruncationWarning
from captum_attn_lime.features import pool
from captum_attn_lime.lime import LimeText, explanation_weights, word_weights
from tests.families import build, hand_written
from tests.models import text as models


def bag(classes: int = 3) -> TextAdapter:
    torch.manual_seed(1)
    tokenizer = WordTokenizer.fit(models.CORPUS)
    return TextAdapter(models.BagOfWords(len(tokenizer), classes).eval(), tokenizer)


def bert_adapter(**options) -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(models.bert(**options), models.word_level_tokenizer())


@pytest.mark.parametrize("target", [0, 2])
def test_an_additive_model_gives_its_own_weights_like_captums_ablation(target):
    adapter = bag()
    x = adapter.encode("it isn't bad, it is good")
    lime = LimeText(adapter, model_regressor=LinearRegression())
    found = lime.attribute(**x.arguments(lime), target=target, n_samples=400)
    ablation = captum.attr.FeatureAblation(adapter)
    expected = ablation.attribute(**x.arguments(ablation), target=target)
    torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=0)
    # the ridge regression of official lime shrinks a little
    default = LimeText(adapter)
    near = default.attribute(**x.arguments(default), target=target, n_samples=2000)
    torch.testing.assert_close(near, found, atol=0.05, rtol=0.02)


def test_attribute_is_the_official_explainer_run_naively_on_masked_ids():
    adapter = bert_adapter()
    x = adapter.encode("it isn't bad, it is good")
    words = len(x.words[0])

    def classify(texts):  # slow: one forward pass a text, masks built cell by cell
        out = []
        for text in texts:
            kept = set(text.split())
            ids = x.inputs.clone()
            for cell in range(ids.shape[1]):
                feature = int(x.feature_mask[0, cell])
                if feature < words and f"word{feature}" not in kept:
                    ids[0, cell] = 4
            with torch.no_grad():
                out.append(adapter(ids, *x.forward_args)[0].double().numpy())
        return np.stack(out)

    explainer = LimeTextExplainer(random_state=5, feature_selection="none")
    text = " ".join(f"word{k}" for k in range(words))
    expected = explanation_weights(explainer.explain_instance(text, classify, labels=(2,), num_samples=150), 2)
    lime = LimeText(adapter, seed=5)
    found = pool(lime.attribute(**x.arguments(lime), target=2, n_samples=150), x.feature_mask, "first")[0]
    np.testing.assert_allclose(found[:words], [expected[k] for k in range(words)], atol=1e-5)


def test_special_and_padding_cells_are_exactly_zero_and_cells_share_their_word():
    adapter = bert_adapter()
    x = adapter.encode(["it isn't bad", "a fine film and a long one"])
    lime = LimeText(adapter)
    out = lime.attribute(**x.arguments(lime), target=1, n_samples=60)
    last = x.feature_mask == x.feature_mask.max()
    assert (out[last] == 0).all()
    assert (out[~last] != 0).all()
    assert out[0, 2] == out[0, 3] == out[0, 4]  # isn ' t
    assert out.shape == x.inputs.shape
    assert out.is_contiguous()
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    "target", [1, [0, 2], torch.tensor([0, 2]), torch.tensor(1), [(0,), (2,)], (1,)], ids=lambda t: type(t).__name__
)
def test_a_batch_is_its_examples_one_by_one(target):
    adapter = bert_adapter()
    x = adapter.encode(["it isn't bad", "a fine film and a long one"])
    lime = LimeText(adapter)
    arguments = x.arguments(lime)
    together = lime.attribute(**arguments, target=target, n_samples=40)
    for i, alone in enumerate([0, 2] if not isinstance(target, (int, tuple)) and _many(target) else [1, 1]):
        row = {k: v[i : i + 1] for k, v in arguments.items() if k != "additional_forward_args"}
        args = tuple(a[i : i + 1] for a in x.forward_args)
        one = lime.attribute(**row, additional_forward_args=args, target=alone, n_samples=40)
        torch.testing.assert_close(together[i : i + 1], one, atol=1e-5, rtol=0)


def _many(target) -> bool:
    return len(target) > 1 if isinstance(target, list) else target.numel() > 1


def test_tuples_of_tensors_with_a_shared_feature():
    weights = torch.tensor([1.0, 2.0, 4.0])

    def model(a, b, scale):
        return ((a * weights).sum(1) + 10 * b.sum(dim=(1, 2))) * scale

    inputs = (torch.ones(2, 3), torch.ones(2, 2, 2))
    masks = (torch.tensor([[0, 0, 1]]), torch.tensor([[[1], [2]]]))
    lime = LimeText(model, model_regressor=LinearRegression())
    scale = torch.tensor([1.0, -1.0])
    out = lime.attribute(inputs, feature_mask=masks, additional_forward_args=scale, n_samples=100)
    assert isinstance(out, tuple)
    expected = [[[3.0, 3.0, 24.0], [-3.0, -3.0, -24.0]], [[[24.0] * 2, [20.0] * 2], [[-24.0] * 2, [-20.0] * 2]]]
    for found, values in zip(out, expected, strict=True):
        torch.testing.assert_close(found, torch.tensor(values), atol=1e-3, rtol=0)
    flat = lime.attribute(
        inputs, feature_mask=masks, additional_forward_args=scale, n_samples=100, return_input_shape=False
    )
    torch.testing.assert_close(flat[0], torch.tensor([3.0, 24.0, 20.0]), atol=1e-3, rtol=0)


@settings(max_examples=15)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=6),
    st.floats(-2, 2, width=32),
    st.integers(1, 200),
)
def test_linear_models_are_recovered_whatever_the_baseline_and_the_batch(weights, base, batch):
    w = torch.tensor([weights])
    x = torch.full_like(w, 2.5)
    lime = LimeText(lambda x: (x * w).sum(1), model_regressor=LinearRegression())
    out = lime.attribute(x, baselines=base, n_samples=80, perturbations_per_eval=batch)
    torch.testing.assert_close(out, w * (x - base), atol=1e-3, rtol=1e-3)


def test_dropout_of_an_adapter_is_off_and_comes_back():
    tokenizer = WordTokenizer.fit(models.CORPUS)
    model = models.MaskedMean(len(tokenizer)).train()
    adapter = TextAdapter(model, tokenizer)
    x = adapter.encode("a fine film")
    lime = LimeText(adapter)
    one, two = (lime.attribute(**x.arguments(lime), target=0, n_samples=60) for _ in range(2))
    assert torch.equal(one, two)
    assert all(m.training for m in model.modules())


def test_equal_calls_give_equal_results_and_seeds_matter():
    adapter = bert_adapter()
    x = adapter.encode("it isn't bad, it is good")
    lime, other = LimeText(adapter), LimeText(adapter, seed=1)
    one, two = (lime.attribute(**x.arguments(lime), target=1, n_samples=50) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other.attribute(**x.arguments(other), target=1, n_samples=50))
    assert not torch.equal(one, lime.attribute(**x.arguments(lime), target=0, n_samples=50))


def test_each_distinct_mask_runs_once():
    seen = []

    def model(x):
        seen.append(len(x))
        return x.sum(1)

    LimeText(model).attribute(torch.ones(1, 3), n_samples=500, perturbations_per_eval=5)
    assert sum(seen[1:]) <= 8  # 2 to the 3
    assert max(seen) <= 5


def test_features_that_equal_their_baseline_are_zero_wherever_they_stand():
    lime = LimeText(lambda x: x.sum(1), model_regressor=LinearRegression())
    out = lime.attribute(torch.tensor([[0.0, 2.0, 0.0, 3.0]]), n_samples=50)
    torch.testing.assert_close(out, torch.tensor([[0.0, 2.0, 0.0, 3.0]]))


def test_nothing_to_remove_is_zero():
    assert LimeText(lambda x: x.sum(1)).attribute(torch.zeros(2, 3), n_samples=10).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(target=7), TargetError, "target 7"),
        (dict(target=None), TargetError, "does not select one number"),
        (dict(target=[0]), TargetError, "target"),
        (dict(target=1, n_samples=1), InputError, "n_samples"),
        (dict(target=1, perturbations_per_eval=0), InputError, "perturbations_per_eval"),
        (dict(target=1, baselines=torch.zeros(3, 9)), InputError, r"baseline \(3, 9\)"),
        (dict(target=1, baselines=(0, 0)), InputError, "one entry for each of the 1"),
        (dict(target=1, feature_mask=torch.zeros(1, 4)), InputError, "integer ids"),
        (dict(target=1, additional_forward_args=torch.zeros(3)), InputError, r"shape \(3,\)"),
    ],
)
def test_bad_arguments(options, error, message):
    def model(x, *args):
        return x[:, :2]

    with pytest.raises(error, match=message):
        LimeText(model).attribute(torch.ones(2, 4), **options)


def test_outputs_that_cannot_be_fitted():
    with pytest.raises(ForwardError, match="NaN"):
        LimeText(lambda x: x.sum(1).log()).attribute(torch.ones(1, 3), n_samples=20)
    with pytest.raises(ForwardError, match="not a tensor"):
        LimeText(lambda x: "no").attribute(torch.ones(1, 3))
    with pytest.raises(InputError, match="TextAdapter"):
        LimeText(lambda x: x).attribute("a text")


TEXT = "It isn't bad, it is not good; good good film (1.50)"


@pytest.mark.parametrize("make", [bert_adapter, bag], ids=["bert", "by_hand"])
@pytest.mark.parametrize("bow", [True, False])
def test_explain_is_lime_run_naively(make, bow):
    adapter = make()

    def naive(texts):  # one text at a time
        return np.concatenate([adapter.predict_proba([text]) for text in texts])

    options = dict(bow=bow) if bow else dict(bow=False, mask_string="film")
    official = LimeTextExplainer(random_state=3, feature_selection="none", **options)
    expected = official.explain_instance(TEXT, naive, labels=(1,), num_samples=120)
    found = LimeText(adapter, seed=3, **options).explain(TEXT, 1, num_samples=120)
    one, two = explanation_weights(expected, 1), explanation_weights(found, 1)
    assert one.keys() == two.keys()
    np.testing.assert_allclose([two[k] for k in one], list(one.values()), atol=1e-6)
    assert found.as_list(label=1)[0][0] == expected.as_list(label=1)[0][0]


def test_the_plain_way_works_too():
    adapter = bert_adapter()
    official = LimeTextExplainer(random_state=0, class_names=["a", "b", "c"])
    found = official.explain_instance(TEXT, adapter.predict_proba, num_samples=60, top_labels=1)
    assert explanation_weights(found)


def test_explain_takes_the_predicted_class_and_its_name():
    model = models.bert(id2label={0: "bad", 1: "so so", 2: "good"})
    adapter = TextAdapter(model, models.word_level_tokenizer())
    found = LimeText(adapter).explain(TEXT, num_samples=50)
    assert list(found.local_exp) == [int(adapter.predict_proba(TEXT).argmax())]
    assert found.class_names == ["bad", "so so", "good"]
    assert len(LimeText(adapter).explain(TEXT, num_samples=50, num_features=3).as_map().popitem()[1]) == 3


def test_explain_logits_of_one_and_of_several_columns():
    several = bag(3)
    lime = LimeText(several, model_regressor=LinearRegression())
    x = several.encode("a fine film")
    found = word_weights(lime.explain("a fine film", 2, output="logits", num_samples=300), x.words[0])
    table = several.model.table.weight.detach()
    np.testing.assert_allclose(found, table[x.inputs[0], 2], atol=0.01)  # additive: each word's own entry
    one = bag(1)
    up, down = (LimeText(one).explain(TEXT, c, output="logits", num_samples=60) for c in (1, 0))
    for k, w in explanation_weights(up).items():
        assert explanation_weights(down)[k] == pytest.approx(-w)


def test_only_what_the_model_sees_is_explained():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer(), max_length=6)
    with pytest.warns(TruncationWarning):
        found = LimeText(adapter).explain("it is not good film film", num_samples=50)
    assert found.domain_mapper.indexed_string.raw == "it is not good"


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("", {}, TextError, "empty"),
        ("!!", {}, TextError, "split_expression"),
        (TEXT, dict(target=3), TargetError, "target 3"),
        (TEXT, dict(target="good"), TargetError, "pass an int"),
        (TEXT, dict(output="odds"), InputError, "'odds'"),
        (TEXT, dict(num_samples=0), InputError, "num_samples"),
        (TEXT, dict(num_features=0), InputError, "num_features"),
    ],
)
def test_bad_calls_of_explain(text, options, error, message):
    with pytest.raises(error, match=message):
        LimeText(bert_adapter()).explain(text, **options)


def test_bad_constructors():
    with pytest.raises(InputError, match="mask_string"):
        LimeText(bag(), mask_string="[MASK]")
    with pytest.raises(InputError, match="a function"):
        LimeText("model")
    with pytest.raises(InputError, match="needs raw texts"):
        LimeText(lambda x: x).explain("a film")


def test_progress_is_shown(capsys):
    LimeText(lambda x: x.sum(1)).attribute(torch.ones(2, 3), n_samples=20, show_progress=True)
    assert "40/40" in capsys.readouterr().err


def test_it_is_a_captum_perturbation_attribution():
    lime = LimeText(bag())
    assert isinstance(lime, captum.attr.PerturbationAttribution)
    assert (lime.get_name(), lime.multiplies_by_inputs) == ("Lime Text", True)
    assert hasattr(lime.attribute, "__wrapped__")


def test_minilm_explained_as_lime_does():
    model, tokenizer = models.minilm()
    adapter = TextAdapter(model, tokenizer)

    def naive(texts):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(batch["input_ids"], batch["attention_mask"]).softmax(1).numpy()

    official = LimeTextExplainer(random_state=0, feature_selection="none")
    expected = explanation_weights(official.explain_instance(TEXT, naive, num_samples=100), 1)
    found = explanation_weights(LimeText(adapter).explain(TEXT, 1, num_samples=100), 1)
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=1e-6)


@pytest.mark.parametrize("output", ["probability", "logits"])
def test_explain_shows_progress_when_asked(output, capsys):
    adapter = TextAdapter(build(hand_written).model, WordTokenizer.fit(["a fine film"]))
    quiet = LimeText(adapter).explain("a fine film", num_samples=40, output=output)
    assert capsys.readouterr().err == ""
    shown = LimeText(adapter).explain("a fine film", num_samples=40, output=output, show_progress=True)
    assert "texts: 100%" in capsys.readouterr().err
    assert shown.as_list(shown.available_labels()[0]) == quiet.as_list(quiet.available_labels()[0])
