"""What the pictures share: reading arrays, scaling scores, colours, and an axes to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime._util.files import encodable
from captum_attn_lime.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from pandas import DataFrame

Floats = NDArray[np.float64]
Color = tuple[float, float, float, float]

NEUTRAL: Color = (0.88, 0.88, 0.88, 1.0)  # a feature that the method has no value for
HATCH = "/////"
NOTE_COLOR = "#5f5f66"
_MOST_NAMED = 3  # tokens that a note on what lies outside names
# Okabe and Ito's palette without its yellow: told apart in colour-blind eyes and in print.
METHOD_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#666666")


def as_floats(values: Any, name: str, ndim: int | tuple[int, ...]) -> Floats:
    """Return the array (or CPU or GPU tensor, with or without a gradient) as float64 of the wanted dimensions."""
    if hasattr(values, "detach"):  # a tensor, told by its verbs: pictures do without torch
        values = values.detach().cpu().double()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, but came as {type(values).__name__}.") from None
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in wanted:
        raise InputError(f"{name} has shape {array.shape}; needed are {' or '.join(map(str, wanted))} dimensions.")
    return array


def as_table(scores: Any, name: str = "scores") -> DataFrame:
    """Return the table as floats, features by methods, checked."""
    import pandas as pd

    if not isinstance(scores, pd.DataFrame):
        raise InputError(f"{name} must be a DataFrame, features by methods, but came as {type(scores).__name__}.")
    if scores.empty:
        raise InputError(f"{name} has shape {scores.shape}; there is nothing to draw.")
    try:
        table: DataFrame = scores.astype(float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must hold numbers only: {error}.") from None
    return table


def largest(values: Floats) -> float:
    """Return the largest finite magnitude, 1 where there is none to scale by."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(finite.max()) if finite.size else 0.0
    return top or 1.0


def scaled(values: Floats) -> Floats:
    """Return the scores divided by their largest finite magnitude, infinities at -1 and 1, NaN left."""
    return np.clip(values / largest(values), -1.0, 1.0)


def is_signed(values: Floats) -> bool:
    """Return whether any score is negative, so that the colours must have two sides."""
    return bool((values < 0).any())


def color_map(values: Floats, cmap: str | Colormap | None) -> Colormap:
    """Return the colour map: the one given, else two-sided for signed scores and one-sided for others."""
    import matplotlib as mpl

    chosen = mpl.colormaps[("RdBu_r" if is_signed(values) else "Oranges")] if cmap is None else cmap
    chosen = mpl.colormaps[chosen] if isinstance(chosen, str) else chosen
    return chosen.with_extremes(bad=NEUTRAL)


def limits(values: Floats) -> tuple[float, float]:
    """Return the colour limits: 0 in the middle for signed scores, at the lower end for others."""
    top = largest(values)
    return (-top if is_signed(values) else 0.0, top)


def score_colors(values: Floats, cmap: str | Colormap | None) -> list[Color]:
    """Return a colour for each score; NaN is neutral grey."""
    signed, colors = is_signed(values), color_map(values, cmap)
    # The ends of the maps are too dark to write on: stay in the light three quarters.
    places = 0.5 + 0.375 * scaled(values) if signed else 0.75 * scaled(values)
    return [NEUTRAL if np.isnan(p) else _rgba(colors(float(p))) for p in places]


def outside_note(outside: Any, called: str = "outside") -> str:
    """Return in words how much lies on nothing that is drawn; nothing where that is nothing, or not known.

    Args:
        outside: The share, 0 to 1; or a mapping or Series from what it lies on, such as "[CLS]", to shares.
        called: The argument's name, for messages.

    Example:
        >>> outside_note({"[CLS]": 0.43, "[SEP]": 0.55}), outside_note(0.004), outside_note(None)
        ('98 % lies on [SEP] (55 %), [CLS] (43 %)', 'less than 1 % lies on what is not shown', '')
    """
    if outside is None:
        return ""
    named = hasattr(outside, "items")
    names, shares = zip(*outside.items(), strict=True) if named and len(outside) else ((), [] if named else [outside])
    values = np.nan_to_num(as_floats(list(shares), called, 1))
    if (values < 0).any() or values.sum() > 1 + 1e-6:
        raise InputError(f"{called} holds shares of a whole, from 0 to 1 together, but came as {outside!r:.80}.")
    if not values.any():
        return ""
    total = f"{_percent(float(values.sum()))} lies on "
    if not named:
        return total + "what is not shown"
    order = [int(i) for i in np.argsort(-values, kind="stable") if values[i] > 0]
    if len(order) == 1:
        return total + plain(names[order[0]])
    first = ", ".join(f"{plain(names[i])} ({_percent(float(values[i]))})" for i in order[:_MOST_NAMED])
    return total + first + (" and others" if len(order) > _MOST_NAMED else "")


def outside_of_method(outside: DataFrame | None, method: Any) -> Any:
    """Return one method's column of a table of shares; None where the table lacks it."""
    if outside is None:
        return None
    if not hasattr(outside, "columns"):
        raise InputError(
            f"outside must be a table of shares, tokens by methods, as Comparison.outside is, but came as "
            f"{type(outside).__name__}."
        )
    return outside[method] if method in outside.columns else None


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= share < 1 - 1e-6 else f"{100 * share:.0f} %"


def text_color(background: Color) -> str:
    """Return black or white, whichever stands out more (WCAG relative luminance)."""
    luminance = _luminance(background)
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the axes given, or the only one of a new figure of this size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def plain(label: Any) -> str:
    """Return the label on one line, visible where it is empty, and without what no font can draw (half surrogates)."""
    return " ".join(encodable(str(label)).split()) or "␣"


def shorten(label: Any, limit: int) -> str:
    """Return the label on one line and cut to the limit."""
    line = plain(label)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _rgba(color: Any) -> Color:
    red, green, blue, alpha = (float(c) for c in color)
    return red, green, blue, alpha


def _luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
