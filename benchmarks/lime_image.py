"""`LimeImage.explain` compared with the official explainer and a plain classifier function, over patches."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from lime.lime_image import LimeImageExplainer
from measure import Options
from torch import Tensor, nn

from captum_attn_lime import ImageAdapter, LimeImage
from captum_attn_lime.errors import LimeWarning
from captum_attn_lime.lime import explanation_weights

SIDE, PATCH, SAMPLES = 224, 16, 1000
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Width, layers and heads; the models are random, since nothing in the cost depends on their weights.
MODELS: dict[str, tuple[int, int, int] | None] = {
    "none": None,  # so that only the explainer is left
    "ViT, 3 layers of 64": (64, 3, 4),
    "ViT, 4 layers of 192": (192, 4, 3),
}


class NoModel(nn.Module):
    """Reads a single pixel, so that the model costs almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :1] * self.scale


def model_of(sizes: tuple[int, int, int] | None) -> nn.Module:
    if sizes is None:
        return NoModel().eval()
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    width, layers, heads = sizes
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=10,
    )
    return ViTForImageClassification(config).eval()


def picture() -> Any:
    from skimage import data
    from skimage.transform import resize

    return (resize(data.astronaut(), (SIDE, SIDE), anti_aliasing=True) * 255).astype(np.uint8)


def grid(image: Any) -> Any:
    rows = np.arange(image.shape[0]) // PATCH
    return rows[:, None] * (image.shape[1] // PATCH) + np.arange(image.shape[1]) // PATCH


def plain(model: nn.Module, image: Any, samples: int) -> Any:
    """The classifier function of lime's tutorials, simplified: normalise, run, softmax."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))

    def classify(images: Any) -> Any:
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.no_grad():
            out = model(x)
        return getattr(out, "logits", out).softmax(dim=1).numpy()

    explainer = LimeImageExplainer(random_state=0, feature_selection="none")
    options = dict(labels=(1,), top_labels=None, num_samples=samples, segmentation_fn=grid)
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        return explainer.explain_instance(image, classify, **options)


def forward(model: nn.Module, samples: int, batch: int) -> None:
    """The forward passes alone, on ready-made images."""
    x = torch.randn(batch, 3, SIDE, SIDE)
    with torch.no_grad():
        for start in range(0, samples, batch):
            model(x[: samples - start])


def functions(name: str, samples: int) -> dict[str, Callable[[], Any]]:
    """Return the cases."""
    model, image = model_of(MODELS[name]), picture()
    adapter = ImageAdapter(model, mean=MEAN, std=STD, size=SIDE, patch_size=PATCH)
    lime = LimeImage(adapter)
    return {
        "plain": lambda: plain(model, image, samples),
        "ours": lambda: lime.explain(image, 1, num_samples=samples),
        "forward": lambda: forward(model, samples, adapter.batch_size),
    }


def build(case: str, name: str, samples: int, device: str = "cpu") -> Callable[[], Any]:
    """Return one of the cases."""
    functions(name, 20)[case]()
    return functions(name, samples)[case]


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per model."""
    warnings.simplefilter("ignore", LimeWarning)  # of random models
    rows = []
    samples = options.samples or SAMPLES
    for name in MODELS:
        cases = functions(name, samples)
        one, two = (explanation_weights(cases[case](), 1) for case in ("plain", "ours"))
        times = measure.interleaved(cases, seconds=options.seconds)
        row: dict[str, Any] = {"model": name, "samples": samples, "segments": len(one), "rounds": len(times["plain"])}
        row |= {case: measure.median(found) for case, found in times.items()}
        row["ratio"] = measure.ratio(times["plain"], times["ours"])
        row["difference"] = max(abs(one[k] - two[k]) for k in one)
        for case in ("plain", "ours"):
            row[f"{case} bytes"] = measure.in_own_process("lime_image", case, name=name, samples=samples)
        print(row, file=sys.stderr)
        rows.append(row)
    return rows
