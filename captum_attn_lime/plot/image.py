"""A picture with an attribution laid over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import as_floats, axes_or_new, color_map, limits, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

_PALE = 0.45  # how much white is mixed into the picture, so that the colours stand out


def image(
    scores: Any,
    picture: Any,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    opacity: float = 0.85,
    color_bar: bool = True,
) -> Axes:
    """Draw an attribution over its picture: the picture pale and grey, the scores in colours that hide it as they grow.

    Args:
        scores: One score per pixel, ``(H, W)``; an array or tensor. NaN, no value, is grey.
        picture: The picture, ``(H, W, 3)`` or ``(H, W)``: uint8, or floats from 0 to 1.
        ax: Where to draw; a new figure by default.
        title: Above the picture.
        cmap: A Matplotlib colour map; by default two-sided for scores with signs and one-sided for others.
        opacity: Opacity of the largest score, 0 to 1; that of others is smaller with the root of their magnitude.
        color_bar: Whether to draw the scale beside it.

    Returns:
        The axes. Its images are the grey picture and, over it, the scores.

    Raises:
        InputError: Scores and picture of other or different shapes.

    Example:
        >>> ax = image([[0.0, 1.0], [-1.0, 0.5]], np.zeros((2, 2, 3), dtype=np.uint8))
        >>> ax.images[1].get_clim()
        (-1.0, 1.0)
    """
    values = as_floats(scores, "scores", 2)
    pixels = as_floats(picture, "picture", (2, 3))
    if pixels.shape[:2] != values.shape or pixels.shape[2:] not in ((), (1,), (3,)) or not values.size:
        raise InputError(
            f"scores of shape {values.shape} and a picture of shape {pixels.shape} came; needed are (H, W), and "
            "(H, W, 3) or (H, W). An encoding has its pictures at the model's size in .images."
        )
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must be from 0 to 1, but is {opacity!r}.")
    # The dtype tells the range: a float picture may be all dark.
    pixels = pixels / 255 if str(getattr(picture, "dtype", "")).removeprefix("torch.") == "uint8" else pixels
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    height, width = values.shape
    ax = axes_or_new(ax, 4.2 + 0.8 * color_bar, 4.2 * min(max(height / width, 0.4), 2.5))
    ax.imshow(_PALE + (1 - _PALE) * grey.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    low, high = limits(values)
    alpha = opacity * np.sqrt(np.nan_to_num(np.abs(scaled(values)), nan=1.0))
    drawn = ax.imshow(values, cmap=color_map(values, cmap), vmin=low, vmax=high, alpha=alpha, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=11, fontweight="bold", parse_math=False)
    if color_bar:
        from matplotlib.cm import ScalarMappable

        # Of its own: an opacity for each pixel does not go into a bar.
        scale = ScalarMappable(norm=drawn.norm, cmap=drawn.get_cmap())
        ax.figure.colorbar(scale, ax=ax, shrink=0.8).outline.set_visible(False)
    return ax
