"""LimeImage: the official explainer's weights without its images, and what the official explainer gets wrong."""

from __future__ import annotations

import io
import pickle
import threading
from contextlib import redirect_stderr

import captum.attr
import numpy as np
import pytest
import torch
from lime.lime_image import ImageExplanation, LimeImageExplainer
from skimage.segmentation import slic
from sklearn.linear_model import LinearRegression
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from captum_attn_lime import AttentionAttribution, LimeText, compare
from captum_attn_lime.adapters import ImageAdapter
from captum_attn_lime.errors import ForwardError, InputError, TargetError
from captum_attn_lime.lime import LimeExplanation, LimeImage, explanation_weights
from captum_attn_lime.lime._draws import image_masks

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def picture(height: int = 32, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return (np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(9 * x * y)], axis=2) * 120 + 125).astype(np.uint8)


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    config = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32)
    return ViTForImageClassification(ViTConfig(**config, patch_size=8, num_labels=3, initializer_range=0.5, **options))


def adapter(model: nn.Module | None = None, **options) -> ImageAdapter:
    return ImageAdapter((vit() if model is None else model).eval(), **{"mean": MEAN, "std": STD, **options})


def naive(a: ImageAdapter, image: np.ndarray, labels: np.ndarray, *, target: int = 1, seed: int = 0, **options):
    """The official explainer as its users call it, over images, with a classifier function of its own."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))

    def classify(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            out = a.model((x / 255 if images.dtype == np.uint8 else x).sub(mean).div(std))
        return getattr(out, "logits", out).softmax(dim=1).numpy()

    explainer = LimeImageExplainer(random_state=seed, **options.pop("explainer", {}))
    with redirect_stderr(io.StringIO()):
        return explainer.explain_instance(
            image, classify, labels=(target,), top_labels=None, segmentation_fn=lambda _: labels, **options
        )


grid = np.arange(32)[:, None] // 8 * 4 + np.arange(32) // 8


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, {}),
        ({"hide_color": 0}, {"baselines": 0}),
        ({"hide_color": (9, 99, 199)}, {"baselines": (9, 99, 199)}),
        ({"num_samples": 333, "batch_size": 7}, {"num_samples": 333}),
        ({"num_features": 4}, {"num_features": 4}),
        ({"explainer": {"kernel_width": 1.5}, "distance_metric": "euclidean"}, {}),
        ({"model_regressor": LinearRegression()}, {}),
    ],
)
@pytest.mark.parametrize("labels", [grid, slic(picture(), n_segments=9, start_label=0)], ids=["patches", "slic"])
def test_weights_are_those_of_the_official_explainer(labels, options, ours):
    a, ours = adapter(), dict(ours)
    width = options.get("explainer", {}).get("kernel_width", 0.25)
    how = {k: options[k] for k in ("distance_metric", "model_regressor") if k in options}
    shown = {k: ours.pop(k) for k in list(ours) if k != "baselines"}
    found = LimeImage(a, kernel_width=width, **how, seed=5).explain(
        a.encode(picture(), features=labels, **ours), 1, **shown
    )
    expected = naive(a, picture(), labels, seed=5, **options)
    assert set(found.local_exp) == {1}
    weights, official = explanation_weights(found, 1), explanation_weights(expected, 1)
    assert set(weights) == set(official)
    assert max(map(abs, official.values())) > 0.01
    assert max(abs(weights[k] - official[k]) for k in official) <= 1e-6
    assert abs(found.intercept[1] - expected.intercept[1]) <= 1e-6
    assert abs(found.score - expected.score) <= 1e-5
    np.testing.assert_allclose(found.local_pred, expected.local_pred, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_float_pictures(dtype):
    a = adapter()
    image = (picture() / 255).astype(dtype)
    found = explanation_weights(LimeImage(a).explain(image, 2))
    official = explanation_weights(naive(a, image, grid, target=2))
    assert max(abs(found[k] - official[k]) for k in official) <= 1e-6


def test_quickshift_is_limes_default_segmentation():
    a = adapter()
    found = LimeImage(a).explain(a.encode(picture(), features="quickshift"), 0, num_samples=100)
    with redirect_stderr(io.StringIO()):
        official = LimeImageExplainer(random_state=0).explain_instance(
            picture(), a.predict_proba, labels=(0,), top_labels=None, num_samples=100
        )
    np.testing.assert_array_equal(found.segments, official.segments)
    weights, expected = explanation_weights(found), explanation_weights(official)
    assert max(abs(weights[k] - expected[k]) for k in expected) <= 1e-6


class ReadsCorner(nn.Module):
    """Class 1 by the mean of the last rows and columns alone."""

    def forward(self, x):
        z = x[:, :, -4:, -4:].mean(dim=(1, 2, 3))
        return torch.stack([-z, z], dim=1)


def test_segments_that_count_from_one_are_explained():
    # lime looks for the segments 0 to n - 1, so the last one of slic is never removed: here the only one that matters.
    a = adapter(ReadsCorner())
    labels = slic(picture(), n_segments=9)
    assert labels.min() == 1
    last = labels.max()
    labels = np.where(labels == labels[-1, -1], last + 1, np.where(labels > labels[-1, -1], labels - 1, labels))
    labels = np.where(labels > last, last, labels)
    assert labels[-1, -1] == last == len(np.unique(labels))
    plain = naive(a, picture(), labels)
    assert all(w == 0 for w in explanation_weights(plain).values())
    assert plain.score == 1.0
    found = LimeImage(a).explain(a.encode(picture(), features=labels), 1)
    weights = explanation_weights(found)
    assert found.segments.min() == 0
    corner = found.segments[-1, -1]
    assert abs(weights[corner]) > 20 * max(abs(w) for k, w in weights.items() if k != corner)
    assert found.score > 0.99
    # Any other numbers give the same.
    again = LimeImage(a).explain(a.encode(picture(), features=labels * 1000 - 5), 1)
    assert explanation_weights(again) == weights


class Additive(nn.Module):
    """Sum over the pixels of a weight for each segment; class 1 has twice that, and the opposite sign."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights[grid])

    def forward(self, x):
        z = (x * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([z, -2 * z], dim=1)


TRUE = torch.linspace(-1, 1, 16)


@pytest.mark.parametrize(("target", "factor"), [(0, 1.0), (1, -2.0), ([0, 1], None), (torch.tensor([1, 0]), None)])
def test_attribute_finds_the_weights_of_an_additive_model(target, factor):
    a = adapter(Additive(TRUE), patch_size=8)
    x = a.encode([picture(), picture()[::-1]], baselines="black")
    lime = LimeImage(a, model_regressor=LinearRegression())
    found = lime.attribute(**x.arguments(lime), target=target, n_samples=300)
    factors = [factor] * 2 if factor is not None else [[1.0, -2.0][int(t)] for t in target]
    for i in (0, 1):
        delta = (x.inputs[i] - x.baselines[i]).double().sum(dim=0).numpy()
        expected = np.array([float(TRUE[k]) * delta[grid == k].sum() for k in range(16)]) * factors[i]
        # Linear regression on a linear function: only float32 sums of 3,072 cells are rounded.
        np.testing.assert_allclose(found[i, 0].numpy(), expected[grid], atol=1e-4 * np.abs(expected).max())
        assert torch.equal(found[i, 0], found[i, 2])
    assert found.is_contiguous()
    vector = lime.attribute(**x.arguments(lime), target=target, n_samples=300, return_input_shape=False)
    assert vector.shape == (2, 16)


def test_ridge_is_near_the_weights_of_an_additive_model():
    a = adapter(Additive(TRUE), patch_size=8)
    x = a.encode(picture(), baselines="black")
    found = LimeImage(a).attribute(x.inputs, x.baselines, 0, None, x.feature_mask, 1000)
    delta = (x.inputs[0] - x.baselines[0]).sum(dim=0).double().numpy()
    expected = np.array([float(TRUE[k]) * delta[grid == k].sum() for k in range(16)])[grid]
    # lime's ridge pulls to zero: its kernel leaves the samples little weight (0.25 against distances of about 0.3).
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=0.05 * np.abs(expected).max())


