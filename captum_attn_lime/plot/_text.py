"""Coloured text: words wrapped over lines, each on a background that shows its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import (
    HATCH,
    NEUTRAL,
    NOTE_COLOR,
    Color,
    Floats,
    as_floats,
    as_table,
    color_map,
    limits,
    outside_note,
    outside_of_method,
    plain,
    score_colors,
    shorten,
    text_color,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from pandas import DataFrame

POINTS = 72.0  # per inch
LINE = 1.75  # line height, in font sizes
PAD = 0.22  # space left and right inside a word's box, in font sizes
GAP = 0.16  # space between boxes, in font sizes


@dataclass(frozen=True)
class _Box:
    """The box of one word, in points from the upper left corner."""

    word: str
    index: int
    left: float
    width: float
    line: int


def text(
    words: Sequence[str],
    scores: Any,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    fontsize: float = 11.0,
    width: float = 8.0,
    outside: Any = None,
) -> Axes:
    """Draw the words as coloured text: the larger the score, the stronger the colour.

    Colours are scaled by the largest magnitude of the scores. If any score is negative, there are two colours with
    white at 0, otherwise one. A word without a score (NaN) is grey and hatched.

    Args:
        words: The words in order.
        scores: One score per word, ``(len(words),)``: an array, list or tensor.
        ax: Axes to draw on; the font shrinks until the words fit. By default those of a new figure of the required
            height.
        title: Title above the words.
        cmap: A Matplotlib colour map.
        fontsize: Font size in points.
        width: Width of the new figure in inches.
        outside: Share of the attention outside the words, noted above them: a number from 0 to 1, or a mapping from
            special tokens to shares. The colours do not show it: even if all words together have 2 % of the attention,
            the strongest has the full colour.

    Returns:
        The axes.

    Raises:
        InputError: There are no words, not one score per word, or invalid shares.

    Example:
        >>> ax = text(["a", "fine", "film"], [0.1, 0.8, float("nan")], title="rollout")
        >>> [t.get_text() for t in ax.texts]
        ['a', 'fine', 'film']
    """
    names = [plain(word) for word in words]
    values = as_floats(scores, "scores", 1)
    _check(names, values)
    note = outside_note(outside)
    if ax is None:
        ax = _new_axes(names, fontsize, width, title or note or None)
    page_width, page_height = _page(ax)
    fontsize = _fitting_size(names, fontsize, page_width, page_height)
    _draw(ax, _flow(names, fontsize, page_width), score_colors(values, cmap), values, fontsize)
    ax.set_xlim(0, page_width)
    ax.set_ylim(page_height, 0)
    ax.set_axis_off()
    if title is not None:
        room = page_width - (_word_width(note, 0.8 * fontsize) if note else 0.0)
        shown = _fit(plain(title), 1.25 * fontsize, max(room, 8 * fontsize))[0]  # bold letters are wider
        ax.set_title(shown, loc="left", fontsize=fontsize, fontweight="bold", parse_math=False)
    if note:
        ax.set_title(note, loc="right", fontsize=0.8 * fontsize, color=NOTE_COLOR, parse_math=False)
    return ax


def texts(
    words: Sequence[str],
    scores: Any,
    *,
    figure: Figure | SubFigure | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    fontsize: float = 11.0,
    width: float = 9.0,
    outside: DataFrame | None = None,
) -> Figure | SubFigure:
    """Draw one block of coloured text per method, each with a colour bar.

    The methods have different units, so each is scaled by its largest magnitude.

    Args:
        words: The words in order.
        scores: DataFrame with one row per word and one column per method.
        figure: Figure or subfigure to draw on; by default a new figure of the required height. It is not registered
            with pyplot: return it in a notebook to show it, or save it with ``savefig``.
        title: Title of the figure.
        cmap: A Matplotlib colour map.
        fontsize: Font size in points.
        width: Width of the new figure in inches.
        outside: Share of each method's magnitudes outside the words, noted above its words: one row per special token,
            one column per method, as in :attr:`Comparison.outside`.

    Returns:
        The figure.

    Raises:
        InputError: There are no words, the table is empty, or it does not have one row per word.
    """
    from matplotlib.figure import Figure as NewFigure

    table = as_table(scores)
    names = [plain(word) for word in words]
    _check(names, table.iloc[:, 0].to_numpy())
    if figure is None:
        height = texts_height(names, len(table.columns), fontsize=fontsize, width=width, title=title)
        figure = NewFigure(figsize=(width, height))
    full_width, full_height = _inches(figure)
    head = _title_height(fontsize) if title is not None else 0.0
    if title is not None:
        figure.text(0.12 / full_width, 1 - 0.1 / full_height, plain(title), va="top", fontsize=fontsize + 2,
                    fontweight="bold", parse_math=False)  # fmt: skip
    block = (full_height - head) / len(table.columns)
    for i, name in enumerate(table.columns):
        values = table[name].to_numpy()
        top = full_height - head - i * block
        frame = _frame(top, block, full_width, full_height, fontsize)
        ax = text(names, values, ax=figure.add_axes(frame), title=str(name), cmap=cmap, fontsize=fontsize,
                  outside=outside_of_method(outside, name))  # fmt: skip
        _color_bar(ax, values, cmap, fontsize)
    return figure


def texts_height(
    words: Sequence[str], n_methods: int, *, fontsize: float = 11.0, width: float = 9.0, title: str | None = None
) -> float:
    """Return the height in inches that :func:`texts` needs for these words."""
    lines = _flow(words, fontsize, (width - 1.2) * POINTS)[-1].line + 1
    block = (lines * LINE + 2.4) * fontsize / POINTS
    return n_methods * max(block, 0.62) + (_title_height(fontsize) if title is not None else 0.0)


def _title_height(fontsize: float) -> float:
    return (fontsize + 2) * 2.2 / POINTS


def _frame(
    top: float, block: float, full_width: float, full_height: float, fontsize: float
) -> tuple[float, float, float, float]:
    """Return the left, bottom, width and height of a block's axes as fractions of the figure."""
    head = 1.9 * fontsize / POINTS
    return (
        0.12 / full_width,
        (top - block) / full_height,
        (full_width - 1.2) / full_width,
        max(block - head, 0.1) / full_height,
    )


