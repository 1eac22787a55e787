"""Helpers shared by the plots: input checks, score scaling, colours, notes and axes."""

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

NEUTRAL: Color = (0.88, 0.88, 0.88, 1.0)  # a feature for which the method has no value
HATCH = "/////"
NOTE_COLOR = "#5f5f66"
_MOST_NAMED = 3  # maximum number of tokens in a note on the share outside
# Okabe and Ito's palette without yellow: distinguishable with colour blindness and in print.
METHOD_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#666666")


def as_floats(values: Any, name: str, ndim: int | tuple[int, ...]) -> Floats:
    """Return an array or tensor as a float64 array, checked for its number of dimensions."""
    if hasattr(values, "detach"):  # a tensor, recognised without importing torch
        values = values.detach().cpu().double()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, but is {type(values).__name__}.") from None
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in wanted:
        raise InputError(f"{name} has shape {array.shape}, but {' or '.join(map(str, wanted))} dimensions are needed.")
    return array


def as_table(scores: Any, name: str = "scores") -> DataFrame:
    """Return the table of features by methods with float values, checked."""
    import pandas as pd

    if not isinstance(scores, pd.DataFrame):
        raise InputError(f"{name} must be a DataFrame, features by methods, but is {type(scores).__name__}.")
    if scores.empty:
        raise InputError(f"{name} has shape {scores.shape}; there is nothing to draw.")
    try:
        table: DataFrame = scores.astype(float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must contain only numbers: {error}.") from None
    return table


def largest(values: Floats) -> float:
    """Return the largest finite magnitude; 1 if there is none, or if it is 0."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(finite.max()) if finite.size else 0.0
    return top or 1.0


def scaled(values: Floats) -> Floats:
    """Return the scores divided by their largest finite magnitude; infinities become -1 and 1, NaN stays."""
    return np.clip(values / largest(values), -1.0, 1.0)


def is_signed(values: Floats) -> bool:
    """Return whether any score is negative, which calls for a diverging colour map."""
    return bool((values < 0).any())


def color_map(values: Floats, cmap: str | Colormap | None) -> Colormap:
    """Return the given colour map; by default a diverging one for signed scores and a sequential one for others."""
    import matplotlib as mpl

    chosen = mpl.colormaps[("RdBu_r" if is_signed(values) else "Oranges")] if cmap is None else cmap
    chosen = mpl.colormaps[chosen] if isinstance(chosen, str) else chosen
    return chosen.with_extremes(bad=NEUTRAL)


def limits(values: Floats) -> tuple[float, float]:
    """Return the colour limits: symmetric around 0 for signed scores, starting at 0 for others."""
    top = largest(values)
    return (-top if is_signed(values) else 0.0, top)


def score_colors(values: Floats, cmap: str | Colormap | None) -> list[Color]:
    """Return a colour for each score; NaN is grey."""
    signed, colors = is_signed(values), color_map(values, cmap)
    # Text is unreadable on the dark ends of the colour maps, so only their light three quarters are used.
    places = 0.5 + 0.375 * scaled(values) if signed else 0.75 * scaled(values)
    return [NEUTRAL if np.isnan(p) else _rgba(colors(float(p))) for p in places]


def outside_note(outside: Any, called: str = "outside") -> str:
    """Return a note on the share outside the features; an empty string if it is zero or unknown.

    Args:
        outside: The share, 0 to 1; or a mapping or Series from tokens, such as "[CLS]", to shares.
        called: The argument's name, for error messages.

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
        raise InputError(f"{called} must hold shares that sum to at most 1, but is {outside!r:.80}.")
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
    """Return one method's column of the table of shares; None if there is none."""
    if outside is None:
        return None
    if not hasattr(outside, "columns"):
        raise InputError(
            f"outside must be a DataFrame of shares, tokens by methods, but is {type(outside).__name__}; pass "
            "Comparison.outside."
        )
    return outside[method] if method in outside.columns else None


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= share < 1 - 1e-6 else f"{100 * share:.0f} %"


def text_color(background: Color) -> str:
    """Return black or white, whichever has the higher contrast (WCAG relative luminance)."""
    luminance = _luminance(background)
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the given axes, or the axes of a new figure of this size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def plain(label: Any) -> str:
    """Return the label on one line, without lone surrogates; an empty one becomes a visible symbol."""
    return " ".join(encodable(str(label)).split()) or "␣"


def shorten(label: Any, limit: int) -> str:
    """Return the label on one line, truncated to the limit."""
    line = plain(label)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _rgba(color: Any) -> Color:
    red, green, blue, alpha = (float(c) for c in color)
    return red, green, blue, alpha


def _luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