def test_segments_that_already_look_like_the_baseline():
    a = adapter(Additive(TRUE), patch_size=8)
    image = picture()
    image[8:16, 8:16] = 0
    x = a.encode(image, baselines="black")
    found = LimeImage(a).attribute(x.inputs, x.baselines, 0, None, x.feature_mask, 100)
    assert (found[0, :, 8:16, 8:16] == 0).all()
    # explain keeps them, as lime does, and draws the same random numbers
    weights = explanation_weights(LimeImage(a).explain(x, 0, num_samples=100))
    expected = explanation_weights(naive(a, image, grid, target=0, num_samples=100, hide_color=0))
    assert max(abs(weights[k] - expected[k]) for k in expected) <= 1e-6
    assert LimeImage(a).attribute(x.baselines, x.baselines, 0, None, x.feature_mask, 100).abs().sum() == 0


def test_pixels_of_no_patch_are_left_alone():
    seen = []

    class Keeps(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x.mean(dim=(1, 2, 3))[:, None]

    a = adapter(Keeps(), patch_size=8)
    x = a.encode(picture(32, 35))
    lime = LimeImage(a)
    found = lime.attribute(**x.arguments(lime), n_samples=20)
    assert (found[..., 32:] == 0).all()
    explanation = lime.explain(x, 1, num_samples=20)
    assert set(explanation_weights(explanation)) == set(range(16))
    assert explanation.segments.max() == 16
    assert all(torch.equal(part[..., 32:], x.inputs[..., 32:].expand(len(part), -1, -1, -1)) for part in seen)


def test_the_explanation_is_limes_own_and_shows_the_picture():
    a = adapter(size=32)
    image = picture(64, 48)
    found = LimeImage(a).explain(image, 1, num_samples=200)
    assert isinstance(found, ImageExplanation)
    assert isinstance(found, LimeExplanation)
    assert found.as_list()[0] == (found.feature_names[found.local_exp[1][0][0]], found.local_exp[1][0][1])
    assert "LIME of the probability of class" in found.as_html()
    np.testing.assert_array_equal(found.image, a.images(image)[0])
    assert found.top_labels == [1]
    best = found.local_exp[1][0][0]
    shown, mask = found.get_image_and_mask(1, positive_only=False, num_features=1)
    np.testing.assert_array_equal(mask != 0, found.segments == best)
    assert shown.shape == (32, 32, 3)
    pickle.loads(pickle.dumps(found)).get_image_and_mask(1)
    # The class that the model predicts is explained by default, and none of the five that lime adds.
    predicted = int(a.predict_proba(image)[0].argmax())
    assert list(LimeImage(a).explain(image, num_samples=50).local_exp) == [predicted]


def test_logits_and_single_outputs():
    z = Additive(TRUE)
    one = nn.Sequential(z, nn.Flatten())
    single = adapter(type("Single", (nn.Module,), {"forward": lambda self, x: one(x)[:, :1]})(), patch_size=8)
    lime = LimeImage(single, model_regressor=LinearRegression())
    x = single.encode(picture(), baselines="black")
    down, up = (explanation_weights(lime.explain(x, k, num_samples=200, output="logits")) for k in (0, 1))
    delta = (x.inputs[0] - x.baselines[0]).sum(dim=0).double().numpy()
    expected = np.array([float(TRUE[k]) * delta[grid == k].sum() for k in range(16)])
    np.testing.assert_allclose([up[k] for k in range(16)], expected, atol=1e-4 * np.abs(expected).max())
    assert max(abs(up[k] + down[k]) for k in up) < 1e-9 * np.abs(expected).max() + 1e-12


def test_multi_label_models_are_explained_class_by_class():
    a = adapter(vit(problem_type="multi_label_classification"))

    def classify(images):
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).sub(torch.tensor(MEAN).reshape(3, 1, 1))
        with torch.no_grad():
            return a.model(x.div(torch.tensor(STD).reshape(3, 1, 1))).logits.sigmoid().numpy()

    with redirect_stderr(io.StringIO()):
        official = LimeImageExplainer(random_state=0).explain_instance(
            picture(), classify, labels=(2,), top_labels=None, segmentation_fn=lambda _: grid
        )
    expected = explanation_weights(official)
    found = explanation_weights(LimeImage(a).explain(picture(), 2))
    assert max(map(abs, expected.values())) > 0.01
    assert max(abs(found[k] - expected[k]) for k in expected) <= 1e-6


