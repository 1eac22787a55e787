"""Models with windows: the weights of each window's own softmax, put back on the grid as the Swin paper defines it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.families.base import SHARPENED, Family, eager_huggingface, nothing
from tests.families.timm_models import unfused
from tests.families.vision import images
from tests.reference.attention import fuse
from tests.reference.eager import recorded_weights

WINDOW = 4
PATCH = 4
# Grids of 10 x 12 and 9 x 11 patches are no multiples of the window, and merge to 5 x 6 tokens; 16 x 16 is one.
PADDED, ODD, WHOLE = (40, 48), (36, 44), (64, 64)
STAGES = dict(embed_dim=8, depths=(2, 2), num_heads=(2, 4))


def on_grid(weights: np.ndarray, grid: tuple[int, int], shift: int, batch: int = 2) -> np.ndarray:
    """Return the weights of windows (batch * windows, H, w * w, w * w) between the cells of a grid, (B, H, N, N).

    Place (a, b) of window (i, j) holds the cell ((i w + a + shift) mod rows, (j w + b + shift) mod columns) of the grid
    that was padded, below and on the right, to whole windows. Cells that padding added are left out.

    Reference:
        Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021, section 3.2.
    """
    down, across = (-(-size // WINDOW) for size in grid)
    out = np.zeros((batch, weights.shape[1], grid[0] * grid[1], grid[0] * grid[1]))
    places = [(a, b) for a in range(WINDOW) for b in range(WINDOW)]
    for example in range(batch):
        for i in range(down):
            for j in range(across):
                window = weights[(example * down + i) * across + j]
                tokens = []
                for a, b in places:
                    row = (i * WINDOW + a + shift) % (down * WINDOW)
                    column = (j * WINDOW + b + shift) % (across * WINDOW)
                    is_real = row < grid[0] and column < grid[1]
                    tokens.append(row * grid[1] + column if is_real else None)
                for p, query in enumerate(tokens):
                    for q, key in enumerate(tokens):
                        if query is not None and key is not None:
                            out[example, :, query, key] = window[:, p, q]
    return out


def unshifted(
    run: Callable[[], Any], eager: Callable[[], Any], layers: Sequence[tuple[tuple[int, int], int] | None]
) -> Callable[[dict[str, Any]], list[np.ndarray]]:
    """Return the oracle: the softmax of the model's own eager code, of layers with a grid and a shift on the grid."""

    def oracle(_: dict[str, Any]) -> list[np.ndarray]:
        with eager(), recorded_weights() as weights:
            run()
        return put_back(weights, layers)

    return oracle


def put_back(weights: Sequence[np.ndarray], layers: Sequence[tuple[tuple[int, int], int] | None]) -> list[np.ndarray]:
    """Return what the softmaxes of layers with a grid and a shift were, between the cells of the grid."""
    found = []
    for seen, layer in zip(weights, layers, strict=True):
        # Some code folds the heads into the windows.
        seen = seen if seen.ndim == 4 else seen.reshape(-1, 2, *seen.shape[1:])
        found.append(seen if layer is None else on_grid(seen, *layer))
    return found


