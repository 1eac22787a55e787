"""Plots of a comparison: bars of scores per feature and method, and the agreement matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import (
    METHOD_COLORS,
    NEUTRAL,
    Floats,
    as_table,
    axes_or_new,
    is_signed,
    outside_note,
    outside_of_method,
    scaled,
    shorten,
    text_color,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from pandas import DataFrame

TITLES = {"kendall_tau": "Kendall's tau-b", "spearman": "Spearman's rho", "top_k_jaccard": "overlap of the top {k}"}
NAME_LENGTH = 32  # maximum length of a feature's or a method's name


def bars(
    scores: DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    max_features: int = 15,
    normalize: bool = True,
    outside: DataFrame | None = None,
) -> Axes:
    """Draw the scores as horizontal bars, with a group per feature and a bar per method.

    Features are sorted by their mean magnitude over the methods, the strongest on top. A cross marks a missing value
    (NaN).

    Args:
        scores: One row per feature and one column per method.
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the bars.
        max_features: Number of features to show, the strongest ones; the axis label gives the total.
        normalize: Whether to divide each method by its largest magnitude. The methods have different units, so that raw
            scores are comparable only within a method.
        outside: Share of each method's magnitudes outside the features, noted below the bars: one row per token, one
            column per method, as in :attr:`Comparison.outside`.

    Returns:
        The axes, with one container of bars per method.

    Raises:
        InputError: ``scores`` is not a table of numbers, or is empty, or ``max_features`` is less than 1.

    Example:
        >>> import pandas as pd
        >>> ax = bars(pd.DataFrame({"rollout": [0.2, 0.8], "LIME": [0.1, -0.5]}, index=["age", "income"]))
        >>> [t.get_text() for t in ax.get_yticklabels()]
        ['income', 'age']
    """
    table = as_table(scores)
    if max_features < 1:
        raise InputError(f"max_features must be at least 1, but is {max_features!r}.")
    relative = np.column_stack([scaled(table.iloc[:, i].to_numpy()) for i in range(table.shape[1])])
    order = _strongest_first(relative)[:max_features]
    values = relative[order] if normalize else table.to_numpy()[order]
    n_features, n_methods = values.shape
    ax = axes_or_new(ax, 8.0, 1.6 + n_features * (0.16 * n_methods + 0.14))
    height = 0.82 / n_methods
    for i, method in enumerate(table.columns):
        places = np.arange(n_features) - 0.41 + (i + 0.5) * height
        color = METHOD_COLORS[i % len(METHOD_COLORS)]
        known = np.nan_to_num(values[:, i], nan=0.0, posinf=_edge(values), neginf=-_edge(values))
        ax.barh(places, known, height=0.92 * height, color=color, label=shorten(method, NAME_LENGTH))
        missing = places[np.isnan(values[:, i])]
        if len(missing):  # an empty line would still take up space in the layout
            ax.plot(np.zeros(len(missing)), missing, "x", color=color, markersize=4, clip_on=False)
    names = [shorten(table.index[i], NAME_LENGTH) for i in order]
    ax.set_yticks(range(n_features), names, parse_math=False)
    ax.set_ylim(n_features - 0.4, -0.6)
    ax.axvline(0, color="#666666", linewidth=0.8)
    notes = [(shorten(name, NAME_LENGTH), outside_note(outside_of_method(outside, name))) for name in table.columns]
    under = [f"{name}: {note}" for name, note in notes if note]
    ax.set_xlabel("\n".join(["score / the method's largest magnitude" if normalize else "score", *under]))
    ax.xaxis.label.set_parse_math(False)
    if n_features < len(table):
        ax.set_ylabel(f"the strongest {n_features} of {len(table)} features")
    if normalize:
        ax.set_xlim(-1.05 if is_signed(values) else 0.0, 1.05)
    _finish_bars(ax, title)
    return ax


def agreement(
    table: DataFrame,
    *,
    measure: str = "kendall_tau",
    ax: Axes | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
) -> Axes:
    """Draw the agreement of each pair of methods as a coloured matrix of numbers.

    Args:
        table: The result of :func:`captum_attn_lime.metrics.agreement`.
        measure: One of its columns.
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the matrix; defaults to the measure's name.
        cmap: A Matplotlib colour map.

    Returns:
        The axes. Undefined pairs (NaN) and the diagonal are grey.

    Raises:
        InputError: ``table`` is not an agreement table, has no pairs, or lacks the measure.

    Example:
        >>> import pandas as pd
        >>> from captum_attn_lime.metrics import agreement as measure_agreement
        >>> table = measure_agreement(pd.DataFrame({"raw": [1, 2, 3, 4], "LIME": [1, 2, 4, 3]}))
        >>> [t.get_text() for t in agreement(table).texts]
        ['0.67', '0.67']
    """
    names, matrix = square(table, measure)
    n = len(names)
    ax = axes_or_new(ax, 2.4 + 0.75 * n, 1.6 + 0.6 * n)
    import matplotlib as mpl

    signed = measure != "top_k_jaccard"
    # Signed measures have white at 0. The limits exclude the dark ends of the maps, where text is unreadable.
    chosen: Any = cmap if cmap is not None else ("RdBu" if signed else "Blues")
    colors = (mpl.colormaps[chosen] if isinstance(chosen, str) else chosen).with_extremes(bad=NEUTRAL)
    low, high = (-1.3, 1.3) if signed else (0.0, 1.3)
    ax.imshow(matrix, cmap=colors, vmin=low, vmax=high, aspect="auto")
    for i, j in zip(*np.nonzero(~np.eye(n, dtype=bool)), strict=True):
        value = matrix[i, j]
        background = NEUTRAL if np.isnan(value) else colors((value - low) / (high - low))
        label = "n/a" if np.isnan(value) else f"{value:.2f}"
        ax.text(j, i, label, ha="center", va="center", fontsize=10, color=text_color(background))
    labels = [shorten(name, NAME_LENGTH) for name in names]
    ax.set_yticks(range(n), labels, parse_math=False)
    ax.set_xticks(range(n), labels, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(n - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(n - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title if title is not None else measure_title(table, measure), fontsize=10, parse_math=False)
    return ax


def measure_title(table: DataFrame, measure: str) -> str:
    """Return the measure's display name."""
    return TITLES.get(measure, measure).format(k=table.attrs.get("k", "k"))


