"""Layer methods over embedded ids and categories, and gradients with respect to categories, which there are not."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import SequenceAdapter, TabularAdapter, TextAdapter, WordTokenizer, compare
from captum_attn_lime.errors import InputError, SelectionError
from tests.models.text import bert

pytestmark = [  # Captum's own, at every call
    pytest.mark.filterwarnings("ignore:Setting forward"),
    pytest.mark.filterwarnings("ignore:Input Tensor"),
    pytest.mark.filterwarnings("ignore:Multiple layers"),
]
RANDOM = np.random.RandomState(0)
ROWS = np.column_stack([RANDOM.normal(size=80), RANDOM.randint(0, 3, 80), RANDOM.randint(0, 3, 80)])
NAMES = ["age", "kind", "town"]
TEXTS = ["a dull but fine film", "no more"]


def table(codes=(0.0, 5.0, -5.0)) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(codes)[:, None])


class Apart(nn.Module):
    """A table of embeddings for each column; effects add up."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.town = table(), table((1.0, 2.0, 4.0))

    def forward(self, x_num, x_cat):
        return x_num + self.kind(x_cat[:, 0]) + 2 * self.town(x_cat[:, 1])


class Counted(nn.Module):
    """One table for all columns, whose categories count on from column to column."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table((0.0, 5.0, -5.0, 2.0, 4.0, 8.0))

    def forward(self, x_cat, x_num):
        return x_num + self.table(x_cat + torch.tensor([0, 3])).sum(dim=1)


class Inside(nn.Module):
    """One tensor, of which the model itself makes ids."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = table()

    def forward(self, x):
        return torch.relu(x[:, :1]) + self.kind(x[:, 1].long())


class AsNumbers(nn.Module):
    def forward(self, x):
        return x[:, :1] + 3 * x[:, 1:2]


def adapter_of(model: nn.Module) -> TabularAdapter:
    return TabularAdapter(
        model, training_data=ROWS, categorical_features=["kind", "town"], feature_names=NAMES, task="regression"
    )


def scores_of(method, x, **options) -> dict:
    return compare({"m": method}, x, target=0, **options).scores["m"].to_dict()


@pytest.fixture(scope="module")
def texts() -> TextAdapter:
    return TextAdapter(bert(), WordTokenizer.fit(TEXTS))


@pytest.mark.parametrize("model", [Apart(), Counted()])
def test_layers_that_embed_categories_are_found_and_say_what_ablation_says(model):
    a = adapter_of(model)
    x = a.encode([0.5, 1, 2])
    ablation = scores_of(captum.attr.FeatureAblation(a), x)
    for method in (captum.attr.LayerIntegratedGradients, captum.attr.LayerDeepLift, captum.attr.LayerFeatureAblation):
        layers = a.embeddings
        if method is not captum.attr.LayerIntegratedGradients and len(layers) > 1:
            continue
        found = scores_of(method(a, layers if len(layers) > 1 else a.embedding), x)
        assert np.isnan(found["age"])  # it is not embedded
        assert found["kind"] == pytest.approx(ablation["kind"], abs=1e-4)
        assert found["town"] == pytest.approx(ablation["town"], abs=1e-4)


def test_one_layer_of_several_speaks_for_its_column():
    a = adapter_of(Apart())
    assert a.embeddings == [a.model.kind, a.model.town]
    with pytest.raises(SelectionError, match=r"2 layers; use adapter\.embeddings"):
        _ = a.embedding
    x = a.encode([0.5, 1, 2])
    found = scores_of(captum.attr.LayerFeatureAblation(a, a.model.town), x)
    assert np.isnan(found["kind"])
    assert found["town"] == pytest.approx(scores_of(captum.attr.FeatureAblation(a), x)["town"])


def test_layers_that_are_not_to_be_found():
    class Twice(Inside):
        def forward(self, x):
            return super().forward(x) + self.kind(x[:, 2].long())

    with pytest.raises(SelectionError, match="called several times"):
        _ = adapter_of(Twice()).embeddings
    with pytest.raises(SelectionError, match="none of the 0"):
        _ = adapter_of(AsNumbers()).embeddings
    with pytest.raises(SelectionError, match="training_data="):
        _ = TabularAdapter(Inside(), categorical_features=[1]).embedding


@pytest.mark.parametrize("name", ["IntegratedGradients", "Saliency", "InputXGradient", "DeepLift", "GradientShap"])
def test_gradients_with_respect_to_ids_are_refused(name, texts):
    for a, x in ((b := adapter_of(Apart()), b.encode([0.5, 1, 2])), (texts, texts.encode(TEXTS[0]))):
        for method in (getattr(captum.attr, name)(a), captum.attr.NoiseTunnel(getattr(captum.attr, name)(a))):
            with pytest.raises(InputError, match=f"{name} follows gradients.*FeatureAblation.*LayerIntegrated"):
                compare({"m": method}, x, target=0)
    a = adapter_of(Apart())
    x = a.encode([0.5, 1, 2])
    with pytest.raises(InputError, match="no whole numbers"):
        captum.attr.IntegratedGradients(a).attribute(x.inputs, x.baselines, target=0)
    alone = captum.attr.Saliency(a).attribute(x.inputs[0], additional_forward_args=x.inputs[1], target=0)
    assert alone.tolist() == [[1.0]]


@pytest.mark.parametrize("name", ["LayerConductance", "LayerGradientShap", "LayerDeepLiftShap", "InternalInfluence"])
def test_layer_methods_that_move_along_ids_name_those_that_do_not(name, texts):
    method = getattr(captum.attr, name)(texts, texts.embedding)
    with pytest.raises(InputError, match=f"{name} follows gradients along its inputs.*LayerDeepLift"):
        texts.encode(TEXTS[0]).arguments(method)