def _color_bar(ax: Axes, values: Floats, cmap: str | Colormap | None, fontsize: float) -> None:
    """Draw a colour bar to the right of the words, labelled at both ends."""
    low, high = limits(values)
    bar = ax.inset_axes((1.015, 0.08, 0.014, 0.84))
    # The part of the colour map that the words use.
    ramp = np.linspace(0.125, 0.875, 64) if low < 0 else np.linspace(0.0, 0.75, 64)
    bar.imshow(color_map(values, cmap)(ramp)[:, None, :], origin="lower", aspect="auto", extent=(0, 1, low, high))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks([low, high], [f"{low:.2g}", f"{high:.2g}"], fontsize=fontsize * 0.72)
    bar.tick_params(length=0, pad=2)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _check(words: Sequence[str], values: Floats) -> None:
    if not words:
        raise InputError("there are no words to draw; pass at least one.")
    if len(words) != len(values):
        raise InputError(f"there are {len(words)} words but {len(values)} scores; pass one score per word.")


def _new_axes(words: Sequence[str], fontsize: float, width: float, title: str | None) -> Axes:
    """Return the axes of a new figure of the required height."""
    from matplotlib import pyplot

    margin = 0.12
    lines = _flow(words, fontsize, (width - 2 * margin) * POINTS)[-1].line + 1
    body = (lines * LINE + 0.1) * fontsize / POINTS
    head = 1.9 * fontsize / POINTS if title is not None else 0.0
    height = body + head + 2 * margin
    figure = pyplot.figure(figsize=(width, height))
    return figure.add_axes((margin / width, margin / height, 1 - 2 * margin / width, body / height))


def _inches(figure: Figure | SubFigure) -> tuple[float, float]:
    return figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi


def _page(ax: Axes) -> tuple[float, float]:
    """Return the axes' width and height in points."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    return box.width / dpi * POINTS, box.height / dpi * POINTS


def _fitting_size(words: Sequence[str], fontsize: float, page_width: float, page_height: float) -> float:
    """Return the largest font size, between 4 points and the requested size, at which the lines fit the height."""
    while fontsize > 4.0 and (_flow(words, fontsize, page_width)[-1].line + 1) * LINE * fontsize > page_height + 1:
        fontsize = max(4.0, fontsize * 0.94)
    return fontsize


def _flow(words: Sequence[str], fontsize: float, page_width: float) -> list[_Box]:
    """Return the words' boxes, with a line break before each word that does not fit."""
    boxes: list[_Box] = []
    left, line = 0.0, 0
    for index, word in enumerate(words):
        shown, width = _fit(word, fontsize, page_width)
        if boxes and left + width > page_width:
            left, line = 0.0, line + 1
        boxes.append(_Box(shown, index, left, width, line))
        left += width + GAP * fontsize
    return boxes


def _fit(word: str, fontsize: float, page_width: float) -> tuple[str, float]:
    """Return the word, truncated if it is wider than the page, and the width of its box."""
    width = _word_width(word, fontsize)
    while width > page_width and len(word) > 2:
        word = shorten(word, max(2, min(len(word) - 1, int(len(word) * page_width / width))))
        width = _word_width(word, fontsize)
    return word, min(width, page_width)


def _word_width(word: str, fontsize: float) -> float:
    """Return the width of a word's box in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    ink = text_to_path.get_text_width_height_descent(word, FontProperties(size=fontsize), ismath=False)[0]
    return float(ink) + 2 * PAD * fontsize


def _draw(ax: Axes, boxes: Sequence[_Box], colors: Sequence[Color], values: Floats, fontsize: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    radius = 0.2 * fontsize
    for box in boxes:
        color = colors[box.index]
        missing = bool(np.isnan(values[box.index]))
        top = (box.line + 0.14) * LINE * fontsize
        height = 0.78 * LINE * fontsize
        ax.add_patch(
            FancyBboxPatch(
                (box.left + radius, top + radius),
                max(box.width - 2 * radius, 0.0),
                height - 2 * radius,
                boxstyle=f"round,pad={radius}",
                facecolor=color,
                edgecolor="#b5b5b5" if missing else color,
                hatch=HATCH if missing else None,
                linewidth=0.0,
            )
        )
        ax.text(
            box.left + box.width / 2,
            top + height / 2,
            box.word,
            ha="center",
            va="center_baseline",
            fontsize=fontsize,
            color="#555555" if missing else text_color(color),
            parse_math=False,
            bbox={"facecolor": NEUTRAL, "edgecolor": "none", "pad": 0.6} if missing else None,
        )