def test_equal_calls_give_equal_results_and_seeds_matter():
    a = adapter()
    x = a.encode(picture())
    lime = LimeImage(a, seed=3)
    state = np.random.get_state()[1].copy()  # noqa: NPY002  # what lime uses without a seed
    first, second = (lime.attribute(**x.arguments(lime), target=0, n_samples=100) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, LimeImage(a, seed=4).attribute(**x.arguments(lime), target=0, n_samples=100))
    weights = [explanation_weights(lime.explain(x, 0, num_samples=100, **k)) for k in ({}, {"seed": 3}, {"seed": 4})]
    assert weights[0] == weights[1] != weights[2]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    # The batch changes nothing but rounding.
    batched = lime.attribute(**x.arguments(lime), target=0, n_samples=100, perturbations_per_eval=7)
    torch.testing.assert_close(batched, first, atol=1e-5, rtol=1e-4)


def test_the_seed_of_the_segmentation_that_lime_loses():
    a = adapter(ReadsCorner())
    flat = np.zeros((8, 450, 3), np.uint8)  # nothing but ties, which quickshift breaks by chance
    encodings = [a.encode(flat, features="quickshift", seed=k) for k in (1, 1, 2)]
    found = [LimeImage(a).explain(x, 0, num_samples=5).segments for x in encodings]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_each_mask_runs_once():
    rows = []

    class Counts(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return x.mean(dim=(1, 2, 3))[:, None].repeat(1, 2)

    a = adapter(Counts(), patch_size=16)
    LimeImage(a).explain(picture(), 0, num_samples=1000)
    assert sum(rows) <= 2 + 16  # four segments have 16 masks; values between 0 and 1 are looked at once more


def test_progress_is_shown_only_where_asked_for(capsys):
    a = adapter()
    x = a.encode(picture())
    lime = LimeImage(a)
    lime.explain(x, 0, num_samples=20)
    lime.attribute(**x.arguments(lime), target=0, n_samples=20)
    assert capsys.readouterr() == ("", "")
    lime.explain(x, 0, num_samples=20, show_progress=True)
    assert "20/20" in capsys.readouterr().err
    lime.attribute(**x.arguments(lime), target=0, n_samples=20, show_progress=True)
    assert "20/20" in capsys.readouterr().err


@pytest.mark.parametrize("features", [1, 2, 7])
def test_masks_are_drawn_as_lime_draws_them(features):
    seen = []
    answer = lambda images: seen.extend(images[:, 0, :, 0] == 1) or np.full((len(images), 2), 0.5)  # noqa: E731
    segments = np.arange(features).reshape(1, features)
    with redirect_stderr(io.StringIO()):
        LimeImageExplainer(random_state=3).explain_instance(
            np.ones((1, features, 3)), answer, hide_color=0, num_samples=50, segmentation_fn=lambda _: segments
        )
    np.testing.assert_array_equal(image_masks(3, features, 50), seen)


def test_attribute_gives_the_official_explainers_weights():
    """Where the model's answers are equal, so are the weights, to 1e-12."""
    slopes = np.array([1.0, 2.0, 4.0, 8.0, -3.0])

    def scores(kept):
        return (kept @ slopes + 3 * kept[:, 0] * kept[:, 1])[:, None]

    official = LimeImageExplainer(random_state=2)
    with redirect_stderr(io.StringIO()):
        found = official.explain_instance(
            np.ones((1, 5, 3)), lambda x: scores(x[:, 0, :, 0]), labels=(0,), top_labels=None, hide_color=0,
            num_samples=80, segmentation_fn=lambda _: np.arange(5).reshape(1, 5),
        )  # fmt: skip
    lime = LimeImage(lambda x: torch.from_numpy(scores(x.numpy())), seed=2)
    weights = lime.attribute(torch.ones(1, 5, dtype=torch.float64), target=0, n_samples=80)[0]
    expected = explanation_weights(found, 0)
    assert max(abs(expected[k] - float(weights[k])) for k in range(5)) <= 1e-12


def test_the_official_package_stays_as_it_is_in_other_threads():
    from lime import lime_image

    bar, method = lime_image.tqdm, LimeImageExplainer.data_labels
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append((lime_image.tqdm, LimeImageExplainer.data_labels))
            return x.mean(dim=(1, 2, 3))[:, None].repeat(1, 2)

    a = adapter(Looks(), patch_size=8)
    LimeImage(a).explain(picture(), 0, num_samples=20)
    assert all(s == (bar, method) for s in seen)

    lime = LimeImage(adapter())
    x = lime.forward_func.encode(picture())
    alone = explanation_weights(lime.explain(x, 0, num_samples=100))
    found: list[dict[int, float]] = []
    threads = [
        threading.Thread(target=lambda: found.append(explanation_weights(lime.explain(x, 0, num_samples=100))))
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [alone] * 3


def test_dropout_is_off_and_flags_come_back():
    a = adapter(nn.Sequential(nn.Dropout(0.5), Additive(TRUE)), patch_size=8)
    a.model.train()
    x = a.encode(picture())
    lime = LimeImage(a)
    assert explanation_weights(lime.explain(x, 0, num_samples=50)) == explanation_weights(
        lime.explain(x, 0, num_samples=50)
    )
    assert a.model.training
    assert a.model[0].training


def test_functions_without_an_adapter_and_other_tensors():
    def f(x):
        return x[:, 0].sum(dim=(1, 2))[:, None]

    x = torch.ones(2, 3, 4, 4)
    lime = LimeImage(f, model_regressor=LinearRegression())
    found = lime.attribute(x, target=0, n_samples=200)  # each pixel is a feature
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"224 x 224 pixels needs segments; pass feature_mask="):
        lime.attribute(torch.ones(1, 3, 224, 224), target=0)
    rows = torch.tensor([[1.0, 2.0, 3.0]])
    plain = LimeImage(lambda x: x.sum(dim=1), model_regressor=LinearRegression()).attribute(rows, n_samples=50)
    torch.testing.assert_close(plain, rows, atol=1e-4, rtol=0)
    pairs = LimeImage(lambda a, b: (a - 2 * b).sum(dim=1), model_regressor=LinearRegression())
    first, second = pairs.attribute((rows, rows), n_samples=100)
    torch.testing.assert_close((first, second), (rows, -2 * rows), atol=1e-4, rtol=0)


def test_captums_wrappers_take_it():
    a = adapter()
    x = a.encode(picture())
    lime = LimeImage(a)
    tunnel = captum.attr.NoiseTunnel(lime)
    noisy = tunnel.attribute(
        x.inputs,
        nt_samples=2,
        stdevs=0.01,
        target=0,
        n_samples=40,
        baselines=x.baselines,
        feature_mask=x.feature_mask,
    )
    assert noisy.shape == x.inputs.shape
    assert LimeImage.get_name() == "Lime Image"


def test_compare_puts_lime_rollout_and_gradients_side_by_side():
    a = adapter()
    x = a.encode(picture())
    lime = LimeImage(a)
    methods = {
        "rollout": AttentionAttribution(a, method="rollout"),
        "LIME": lime,
        "explanation": lime.explain(x, 1, num_samples=300, output="logits"),
        "IG": captum.attr.IntegratedGradients(a),
        "ablation": captum.attr.FeatureAblation(a),
    }
    found = compare(methods, x, target=1)
    assert list(found.scores.columns) == list(methods)
    assert list(found.scores.index) == list(x.feature_names[0])
    a.requires_grad_(False)
    ablated = [
        float(a(x.inputs)[0, 1] - a(torch.where(x.feature_mask == k, x.baselines, x.inputs))[0, 1]) for k in range(16)
    ]
    np.testing.assert_allclose(found.scores["ablation"], ablated, atol=1e-5)
    ig = found.attributions["IG"][0].sum(dim=0).detach().numpy()
    np.testing.assert_allclose(found.scores["IG"], [ig[grid == k].sum() for k in range(16)], atol=1e-4)
    raw = AttentionAttribution(a, method="rollout").attribute(x.inputs)[0, 0].detach().numpy()
    np.testing.assert_allclose(found.scores["rollout"], [raw[grid == k][0] for k in range(16)], rtol=1e-4)
    by_attribute = lime.attribute(**x.arguments(lime), target=1)[0, 0]
    np.testing.assert_allclose(found.scores["LIME"], [float(by_attribute[grid == k][0]) for k in range(16)], rtol=1e-4)
    assert found.agreement.notna().all(axis=None)


def test_compare_over_segments_that_cut_patches():
    a = adapter()
    x = a.encode(picture(), features=slic(picture(), n_segments=9))
    n = len(x.feature_names[0])
    assert 4 < n < 16
    explanation = LimeImage(a).explain(x, 1, num_samples=300, output="logits")
    methods = {"rollout": AttentionAttribution(a), "LIME": explanation, "IG": captum.attr.IntegratedGradients(a)}
    found = compare(methods, x, target=1)
    # A patch's share is divided among its pixels, which are added up over a segment.
    patches = AttentionAttribution(a).attribute(x.inputs)[0, 0].detach().numpy() / 64
    np.testing.assert_allclose(
        found.scores["rollout"], [patches[x.segments[0] == k].sum() for k in range(n)], rtol=1e-4
    )
    figure = found.plot(title="segments")
    panels = {ax.get_title(): ax for ax in [a for part in figure.subfigs for a in part.axes]}
    assert list(panels)[:4] == ["picture", "rollout", "", "LIME"]
    weights = explanation_weights(explanation)
    drawn = np.vectorize(weights.get)(explanation.segments)
    np.testing.assert_allclose(panels["LIME"].images[1].get_array(), drawn)
    with pytest.raises(InputError, match="'LIME' has other segments than the encoding, which has 16"):
        compare(methods, a.encode(picture()), target=1)


def test_what_is_refused():
    a = adapter()
    lime = LimeImage(a)
    x = a.encode(picture())
    with pytest.raises(TargetError, match="target 7"):
        lime.explain(x, 7)
    with pytest.raises(TargetError):
        lime.attribute(**x.arguments(lime), target=7)
    with pytest.raises(InputError, match="one picture, but got 2"):
        lime.explain([picture(), picture()], 0)
    with pytest.raises(InputError, match="output must be"):
        lime.explain(x, 0, output="odds")
    with pytest.raises(InputError, match="num_samples"):
        lime.explain(x, 0, num_samples=1)
    with pytest.raises(InputError, match="num_features"):
        lime.explain(x, 0, num_features=0)
    with pytest.raises(InputError, match="n_samples"):
        lime.attribute(**x.arguments(lime), target=0, n_samples=1)
    with pytest.raises(InputError, match="an ImageAdapter around the model"):
        LimeImage(a.model).explain(picture())
    with pytest.raises(InputError, match="forward_func must be"):
        LimeImage("model")
    regression = adapter(vit(problem_type="regression"))
    found = LimeImage(regression).explain(picture(), 0, num_samples=20)
    assert found.explained.label == "prediction of output 'LABEL_0'"

    class Breaks(nn.Module):
        def forward(self, x):
            return x.mean(dim=(1, 2, 3))[:, None].sub(100).log().repeat(1, 2)

    with pytest.raises(ForwardError, match="NaN"):
        LimeImage(adapter(Breaks(), patch_size=8)).explain(picture(), 0, num_samples=20)


def test_pickling():
    lime = LimeImage(adapter(), seed=2)
    again = pickle.loads(pickle.dumps(lime))
    options = dict(num_samples=30)
    assert explanation_weights(again.explain(picture(), 0, **options)) == explanation_weights(
        lime.explain(picture(), 0, **options)
    )


def test_text_attribution_over_a_picture_is_the_same_masks():
    """The two share how features are taken out; with their own kernels the weights differ, the truth does not."""
    a = adapter(Additive(TRUE), patch_size=8)
    x = a.encode(picture(), baselines="black")
    text = LimeText(a, model_regressor=LinearRegression())
    image = LimeImage(a, model_regressor=LinearRegression())
    found = [m.attribute(**x.arguments(m), target=0, n_samples=200) for m in (text, image)]
    torch.testing.assert_close(found[0], found[1], atol=1e-4 * float(found[1].abs().max()), rtol=0)
