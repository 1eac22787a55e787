"""Plots of image attributions: one attribution over its image, or several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import (
    NOTE_COLOR,
    as_floats,
    as_table,
    axes_or_new,
    color_map,
    limits,
    outside_note,
    outside_of_method,
    plain,
    scaled,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from pandas import DataFrame

_PALE = 0.45  # share of white mixed into the image, so that the colours stand out
_MOST_IN_A_ROW = 5
# Inches: around a panel, above it for its name, below it for its colour bar and note, and for the figure's title.
_GAP, _NAME, _SCALE, _TITLE = 0.12, 0.3, 0.58, 0.4


def image(
    scores: Any,
    picture: Any,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    opacity: float = 0.85,
    color_bar: bool = True,
    outside: Any = None,
) -> Axes:
    """Draw an attribution over its image, which is shown in pale grey; the larger a score, the more opaque its colour.

    Args:
        scores: One score per pixel, ``(H, W)``; an array or tensor. NaN (no value) is grey.
        picture: The image, ``(H, W, 3)`` or ``(H, W)``: uint8, or floats from 0 to 1.
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the image.
        cmap: A Matplotlib colour map; by default a diverging one for signed scores and a sequential one for others.
        opacity: Opacity of the largest score, 0 to 1; other scores scale with the square root of their magnitude.
        color_bar: Whether to draw a colour bar.
        outside: Share of the attention outside the pixels (class tokens, registers), noted below the image: a number
            from 0 to 1, or a mapping from tokens to shares.

    Returns:
        The axes, with two images: the grey image, and the scores over it.

    Raises:
        InputError: The shapes of the scores and the image are invalid or do not match.

    Example:
        >>> ax = image([[0.0, 1.0], [-1.0, 0.5]], np.zeros((2, 2, 3), dtype=np.uint8))
        >>> ax.images[1].get_clim()
        (-1.0, 1.0)
    """
    values = as_floats(scores, "scores", 2)
    pixels = as_floats(picture, "picture", (2, 3))
    if pixels.shape[:2] != values.shape or pixels.shape[2:] not in ((), (1,), (3,)) or not values.size:
        raise InputError(
            f"scores have shape {values.shape} and picture has shape {pixels.shape}, but (H, W), and (H, W, 3) or "
            "(H, W), are needed; pass an image of encoding.images, which has the model's size."
        )
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must be between 0 and 1, but is {opacity!r}.")
    pixels = pixels / _white_value(picture)
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
    note = outside_note(outside)
    if note:
        ax.set_xlabel(note, fontsize=8.5, color=NOTE_COLOR, parse_math=False)
    if color_bar:
        ax.figure.colorbar(_scale_of(drawn), ax=ax, shrink=0.8).outline.set_visible(False)
    return ax


def images(
    scores: DataFrame,
    segments: Any,
    picture: Any,
    *,
    figure: Figure | SubFigure | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    width: float = 11.0,
    outside: DataFrame | None = None,
) -> Figure | SubFigure:
    """Draw the image, and beside it each method's segment scores over the image.

    The methods have different units, so each has a separate scale, up to its largest magnitude.

    Args:
        scores: One row per segment and one column per method.
        segments: The segment of each pixel, ``(H, W)``, as a row index of ``scores``; pixels outside all segments have
            larger numbers.
        picture: The image, ``(H, W, 3)`` or ``(H, W)``: uint8, or floats from 0 to 1.
        figure: Figure or subfigure to draw on; by default a new figure of the required height. It is not registered
            with pyplot: return it in a notebook to show it, or save it with ``savefig``.
        title: Title of the figure.
        cmap: A Matplotlib colour map.
        width: Width of the new figure in inches.
        outside: Share of each method's magnitudes outside the segments, noted below its panel: one row per kind of
            token, one column per method, as in :attr:`Comparison.outside`.

    Returns:
        The figure.

    Raises:
        InputError: The scores are not a table, or the segments do not match them or the image.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"rollout": [0.2, 0.8], "LIME": [-1.0, 1.0]})
        >>> figure = images(table, [[0, 1], [1, 1]], np.zeros((2, 2, 3), dtype=np.uint8))
        >>> [ax.get_title() for ax in figure.axes if ax.get_title()]
        ['picture', 'rollout', 'LIME']
    """
    from matplotlib.figure import Figure as NewFigure

    table, labels = as_table(scores), np.asarray(segments)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or not labels.size or labels.min() < 0:
        raise InputError(
            f"segments must be integers from 0, (H, W), but are {labels.dtype} of shape {labels.shape}; pass one of "
            "encoding.segments."
        )
    if figure is None:
        figure = NewFigure(figsize=(width, images_height(labels.shape, table.shape[1], width=width, title=title)))
    whole = (figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi)
    if title is not None:
        figure.text(_GAP / whole[0], 1 - 0.1 / whole[1], plain(title), va="top", fontsize=13, fontweight="bold",
                    parse_math=False)  # fmt: skip
    columns, side, height = _panels(labels.shape, table.shape[1], whole[0])
    top = whole[1] - (_TITLE if title is not None else 0.0)
    for place, name in enumerate([None, *table.columns]):
        row, column = divmod(place, columns)
        left, bottom = _GAP + column * (side + _GAP), top - _NAME - height - row * (_NAME + height + _SCALE)
        inches = (left, bottom, side, height)
        ax = figure.add_axes(_fractions(inches, whole))
        if name is None:
            ax.imshow(np.asarray(picture) / _white_value(picture), cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
            ax.set_title("picture", fontsize=11, parse_math=False)
            continue
        values = np.append(table[name].to_numpy(), 0.0)  # the score of pixels outside all segments
        image(values[np.minimum(labels, len(table))], picture, ax=ax, cmap=cmap, color_bar=False)
        ax.set_title(shorten(name, 32), fontsize=11, fontweight="bold", parse_math=False)
        bar = (left + 0.15 * side, bottom - 0.16, 0.7 * side, 0.09)
        under = figure.add_axes(_fractions(bar, whole))
        scale = figure.colorbar(_scale_of(ax.images[1]), cax=under, orientation="horizontal")
        low, high = ax.images[1].get_clim()
        scale.set_ticks([low, high], labels=[f"{low:.2g}", f"{high:.2g}"], fontsize=8)
        scale.outline.set_visible(False)
        note = outside_note(outside_of_method(outside, name))
        if note:
            under.set_xlabel(note, fontsize=min(8.0, 100 * side / len(note)), color=NOTE_COLOR, parse_math=False)
    return figure


def images_height(shape: tuple[int, ...], n_methods: int, *, width: float = 11.0, title: str | None = None) -> float:
    """Return the height in inches that :func:`images` needs for an image of this shape."""
    columns, _, height = _panels(shape, n_methods, width)
    rows = -(-(n_methods + 1) // columns)
    return rows * (_NAME + height + _SCALE) + (_TITLE if title is not None else 0.0)


def _panels(shape: tuple[int, ...], n_methods: int, width: float) -> tuple[int, float, float]:
    """Return the number of panels in a row, and the width and height of a panel in inches."""
    n = n_methods + 1
    columns = n if n <= _MOST_IN_A_ROW else -(-n // -(-n // _MOST_IN_A_ROW))
    side = (width - _GAP) / columns - _GAP
    return columns, side, side * shape[0] / shape[1]


def _fractions(inches: tuple[float, float, float, float], whole: tuple[float, float]) -> Any:
    """Return left, bottom, width and height as fractions of the figure."""
    return tuple(v / whole[i % 2] for i, v in enumerate(inches))


def _white_value(picture: Any) -> int:
    """Return the value of white. It depends on the dtype alone, since a float image may be dark throughout."""
    return 255 if str(getattr(picture, "dtype", "")).removeprefix("torch.") == "uint8" else 1


def _scale_of(drawn: Any) -> Any:
    """Return an image's colour scale for a colour bar, which does not support an opacity per pixel."""
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm=drawn.norm, cmap=drawn.get_cmap())
