"""Image LIME: the official explainer with an ordinary classifier function, and the same explainer run on masks.

Run as ``python benchmarks/lime_image.py``; the models are random, since only their cost matters.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
from functools import partial
from typing import Any

import numpy as np
import torch
from lime.lime_image import LimeImageExplainer
from measure import interleaved, median, ratio
from torch import Tensor, nn

from captum_attn_lime import ImageAdapter, LimeImage

SIDE, PATCH, SAMPLES = 224, 16, 1000
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Width, layers and heads of the models; None is a model that does nothing, so that only the explainer is left.
MODELS: dict[str, tuple[int, int, int] | None] = {
    "no model": None,
    "ViT, 3 layers of 64": (64, 3, 4),
    "ViT, 2 layers of 192": (192, 2, 3),
    "ViT, 4 layers of 192": (192, 4, 3),
}


class NoModel(nn.Module):
    """Reads one pixel, so that next to nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :1] * self.scale


def model_of(sizes: tuple[int, int, int] | None) -> nn.Module:
    if sizes is None:
        return NoModel().eval()
    from transformers import ViTConfig, ViTForImageClassification

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


def naive(model: nn.Module, image: Any, *, samples: int, batch: int) -> Any:
    """What lime's tutorials do, without their detours: normalise, run, softmax."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))

    def classify(images: Any) -> Any:
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.no_grad():
            out = model(x)
        return getattr(out, "logits", out).softmax(dim=1).numpy()

    explainer = LimeImageExplainer(random_state=0, feature_selection="none")
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        return explainer.explain_instance(
            image,
            classify,
            labels=(1,),
            top_labels=None,
            num_samples=samples,
            batch_size=batch,
            segmentation_fn=grid,
        )


def ours(lime: LimeImage, image: Any, *, samples: int) -> Any:
    return lime.explain(image, 1, segments="patches", num_samples=samples)


def forward(model: nn.Module, *, samples: int, batch: int) -> None:
    x = torch.randn(batch, 3, SIDE, SIDE)
    with torch.no_grad():
        for start in range(0, samples, batch):
            model(x[: samples - start])


def measure(name: str, *, samples: int, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    model, image = model_of(MODELS[name]), picture()
    adapter = ImageAdapter(model, mean=MEAN, std=STD, size=SIDE, patch_size=PATCH)
    lime = LimeImage(adapter)
    functions = {
        "naive": partial(naive, model, image, samples=samples, batch=10),
        "ours": partial(ours, lime, image, samples=samples),
        "forward": partial(forward, model, samples=samples, batch=adapter.batch_images),
    }
    first = [dict(f().local_exp[1]) for f in list(functions.values())[:2]]
    times = interleaved(functions, seconds=seconds)
    return {
        "model": name,
        "rounds": len(times["naive"]),
        **{key: median(t) for key, t in times.items()},
        "ratio": ratio(times["naive"], times["ours"]),
        "difference": max(abs(first[0][k] - first[1][k]) for k in first[0]),
        "largest": max(map(abs, first[0].values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long one model is measured")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"processor": platform.processor() or platform.machine(), "torch": torch.__version__}))
    for name in options.models:
        print(json.dumps(measure(name, samples=options.samples, seconds=options.seconds)), flush=True)


if __name__ == "__main__":
    main()
