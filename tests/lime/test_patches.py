"""Each patch is embedded once where that gives what masked pictures give, and only there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from captum_attn_lime.adapters import ImageAdapter
from captum_attn_lime.lime import LimeImage, explanation_weights
from captum_attn_lime.perturb._factory import perturbed_tensors
from captum_attn_lime.perturb._patches import PatchEmbeddings, PerturbedPicture
from captum_attn_lime.perturb._tensors import MaskedInputs, PerturbedTensors

pytestmark = pytest.mark.filterwarnings("ignore:LIME has few samples")


def picture(height: int = 32, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return (np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(9 * x * y)], axis=2) * 120 + 125).astype(np.uint8)


class Patches(nn.Module):
    """A convolution over patches, a layer that mixes them, three classes."""

    def __init__(self, channels: int = 3, patch: tuple[int, int] = (8, 8), stride: int | None = None) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, 6, patch, stride or patch)
        self.mix = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.mix(self.cut(x).flatten(2).transpose(1, 2)).mean(dim=1))


class ReadsPixels(Patches):
    """The convolution, and beside it the brightness of the pixels."""

    def forward(self, x):
        return super().forward(x) + x.mean(dim=(1, 2, 3))[:, None]


class WritesItsInput(Patches):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


class CutsTwice(Patches):
    def forward(self, x):
        return super().forward(x) + self.head(self.cut(x).mean(dim=(2, 3)))


class Hooked(Patches):
    """A hook adds to what the convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.cut.register_forward_hook(lambda module, args, out: out + 1)


class Dims(Patches):
    """Pixels are halved before they are cut, once somebody asks for it."""

    dim = False

    def forward(self, x):
        return super().forward(x * 0.5 if self.dim else x)


def huggingface(**options) -> nn.Module:
    config = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32)
    return ViTForImageClassification(ViTConfig(**config, patch_size=8, num_labels=3, initializer_range=0.5, **options))


def timm_vit() -> nn.Module:
    options = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **options)


def adapter_of(make: Callable[[], nn.Module], **options) -> ImageAdapter:
    torch.manual_seed(0)
    channels = options.pop("channels", 3)
    return ImageAdapter(make().eval(), **{"mean": (0.5,) * channels, "std": (0.25,) * channels, **options})


@pytest.fixture
def short(monkeypatch) -> list[bool]:
    """For each batch whether it got its answers from known patches."""
    found: list[bool] = []
    scores = PatchEmbeddings.scores

    def noting(*args):
        values = scores(*args)
        found.append(values is not None)
        return values

    monkeypatch.setattr(PatchEmbeddings, "scores", noting)
    return found


def plainly(monkeypatch) -> None:
    """From here on every perturbed picture is made."""
    monkeypatch.setattr(PerturbedPicture, "_batches", PerturbedTensors._batches)