@pytest.mark.parametrize("name", ["Saliency", "InputXGradient", "DeepLift"])
def test_a_category_that_the_model_looks_up_has_no_gradient_rather_than_one_of_zero(name):
    a = adapter_of(Inside())
    found = scores_of(getattr(captum.attr, name)(a), a.encode([0.5, 1, 2]))
    assert np.isnan(found["kind"])
    assert found["town"] == 0  # the model does not read it
    assert found["age"] > 0.3


@pytest.mark.parametrize("name", ["IntegratedGradients", "GradientShap"])
def test_a_way_between_two_categories_is_refused(name):
    a = adapter_of(Inside())
    method = getattr(captum.attr, name)(a)
    for one in (method, captum.attr.NoiseTunnel(method)):
        with pytest.raises(InputError, match=r"'kind'.*FeatureAblation"):
            scores_of(one, a.encode([0.5, 1, 2]))
    # The baseline's own category leaves nothing between.
    own = a.encode([0.5, a.encode([0.5, 1, 2]).baselines[0, 1].item(), 2])
    assert np.isnan(scores_of(captum.attr.IntegratedGradients(a), own)["kind"])


def test_categories_taken_as_numbers_have_gradients():
    a = adapter_of(AsNumbers())
    assert scores_of(captum.attr.Saliency(a), a.encode([0.5, 1, 2])) == {"age": 1.0, "kind": 3.0, "town": 0.0}
    x = a.encode([0.5, 2, 2])
    expected = 3 * (2 - x.baselines[0, 1].item())
    assert scores_of(captum.attr.IntegratedGradients(a), x)["kind"] == pytest.approx(expected, abs=1e-4)


def test_perturbation_methods_see_no_difference():
    a, plain = adapter_of(Inside()), Inside()
    x = a.encode(ROWS[:4])
    np.testing.assert_array_equal(a(x.inputs), plain(x.inputs))
    found = scores_of(captum.attr.ShapleyValueSampling(a), a.encode([0.5, 1, 2]))
    assert found["kind"] == pytest.approx(scores_of(captum.attr.FeatureAblation(a), a.encode([0.5, 1, 2]))["kind"])


def test_series_that_hold_categories():
    sequences = np.stack([RANDOM.normal(size=(40, 3)), RANDOM.randint(0, 3, (40, 3))], axis=2)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.kind = table()

        def forward(self, x):
            return (x[..., 0] + self.kind(x[..., 1].long())[..., 0]).sum(dim=1)

    a = SequenceAdapter(Steps(), training_data=sequences, categorical_features=[1], task="regression")
    x = a.encode(sequences[0])
    saliency = scores_of(captum.attr.Saliency(a), x)
    assert np.isnan([saliency[f"1_t-{k}"] for k in range(3)]).all()
    assert [saliency[f"0_t-{k}"] for k in range(3)] == [1.0] * 3
    ablation, layer = captum.attr.FeatureAblation(a), captum.attr.LayerFeatureAblation(a, a.embedding)
    both = compare({"inputs": ablation, "layer": layer}, x, target=0).scores
    np.testing.assert_allclose(both["layer"][3:], both["inputs"][3:], atol=1e-4)
    assert both["layer"][:3].isna().all()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_layer_ablation_of_words_runs_once_a_word_and_equals_ablation_of_ids(texts, depth):
    x = texts.encode(TEXTS)
    layer = captum.attr.LayerFeatureAblation(texts, texts.embedding)
    method = layer
    for _ in range(depth):
        method = captum.attr.NoiseTunnel(method)
    arguments = x.arguments(method)
    assert {"layer_mask", "layer_baselines"} <= set(arguments)
    runs = []
    handle = texts.model.register_forward_hook(lambda *_: runs.append(1))
    found = layer.attribute(**arguments, target=1)
    handle.remove()
    ablation = captum.attr.FeatureAblation(texts)
    torch.testing.assert_close(found[..., 0], ablation.attribute(**x.arguments(ablation), target=1), check_dtype=False)
    assert len(runs) <= 5 + 3  # words, those of no word, and two to begin with
    one = texts.encode(TEXTS[0])
    scores = compare({"ids": ablation, "layer": layer}, one, target=1).scores
    np.testing.assert_allclose(scores["layer"], scores["ids"], atol=1e-6)


def test_what_layer_methods_take():
    a = adapter_of(Counted())
    x = a.encode(ROWS[:5])
    arguments = x.arguments(captum.attr.LayerFeatureAblation(a, a.embedding))
    assert arguments["layer_mask"].flatten().tolist() == [1, 2]  # one row stands for all
    assert arguments["layer_baselines"].shape == (1, 2, 1)
    permutation = captum.attr.LayerFeaturePermutation(a, a.embedding)
    assert "layer_baselines" not in x.arguments(permutation)
    other = captum.attr.LayerFeatureAblation(a, nn.Identity())
    assert set(x.arguments(other)) == {"inputs", "additional_forward_args"}


def test_baselines_that_are_drawn_are_not_those_of_other_examples():
    linear = TabularAdapter(nn.Linear(3, 1), training_data=ROWS)
    rows = linear.encode(ROWS[:3])
    for name in ("GradientShap", "DeepLiftShap"):
        method = getattr(captum.attr, name)(linear)
        found = method.attribute(**rows.arguments(method), target=0)
        expected = (rows.inputs - rows.baselines) * linear.model.weight
        torch.testing.assert_close(found, expected, check_dtype=False, atol=1e-4, rtol=1e-4)
    own = type(rows)(rows.inputs, (), rows.inputs / 2, rows.feature_mask, rows.feature_names, rows.rows)
    with pytest.raises(InputError, match="one at a time"):
        own.arguments(captum.attr.GradientShap(linear))