def square(table: Any, measure: str) -> tuple[list[str], Floats]:
    """Return the methods' names and the symmetric matrix of one measure, with NaN on the diagonal.

    Raises:
        InputError: ``table`` is not an agreement table, has no pairs, or lacks the measure.
    """
    import pandas as pd

    if not isinstance(table, pd.DataFrame) or table.index.nlevels != 2:
        raise InputError("table must be a DataFrame with a row per pair of methods; pass metrics.agreement(scores).")
    if measure not in table.columns:
        raise InputError(f"there is no measure {measure!r} in the table; choose one of {list(table.columns)}.")
    if not len(table):
        raise InputError("the agreement table has no pairs; compare at least two methods.")
    names = list(dict.fromkeys(name for pair in zip(*map(table.index.get_level_values, (0, 1)), strict=True)
                               for name in pair))  # fmt: skip
    place = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for (a, b), value in zip(table.index, table[measure], strict=True):
        matrix[place[a], place[b]] = matrix[place[b], place[a]] = value
    return [str(name) for name in names], matrix


def _strongest_first(relative: Floats) -> list[int]:
    known = np.where(np.isnan(relative), 0.0, np.abs(relative))
    counts = np.maximum((~np.isnan(relative)).sum(axis=1), 1)
    means = known.sum(axis=1) / counts
    return [int(i) for i in np.argsort(-means, kind="stable")]


def _edge(values: Floats) -> float:
    """Return the length of an infinite bar: that of the longest finite one."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 1.0


def _finish_bars(ax: Axes, title: str | None) -> None:
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    # Above the axes, because the bars may fill every corner.
    legend = ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, fontsize=9)
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    if title is not None:
        rows_of_names = -(-len(legend.get_texts()) // 4)
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8 + 15 * rows_of_names, parse_math=False)
