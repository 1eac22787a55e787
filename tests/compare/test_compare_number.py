"""compare explains one number: the same class, unit and sign for all methods, or it raises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, FeatureAblation, IntegratedGradients, NoiseTunnel, Occlusion
from lime.lime_tabular import LimeTabularExplainer
from torch import nn

from captum_attn_lime import (
    AttentionAttribution,
    ImageAdapter,
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
    compare,
)
from captum_attn_lime.adapters import WordTokenizer
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime import word_weights

ROWS = np.random.RandomState(0).normal(size=(600, 2))
NAMES = ["no", "yes"]


def table(columns=1, **options):
    net = nn.Linear(2, columns, bias=False).requires_grad_(False)
    net.weight[:] = torch.tensor([[2.0, -1.0]]) if columns == 1 else torch.tensor([[0.5, 0.0], [2.0, -1.0]])
    return TabularAdapter(net, training_data=ROWS, feature_names=["up", "down"], class_names=NAMES, **options)


@pytest.mark.parametrize("row", [[1.0, 1.0], [-1.0, 1.0]])
@pytest.mark.parametrize("target", [None, 0, 1, "no", "yes", np.int64(0)])
@pytest.mark.parametrize("columns", [1, 2])
def test_gradients_and_lime_of_a_table(row, target, columns):
    adapter = table(columns)
    methods = {
        "IG": IntegratedGradients(adapter),
        "ablation": FeatureAblation(adapter),
        "LIME": LimeTabular(adapter, semantics="times_input"),
    }
    found = compare(methods, adapter.encode(row), target=target, signed=True)
    scores = found.scores
    index = (
        int(adapter.predict_proba(row).argmax())
        if target is None
        else NAMES.index(str(target))
        if isinstance(target, str)
        else int(target)
    )
    assert (found.explained.index, found.explained.unit) == (index, "logit")
    assert found.explained.is_predicted == (target is None)
    weight = adapter.model.weight.numpy()
    slopes = (weight[0] * (1 if index else -1)) if columns == 1 else weight[index]
    difference = slopes * (np.array(row) - ROWS.mean(axis=0))
    for name in methods:
        np.testing.assert_allclose(scores[name], difference, atol=0.05)


@pytest.mark.parametrize("target", [0, 1])
def test_a_probability_that_lime_explains_is_what_all_explain(target):
    adapter = table()
    row = [0.3, 0.2]
    lime = LimeTabular(adapter).explain(row, target, num_samples=1000)
    found = compare({"ablation": FeatureAblation(adapter), "LIME": lime}, adapter.encode(row))
    assert str(found.explained) == f"probability of class {NAMES[target]!r}: {lime.explained.value:.4g}"
    x = adapter.encode(row)
    p = [adapter.predict_proba(r)[0, target] for r in (row, [float(x.baselines[0, 0]), 0.2])]
    assert found.scores.loc["up", "ablation"] == pytest.approx(p[0] - p[1], abs=1e-6)
    logits = compare({"ablation": FeatureAblation(adapter)}, x, target=target, output="logits")
    assert abs(logits.scores.loc["up", "ablation"]) > abs(found.scores.loc["up", "ablation"])
    probability = compare({"ablation": FeatureAblation(adapter)}, x, target=target, output="probability")
    np.testing.assert_allclose(probability.scores["ablation"], found.scores["ablation"])
    with pytest.raises(InputError, match="output='logits' was given, but 'LIME'"):
        compare({"LIME": lime}, x, output="logits")


def test_explanations_of_two_numbers():
    adapter = table()
    lime, x = LimeTabular(adapter), adapter.encode(ROWS[0])
    of = {t: lime.explain(ROWS[0], t, num_samples=50) for t in (0, 1)}
    logit = lime.explain(ROWS[0], 1, num_samples=50, output="logits")
    with pytest.raises(InputError, match="two numbers"):
        compare({"a": of[0], "b": of[1]}, x)
    with pytest.raises(InputError, match="the probability of class 'yes', and 'b' the logit of class 'yes'"):
        compare({"a": of[1], "b": logit}, x)
    with pytest.raises(TargetError, match="class 0 was not explained"):
        compare({"b": of[1]}, x, target="no")
    both = lime.explain(ROWS[0], labels=NAMES, num_samples=50)
    for k, name in enumerate(NAMES):
        scores = compare({"both": both, "one": of[k]}, x, target=name).scores
        np.testing.assert_allclose(scores["both"], scores["one"])


def test_functions_that_explain_another_number_are_refused():
    adapter = table(2)
    x = adapter.encode(ROWS[0])
    lime = LimeTabular(adapter).explain(ROWS[0], 1, num_samples=50)
    with pytest.raises(InputError, match="'IG' runs another function"):
        compare({"IG": IntegratedGradients(adapter.model), "LIME": lime}, x)
    with pytest.raises(InputError, match="'IG' runs another function"):
        compare({"IG": IntegratedGradients(table(1).model), "ours": FeatureAblation(table(1))}, x, target=0)
    scores = compare(
        {"IG": IntegratedGradients(adapter.model), "ours": IntegratedGradients(adapter)}, x, target=1
    ).scores
    np.testing.assert_allclose(scores["IG"], scores["ours"], atol=1e-6)
    hidden = compare({"IG": IntegratedGradients(lambda z: adapter(z)), "ours": FeatureAblation(adapter)}, x, target=0)
    assert hidden.explained.index == 0


def test_a_tunnel_around_a_method_explains_the_same():
    adapter = table()
    x = adapter.encode([1.0, 0.5])
    method = NoiseTunnel(IntegratedGradients(adapter))
    scores = compare({"tunnel": method, "plain": IntegratedGradients(adapter)}, x, target=0, signed=True).scores
    assert np.sign(scores["plain"]).tolist() == [-1, 1]  # the logit of class 0 is -z
    assert np.sign(scores["tunnel"]).tolist() == [-1, 1]


def test_texts_series_and_pictures_of_one_logit():
    class Sum(nn.Module):
        def forward(self, x):
            return x.float().flatten(1).sum(dim=1, keepdim=True)

    series = SequenceAdapter(Sum(), training_data=np.random.RandomState(0).normal(size=(200, 2, 2)), class_names=NAMES)
    picture = ImageAdapter(Sum(), mean=0.5, std=0.5, size=4, patch_size=2, class_names=NAMES)
    words = nn.Embedding.from_pretrained(torch.tensor([[0.0], [0.0], [1.0], [-3.0], [0.5]]))

    class Bag(nn.Module):
        def forward(self, input_ids):
            return words(input_ids).sum(dim=1)

    text = TextAdapter(
        Bag(), WordTokenizer({"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3, "film": 4}), class_names=NAMES
    )
    image = np.random.RandomState(0).rand(4, 4, 3)
    sequence = [[1.0, -2.0], [0.5, 1.5]]
    cases = [
        (text, text.encode("good bad film"), LimeText(text).explain("good bad film", 0, num_samples=300)),
        (series, series.encode(sequence), LimeSequence(series).explain(sequence, 0, num_samples=1500)),
        (picture, picture.encode(image), LimeImage(picture).explain(picture.encode(image), 0, num_samples=200)),
    ]
    for adapter, x, lime in cases:
        found = compare({"ablation": FeatureAblation(adapter), "LIME": lime}, x, signed=True)
        assert found.agreement["spearman"].item() > 0.7
        assert found.explained.name == "no"
    occlusion = compare(
        {"occlusion": Occlusion(picture).attribute(cases[2][1].inputs, (3, 2, 2), target=0, strides=(3, 2, 2))},
        cases[2][1],
    )
    assert occlusion.explained is None  # a tensor says nothing of what it explains


def test_lime_of_several_outputs_of_a_regression():
    net = nn.Linear(2, 2, bias=False).requires_grad_(False)
    net.weight[:] = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    adapter = TabularAdapter(net, training_data=ROWS, class_names=["rain", "wind"], task="regression")
    lime = LimeTabular(adapter, semantics="gradient")
    x = adapter.encode([0.5, 0.5])
    for k, name in enumerate(("rain", "wind")):
        explanation = lime.explain([0.5, 0.5], name, num_samples=2000)
        assert str(explanation.explained).startswith(f"prediction of output {name!r}")
        found = compare(
            {"explain": explanation, "attribute": lime, "ablation": FeatureAblation(adapter)}, x, target=name
        )
        np.testing.assert_allclose(found.scores["explain"], net.weight[k], atol=0.05)
        np.testing.assert_allclose(found.scores["attribute"], net.weight[k], atol=0.05)
    with pytest.raises(TargetError, match="2 numbers"):
        lime.explain([0.5, 0.5])


def test_an_official_explanation_is_of_a_probability():
    adapter = table(2)
    official = LimeTabularExplainer(ROWS, feature_names=["up", "down"], class_names=NAMES, random_state=0)
    lime = official.explain_instance(ROWS[0], adapter.predict_proba, num_samples=100)
    found = compare({"LIME": lime, "ablation": FeatureAblation(adapter)}, adapter.encode(ROWS[0]))
    assert found.explained.label == "probability of class 'yes'"
    regression = LimeTabularExplainer(ROWS, mode="regression", feature_names=["up", "down"], random_state=0)
    lime = regression.explain_instance(ROWS[0], lambda x: x[:, 0], num_samples=100)
    with pytest.raises(InputError, match="two numbers"):
        compare({"LIME": lime, "other": LimeTabular(adapter).explain(ROWS[0], num_samples=50)}, adapter.encode(ROWS[0]))


def test_attention_has_no_class_and_stands_beside_any():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 1)

        def forward(self, input_ids):
            return self.head(self.encoder(self.embed(input_ids)).mean(dim=1))

    adapter = TextAdapter(Model().eval(), WordTokenizer.fit(["a fine old film"]), class_names=NAMES)
    x = adapter.encode("a fine old film")
    lime = LimeText(adapter).explain("a fine old film", 1, num_samples=100)
    methods = {
        "rollout": AttentionAttribution(adapter),
        "of the model": AttentionAttribution(adapter.model),
        "relevance": AttentionAttribution(adapter, method="relevance"),
    }
    found = compare({**methods, "LIME": lime}, x)
    np.testing.assert_allclose(found.scores["rollout"], found.scores["of the model"], atol=1e-6)
    page = found.to_html()
    assert "Explained: probability of class &#39;yes&#39;" in page
    assert "raise the probability of class" in page


def test_what_is_not_an_encoding_or_not_one_text():
    adapter = TextAdapter(nn.Embedding(9, 2), WordTokenizer.fit(["a fine film"]))
    with pytest.raises(InputError, match=r"adapter's encode\(\), but is str"):
        compare({"a": [1.0]}, "a fine film")
    with pytest.raises(InputError, match="a list of 2; call it for each"):
        LimeText(adapter).explain(["a film", "a fine film"])


def test_functions_are_asked_what_they_give_out():
    adapter = table(2)
    x, model = adapter.encode([1.0, 0.5]), adapter.model
    probability = IntegratedGradients(lambda v: model(v).softmax(1))
    with pytest.raises(InputError, match="'IG' runs another function"):
        compare({"IG": probability, "ours": FeatureAblation(adapter)}, x, target=0)  # logits
    lime = LimeTabular(adapter).explain([1.0, 0.5], 0, num_samples=50)
    around = IntegratedGradients(lambda v: adapter(v).softmax(1))
    found = compare({"IG": probability, "around": around, "ours": IntegratedGradients(adapter), "LIME": lime}, x).scores
    np.testing.assert_allclose(found["IG"], found["ours"], atol=1e-5)
    np.testing.assert_allclose(found["around"], found["ours"], atol=1e-5)
    other = TabularAdapter(nn.Sequential(model, nn.Softmax(1)), training_data=ROWS, class_names=NAMES)
    with pytest.raises(InputError, match="'B' runs another function"):
        compare({"A": IntegratedGradients(adapter), "B": IntegratedGradients(other)}, x, target=0)


def test_a_plain_model_of_one_logit():
    adapter = table(1)
    x = adapter.encode([1.0, 0.5])
    methods = {"plain": IntegratedGradients(adapter.model), "ours": IntegratedGradients(adapter)}
    for target in (None, 1, "yes"):
        scores = compare(methods, x, target=target, signed=True).scores
        np.testing.assert_allclose(scores["plain"], scores["ours"], atol=1e-6)
    with pytest.raises(InputError, match="'plain' runs another function"):
        compare(methods, x, target=0)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")  # captum's own
def test_deep_lift_has_no_rule_for_the_adapters_softmax():
    adapter = table(2)
    x = adapter.encode([1.0, 0.5])
    x.inputs.requires_grad_()
    scores = compare({"DL": DeepLift(adapter), "IG": IntegratedGradients(adapter)}, x, target=1).scores
    np.testing.assert_allclose(scores["DL"], scores["IG"], atol=1e-6)  # the model is linear
    with pytest.raises(InputError, match="no rule for the step from logits"):
        compare({"DL": DeepLift(adapter)}, x, target=1, output="probability")


def test_methods_run_in_eval_mode_and_leave_batch_norm_as_it_was():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    adapter = TabularAdapter(model, training_data=ROWS)
    x = adapter.encode([1.0, 0.5])
    before = model[1].running_mean.clone()
    scores = compare({"IG": IntegratedGradients(adapter), "FA": FeatureAblation(adapter)}, x, target=1).scores
    assert model.training
    assert torch.equal(model[1].running_mean, before)
    calm = compare({"IG": IntegratedGradients(TabularAdapter(model.eval(), training_data=ROWS))}, x, target=1).scores
    np.testing.assert_allclose(scores["IG"], calm["IG"], atol=1e-6)


def test_a_model_that_writes_into_its_input():
    class Writes(nn.Module):
        def forward(self, x):
            x[:, 0] = 0
            return 3 * x[:, :2]

    adapter = TabularAdapter(Writes(), training_data=ROWS, task="regression")
    x = adapter.encode([[1.0, 2.0]])
    compare({"FA": FeatureAblation(adapter)}, x, target=1)
    LimeTabular(adapter).attribute(x.inputs, target=1, n_samples=30)
    assert x.inputs.tolist() == [[1.0, 2.0]]


def test_log_probabilities_are_called_so():
    model = nn.Sequential(table(2).model, nn.Softmax(1))
    adapter = TabularAdapter(model, training_data=ROWS, feature_names=["up", "down"], class_names=NAMES)
    x = adapter.encode([1.0, 0.5])
    lime = LimeTabular(adapter).explain([1.0, 0.5], "yes", num_samples=50, output="logits")
    found = compare({"LIME": lime, "FA": FeatureAblation(adapter)}, x, output="logits")
    assert found.explained.label == "log probability of class 'yes'"
    assert np.exp(found.explained.value) == pytest.approx(adapter.predict_proba([1.0, 0.5])[0, 1], rel=1e-5)
    alone = compare({"FA": FeatureAblation(adapter)}, x, target="yes", output="logits")
    np.testing.assert_allclose(alone.scores["FA"], found.scores["FA"])


def test_words_that_lime_did_not_select_have_no_value():
    words = nn.Embedding.from_pretrained(torch.tensor([[0.0], [0.0], [1.0], [-3.0], [0.5]]))

    class Bag(nn.Module):
        def forward(self, input_ids):
            return words(input_ids).sum(dim=1)

    adapter = TextAdapter(Bag(), WordTokenizer({"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3, "film": 4}))
    lime = LimeText(adapter).explain("good bad film", 1, num_samples=200, num_features=1)
    scores = compare({"LIME": lime, "FA": FeatureAblation(adapter)}, adapter.encode("good bad film")).scores["LIME"]
    assert scores.isna().tolist() == [True, False, True]
    own = adapter.encode("good bad film").words[0]
    assert word_weights(lime, own).tolist()[::2] == [0.0, 0.0]


def test_a_method_that_hides_its_function():
    class Hidden:
        """Explains whatever it was made with, and shows nothing of it."""

        def __init__(self, function):
            self.function = function

        def attribute(self, inputs, baselines=None, target=None):
            return IntegratedGradients(self.function).attribute(inputs, baselines, target)

    adapter = table(2)
    x = adapter.encode([1.0, 0.5])
    lime = LimeTabular(adapter).explain([1.0, 0.5], 1, num_samples=50)
    scores = compare({"hidden": Hidden(adapter), "ours": IntegratedGradients(adapter), "LIME": lime}, x).scores
    np.testing.assert_allclose(scores["hidden"], scores["ours"])
    with pytest.raises(InputError, match="'hidden' runs another function"):
        compare({"hidden": Hidden(adapter.model), "ours": IntegratedGradients(adapter), "LIME": lime}, x)
    with pytest.raises(InputError, match="'hidden' runs another function"):
        compare({"hidden": Hidden(adapter.model), "LIME": lime}, x)  # a probability, and nobody to ask
    plain = compare({"hidden": Hidden(adapter.model), "ours": IntegratedGradients(adapter)}, x, target=1).scores
    np.testing.assert_allclose(plain["hidden"], plain["ours"])