@pytest.mark.parametrize(
    ("make", "options", "size"),
    [
        (huggingface, {}, (32, 32)),
        (timm_vit, {}, (32, 32)),
        (Patches, {}, (32, 32)),
        (Patches, {}, (29, 43)),  # pixels beyond the last patch
        (lambda: Patches(patch=(4, 16)), {}, (24, 48)),
        (lambda: Patches(channels=1), {"channels": 1}, (32, 24)),
        (lambda: Patches().double(), {}, (32, 32)),
        (lambda: nn.Sequential(nn.Identity(), Patches()), {}, (32, 32)),
    ],
    ids=["HuggingFace", "timm", "hand-written", "odd sizes", "oblong", "grey", "float64", "nested"],
)
def test_weights_are_those_of_perturbed_pictures(make, options, size, short, monkeypatch):
    a = adapter_of(make, **options)
    x = a.encode(picture(*size))
    lime = LimeImage(a, seed=3)
    found = explanation_weights(lime.explain(x, 1, num_samples=150, output="logits"))
    tensors = lime.attribute(**x.arguments(lime), target=2, n_samples=100, perturbations_per_eval=7)
    assert all(short)
    assert len(short) > 2  # of each, the first batch tries it out
    plainly(monkeypatch)
    expected = explanation_weights(lime.explain(x, 1, num_samples=150, output="logits"))
    largest = max(map(abs, expected.values()))
    assert largest > 1e-4
    assert max(abs(found[k] - expected[k]) for k in expected) <= 1e-5 * largest
    exact = lime.attribute(**x.arguments(lime), target=2, n_samples=100, perturbations_per_eval=7)
    torch.testing.assert_close(tensors, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_segments_of_several_patches(short, monkeypatch):
    a = adapter_of(huggingface)
    quarters = np.arange(32)[:, None] // 16 * 2 + np.arange(32) // 16
    a.batch_size = 5  # of the 16 masks
    lime, x = LimeImage(a), a.encode(picture(), features=quarters, baselines="blur")
    found = explanation_weights(lime.explain(x, 0, num_samples=80))
    assert short == [True] * 4
    plainly(monkeypatch)
    expected = explanation_weights(lime.explain(x, 0, num_samples=80))
    assert max(abs(found[k] - expected[k]) for k in range(4)) <= 1e-6


def examples(a: ImageAdapter, batch: int) -> tuple[PerturbedTensors, PerturbedTensors, torch.Tensor, np.ndarray]:
    """The same example by the shorter way and plainly, its input, and random masks."""
    x = a.encode(picture())
    example = MaskedInputs.of((x.inputs,), x.baselines, x.feature_mask)

    def score_batch(tensor):
        return a(tensor)[:, 1:2].detach().double().numpy()

    kept = np.random.default_rng(0).random((40, 16)) < 0.5
    one = perturbed_tensors(a, x.feature_names[0], a.explained(x.inputs), example, score_batch, batch_size=batch)
    own = dict(example=example, score_batch=score_batch, batch_size=batch)
    return one, PerturbedTensors(one.names, one.explained, **own), x.inputs, kept


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("make", [ReadsPixels, CutsTwice, Hooked, WritesItsInput], ids=lambda make: make.__name__)
def test_models_that_make_something_else_of_the_pixels(make, batch, short):
    one, plain, inputs, kept = examples(adapter_of(make), batch)
    before = inputs.clone()
    assert type(one) is PerturbedPicture
    np.testing.assert_array_equal(one.class_scores(kept), plain.class_scores(kept))
    assert len(short) == 1  # tried out once
    assert torch.equal(inputs, before)


def test_a_model_that_stops_taking_the_known_patches(short):
    a = adapter_of(Dims)
    one, plain, _, kept = examples(a, 16)
    np.testing.assert_allclose(one.class_scores(kept), plain.class_scores(kept), rtol=1e-5)
    assert short == [True] * 3
    a.model.dim = True
    np.testing.assert_array_equal(one.class_scores(kept), plain.class_scores(kept))
    assert short == [True] * 3 + [False]


def test_other_weights_have_other_patches():
    a = adapter_of(Patches)
    one, plain, _, kept = examples(a, 16)
    one.class_scores(kept)
    with torch.no_grad():
        a.model.cut.weight.mul_(2)
    np.testing.assert_allclose(one.class_scores(kept), plain.class_scores(kept), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "segments", "options"),
    [
        (Patches, np.arange(32)[:, None] // 16 * 4 + np.arange(32) // 9, {}),  # begins within patches
        (Patches, np.arange(1024).reshape(32, 32) % 5, {}),
        (lambda: Patches(stride=4), "patches", {"patch_size": 8}),  # patches overlap
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), "patches", {"patch_size": 8}),
    ],
    ids=["inside patches", "scattered", "overlapping", "no convolution"],
)
def test_where_there_are_no_known_patches_pictures_are_made(make, segments, options, short):
    a = adapter_of(make, **options)
    assert LimeImage(a).explain(a.encode(picture(), features=segments), 0, num_samples=30).local_exp
    assert short == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # from torch.compile's own imports
@torch.no_grad()
def test_compiled_models_run_as_they_are():
    x = adapter_of(Patches).encode(picture())
    example = MaskedInputs.of((x.inputs,), x.baselines, x.feature_mask)
    torch.manual_seed(0)
    model = Patches()
    assert PatchEmbeddings.of(model, example) is not None
    assert PatchEmbeddings.of(torch.compile(model), example) is None


def test_other_functions_and_masks_of_channels_are_left_alone():
    a = adapter_of(Patches)
    x = a.encode(picture())
    lime = LimeImage(a.model)
    found = lime.attribute(**x.arguments(lime), target=0, n_samples=60)
    torch.testing.assert_close(found, LimeImage(a).attribute(**x.arguments(lime), target=0, n_samples=60))
    by_channel = torch.arange(3).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    colours = LimeImage(a).attribute(x.inputs, x.baselines, 0, None, by_channel, 60)
    assert len(colours.unique()) == 3