def mean_of_last_stage(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return raw attention of a model that reads the mean of its last stage; its stages cannot be multiplied."""
    return {"raw": fuse(layers[-1], "mean").mean(axis=1)}


def plain_product(layers: list[np.ndarray], residual: float = 0.5) -> np.ndarray:
    """Return the product (B, N, N) of layers whose rows may give weight to nothing, so that no row is rescaled."""
    product = np.eye(layers[0].shape[-1])[None]
    for weights in layers:
        product = ((1 - residual) * fuse(weights, "mean") + residual * np.eye(weights.shape[-1])) @ product
    return product


def _mean_of_all(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"raw": fuse(layers[-1], "mean").mean(axis=1), "rollout": plain_product(layers).mean(axis=1)}


def pixels(size: tuple[int, int], tokens: tuple[int, int], cells: int) -> Tensor:
    """Return the token of each pixel, (H, W), where tokens stand for squares of pixels."""
    grid = torch.arange(tokens[0] * tokens[1]).reshape(tokens)
    return grid.repeat_interleave(cells, dim=0).repeat_interleave(cells, dim=1)[: size[0], : size[1]]


def spread_out(model: nn.Module) -> nn.Module:
    """Make weights and position biases, which begin near zero, large enough for windows to differ."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.03 if any(key in name for key in SHARPENED) else 0.2)
    return model.eval()


def _swin(
    name: str, title: str, model: nn.Module, forward: Callable[..., Tensor], size: tuple[int, int], eager: Any = nothing
) -> Family:
    fine = (size[0] // PATCH, size[1] // PATCH)
    coarse = (-(-fine[0] // 2), -(-fine[1] // 2))
    layers = [(grid, shift) for grid in (fine, coarse) for shift in (0, WINDOW // 2)]
    family = Family(
        name,
        spread_out(model),
        forward,
        images(*size),
        eager=None if eager is nothing else eager,
        title=title,
        group="vision",
        kinds=["windowed"] * 4,
        products=False,
        token_of_cell=pixels(size, coarse, 2 * PATCH),
        scores=mean_of_last_stage,
    )
    family.oracle = unshifted(family.run, eager, layers)
    return family


def _config(size: tuple[int, int]) -> dict[str, Any]:
    depths, heads = list(STAGES["depths"]), list(STAGES["num_heads"])
    return dict(
        image_size=size, patch_size=PATCH, embed_dim=8, depths=depths, num_heads=heads, window_size=WINDOW, num_labels=3
    )


def swin() -> Family:
    from transformers import SwinConfig, SwinForImageClassification

    model = SwinForImageClassification(SwinConfig(**_config(PADDED)))
    forward = lambda x: model(pixel_values=x).logits  # noqa: E731
    return _swin("swin", "Swin (HuggingFace)", model, forward, PADDED, eager_huggingface(model))


def swin_v2() -> Family:
    """Its scores are cosines, scaled; its norms come behind attention."""
    from transformers import Swinv2Config, Swinv2ForImageClassification

    model = Swinv2ForImageClassification(Swinv2Config(**_config(PADDED)))
    return _swin("swin_v2", "Swin V2 (HuggingFace)", model, lambda x: model(pixel_values=x).logits, PADDED)


def timm_swin() -> Family:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(img_size=WHOLE, patch_size=PATCH, **STAGES, window_size=WINDOW, num_classes=3)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # off by default
    return _swin("timm_swin", "Swin (timm)", model, model, WHOLE, unfused(model))


def torchvision_swin() -> Family:
    from torchvision.models.swin_transformer import SwinTransformer

    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in STAGES.items()}
    model = SwinTransformer([PATCH, PATCH], **sizes, window_size=[WINDOW, WINDOW], num_classes=3)
    return _swin("torchvision_swin", "Swin (torchvision)", model, model, ODD)


def timm_sam() -> Family:
    """Windows on a padded grid, and a layer over all of it between them; heads share a dimension with the windows."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    size, grid = (40, 40), (10, 10)
    model = VisionTransformerSAM(
        img_size=size[0], patch_size=PATCH, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0, num_classes=3,
        window_size=WINDOW, global_attn_indexes=(1,), use_rel_pos=True, neck_chans=0,
    )  # fmt: skip
    family = Family(
        "timm_sam",
        spread_out(model),
        model,
        images(*size),
        eager=unfused(model),
        title="SAM's image encoder (timm)",
        group="vision",
        kinds=["windowed", "self", "windowed"],
        token_of_cell=pixels(size, grid, PATCH),
        scores=_mean_of_all,
    )
    layers = [(grid, 0), None, (grid, 0)]
    family.oracle = unshifted(family.run, unfused(model), layers)
    family.attentions = lambda softmaxes: put_back(softmaxes, layers)
    return family


WINDOWED = [swin, swin_v2, timm_swin, torchvision_swin, timm_sam]
