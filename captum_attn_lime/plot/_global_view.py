"""Plot of global views: the mean magnitude of each feature over many examples, with its spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import (
    METHOD_COLORS,
    Floats,
    as_table,
    axes_or_new,
    largest,
    outside_note,
    shorten,
)
from captum_attn_lime.plot._comparison import NAME_LENGTH, _finish_bars, _strongest_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_COLUMNS = ("mean", "sd", "count")


def global_view(
    views: DataFrame | Mapping[str, DataFrame],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    max_features: int = 15,
    min_count: int = 1,
) -> Axes:
    """Draw the mean magnitude of each feature as a horizontal bar, with its standard deviation as a whisker.

    Several methods appear side by side, each divided by its largest mean, since their units differ. Features are sorted
    by the mean over the methods, the strongest on top. The small number after a bar is the number of examples with the
    feature. A cross marks a method without any.

    Args:
        views: A result of :func:`captum_attn_lime.global_view`, or a mapping from method names to several.
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the bars.
        max_features: Number of features to show, the strongest ones; the axis label gives the total.
        min_count: Minimum number of examples of a feature: one that occurs once may be strong by chance.

    Returns:
        The axes, with one container of bars per method. The mean share outside the features is noted below.

    Raises:
        InputError: A table lacks its columns or is empty, or no feature has ``min_count`` examples.

    Example:
        >>> import pandas as pd
        >>> view = pd.DataFrame({"mean": [0.4, 0.1], "sd": [0.1, 0.2], "count": [9, 5]}, index=["good", "film"])
        >>> [t.get_text() for t in global_view(view, min_count=3).get_yticklabels()]
        ['good', 'film']
    """
    import pandas as pd

    given = dict(views) if isinstance(views, Mapping) else {"scores": views}
    if not given:
        raise InputError("views is empty; pass at least one table.")
    if max_features < 1:
        raise InputError(f"max_features must be at least 1, but is {max_features!r}.")
    tables = {
        name: _checked(f"views[{name!r}]" if isinstance(views, Mapping) else "views", view, min_count)
        for name, view in given.items()
    }
    parts = {c: pd.concat([t[c] for t in tables.values()], axis=1, keys=list(tables)).to_numpy() for c in _COLUMNS}
    names = pd.concat([t["mean"] for t in tables.values()], axis=1).index
    if not len(names):
        raise InputError(f"no feature has {min_count} examples; pass a smaller min_count=.")
    if len(tables) > 1:
        scales = np.array([largest(column) for column in parts["mean"].T])
        parts["mean"], parts["sd"] = parts["mean"] / scales, parts["sd"] / scales
    order = _strongest_first(parts["mean"])[:max_features]
    mean, sd, count = (parts[c][order] for c in _COLUMNS)
    ax = axes_or_new(ax, 8.0, 1.6 + len(order) * (0.2 * len(tables) + 0.14))
    _draw(ax, list(tables), mean, sd, count)
    ax.set_yticks(range(len(order)), [shorten(names[i], NAME_LENGTH) for i in order], parse_math=False)
    ax.set_ylim(len(order) - 0.4, -0.6)
    unit = " / the method's largest" if len(tables) > 1 else ""
    notes = [(name, outside_note({"no feature": view.attrs.get("outside", 0.0)})) for name, view in given.items()]
    under = [f"{shorten(name, NAME_LENGTH)}: {note}" if len(given) > 1 else note for name, note in notes if note]
    ax.set_xlabel("\n".join([f"mean |score|{unit} ± standard deviation; small numbers: examples", *under]))
    ax.xaxis.label.set_parse_math(False)
    if len(order) < len(names):
        ax.set_ylabel(f"the strongest {len(order)} of {len(names)} features")
    named = isinstance(views, Mapping)
    _finish_bars(ax, title if named else None)
    legend = ax.get_legend()
    if legend is not None and not named:
        legend.remove()
    if title is not None and not named:
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    return ax


def _draw(ax: Axes, methods: list[str], mean: Floats, sd: Floats, count: Floats) -> None:
    """Draw the bars of each method with whiskers and counts; arrays are (features, methods)."""
    height = 0.82 / len(methods)
    reach = np.nan_to_num(mean) + np.nan_to_num(sd)
    # Magnitudes are not negative, so whiskers end at 0.
    below = np.minimum(np.nan_to_num(sd), np.nan_to_num(mean))
    for i, method in enumerate(methods):
        places = np.arange(len(mean)) - 0.41 + (i + 0.5) * height
        color = METHOD_COLORS[i % len(METHOD_COLORS)]
        known = np.nan_to_num(mean[:, i])
        ax.barh(places, known, height=0.92 * height, color=color, label=shorten(method, NAME_LENGTH))
        spread = np.nan_to_num(sd[:, i]) > 0  # a single example has none
        if spread.any():
            ax.errorbar(
                mean[spread, i],
                places[spread],
                xerr=np.stack([below[spread, i], sd[spread, i]]),
                fmt="none",
                ecolor="#333333",
                elinewidth=0.9,
                capsize=2,
            )
        missing = np.isnan(mean[:, i])
        if missing.any():
            ax.plot(np.zeros(missing.sum()), places[missing], "x", color=color, markersize=4, clip_on=False)
        for k in np.flatnonzero(~missing):
            ax.annotate(
                f"{count[k, i]:.0f}", (reach[k, i], places[k]), (4, 0), textcoords="offset points", va="center",
                fontsize=7, color="#666666",
            )  # fmt: skip
    ax.set_xlim(0, 1.08 * (float(reach.max()) or 1.0))


def _checked(called: str, view: Any, min_count: int) -> DataFrame:
    """Return the rows of a table with at least ``min_count`` examples, checked."""
    table = as_table(view, called)
    lacking = [c for c in _COLUMNS if c not in table.columns]
    if lacking:
        raise InputError(f"{called} lacks {lacking}; pass a table from captum_attn_lime.global_view.")
    if not table.index.is_unique:
        raise InputError(f"{called} has a feature twice; pass a table from captum_attn_lime.global_view.")
    kept: DataFrame = table[table["count"] >= min_count]
    return kept
