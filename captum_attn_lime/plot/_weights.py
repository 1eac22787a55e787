"""Plot of one explanation's weights with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import Floats, as_floats, axes_or_new, outside_note, shorten
from captum_attn_lime.plot._comparison import NAME_LENGTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Z = 1.96  # standard errors on either side of a 95 % interval
_STRONG, _PALE = 0.33, 0.15  # distances of the bars' colours from the middle of the colour map


def weights(
    values: Any,
    *,
    label: int | str | None = None,
    errors: Any = None,
    names: Sequence[Any] | Mapping[Any, Any] | None = None,
    top: int = 15,
    ax: Axes | None = None,
    title: str | None = None,
    outside: Any = None,
) -> Axes:
    """Draw weights as horizontal bars, the strongest on top, with whiskers of 1.96 standard errors.

    Positive bars are red and negative ones blue, as in the other plots. Bars whose whisker includes 0 are pale, because
    even their sign is uncertain.

    Args:
        values: An explanation from :meth:`LimeText.explain` or another LIME class, which includes standard errors and
            names; an explanation from lime; a mapping or pandas Series from features to weights; or weights
            (features,).
        label: The class to draw, by index or name, if the explanation has several.
        errors: Standard errors in the form of the weights; NaN draws no whisker. Defaults to the explanation's.
        names: The features' names: a sequence in the order of the weights (for an explanation, by feature id), or a
            mapping.
        top: Number of features to show, the strongest ones; the axis label gives the total.
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the bars.
        outside: Share of the attention outside the features: a number from 0 to 1, or a mapping from special tokens to
            shares.

    Returns:
        The axes, with one container of bars.

    Raises:
        InputError: There are no weights, or the errors or names do not match them.

    Example:
        >>> ax = weights({"good": 0.31, "film": -0.02, "not": -0.2}, errors={"good": 0.02, "film": 0.03, "not": 0.02})
        >>> [t.get_text() for t in ax.get_yticklabels()]
        ['good', 'not', 'film']
    """
    if top < 1:
        raise InputError(f"top must be at least 1, but is {top!r}.")
    found, own_errors, own_names, note, unit = _read(values, label)
    given = own_errors if errors is None else _by_feature(errors, "errors", found)
    labels = own_names if names is None else _names(names, found)
    features = sorted(found, key=lambda k: -abs(found[k]) if found[k] == found[k] else 1.0)[:top]
    bars = np.array([found[k] for k in features], dtype=np.float64)
    whiskers = np.array([_Z * given.get(k, np.nan) for k in features], dtype=np.float64)
    if (whiskers < 0).any():
        raise InputError("errors must not be negative.")
    ax = axes_or_new(ax, 7.0, 1.5 + 0.32 * len(features))
    _draw(ax, bars, whiskers)
    labelled = [shorten(labels.get(k, k), NAME_LENGTH) for k in features]
    ax.set_yticks(range(len(features)), labelled, parse_math=False)
    ax.set_ylim(len(features) - 0.4, -0.6)
    known = np.isfinite(whiskers)
    pale = "; pale: may be 0" if (whiskers >= np.abs(bars)).any() else ""
    ax.set_xlabel(f"{unit} ± 1.96 standard errors{pale}" if known.any() else unit)
    if len(features) < len(found):
        ax.set_ylabel(f"the strongest {len(features)} of {len(found)} features")
    note = ";  ".join(part for part in (note, outside_note(outside)) if part)
    if note:
        ax.annotate(
            note,
            (0, 1),
            (0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8.5,
            color="#555555",
            parse_math=False,
        )
    if title is not None:
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=20 if note else 6, parse_math=False)
    return ax


def _draw(ax: Axes, bars: Floats, whiskers: Floats) -> None:
    import matplotlib as mpl

    places = np.arange(len(bars))
    reaches_zero = whiskers >= np.abs(bars)
    strength = np.where(reaches_zero, _PALE, _STRONG) * np.sign(np.nan_to_num(bars))
    ax.barh(places, np.nan_to_num(bars), height=0.72, color=mpl.colormaps["RdBu_r"](0.5 + strength))
    known = np.isfinite(whiskers) & np.isfinite(bars)
    if known.any():
        ax.errorbar(
            bars[known], places[known], xerr=whiskers[known], fmt="none", ecolor="#222222", elinewidth=1.1, capsize=2.5
        )
    missing = places[np.isnan(bars)]
    if len(missing):
        ax.plot(np.zeros(len(missing)), missing, "x", color="#666666", markersize=4, clip_on=False)
    ax.axvline(0, color="#666666", linewidth=0.8)
    ax.margins(x=0.06)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _read(values: Any, label: int | str | None) -> tuple[dict[Any, float], dict[Any, float], dict[Any, str], str, str]:
    """Return weights, standard errors and names by feature, a note to show below the title, and the unit."""
    if not hasattr(values, "local_exp"):
        found = _as_dict(values, "values")
        if not found:
            raise InputError("values is empty; there is nothing to draw.")
        return found, {}, {}, "", "weight"
    key, pairs = _of_class(values, label)
    found = {int(k): float(w) for k, w in pairs}
    mapper = getattr(values, "domain_mapper", None)
    if mapper is None:
        names = {k: f"segment {k}" for k in found}
    else:
        names = {k: str(mapper.map_exp_ids([(k, 0.0)])[0][0]) for k in found}
    # Without bins, lime's weights are per standard deviation of a column.
    unit = "weight" if getattr(values, "semantics", "contrast") == "contrast" else "weight per standard deviation"
    known = getattr(values, "all_diagnostics", {})
    diagnostics = known.get(key, getattr(values, "diagnostics", None))
    if diagnostics is None:
        return found, {}, names, "", unit
    predicted = " (predicted)" if diagnostics.explained.is_predicted else ""
    note = (
        f"{diagnostics.explained.label}{predicted}: {diagnostics.fx:.3g};  R² {diagnostics.r2_shown:.2f};  "
        f"{diagnostics.n_samples} samples"
    )
    return found, dict(diagnostics.standard_errors), names, note, unit


def _of_class(values: Any, label: int | str | None) -> tuple[int, Any]:
    """Return the key of the class in the explanation, with its features and weights."""
    local = values.local_exp
    if getattr(values, "mode", "classification") == "regression":
        return 1, local[1]  # lime stores the weights under 1 and the negated weights under 0
    if isinstance(label, str):
        known = getattr(values, "all_diagnostics", {}).items()
        label = next((key for key, one in known if one.explained.name == label), label)
    if label is None and len(local) == 1:
        label = next(iter(local))
    if label is not None and label in local:
        return int(label), local[label]
    raise InputError(
        f"the explanation is of the classes {sorted(int(k) for k in local)}; pass one of them as label=, not {label!r}."
    )


def _as_dict(values: Any, called: str) -> dict[Any, float]:
    if isinstance(values, Mapping):
        keys, array = list(values), as_floats(list(values.values()), called, 1)
    elif _is_series(values):
        keys, array = list(values.index), as_floats(values.to_numpy(), called, 1)
    else:
        array = as_floats(values, called, 1)
        keys = list(range(len(array)))
    if len(set(keys)) != len(keys):
        raise InputError(f"{called} names a feature twice.")
    return dict(zip(keys, array.tolist(), strict=True))


def _by_feature(errors: Any, called: str, found: dict[Any, float]) -> dict[Any, float]:
    """Return the errors by feature; an array is in the order of the features."""
    given = _as_dict(errors, called)
    is_named = isinstance(errors, Mapping) or _is_series(errors)
    if is_named and not set(given) & set(found):
        raise InputError(f"{called} has the features {list(given)[:5]}, but the weights have {list(found)[:5]}.")
    if is_named:
        return given
    if len(given) != len(found):
        raise InputError(f"there are {len(found)} weights but {len(given)} {called}; pass one per weight.")
    return dict(zip(found, given.values(), strict=True))


def _is_series(values: Any) -> bool:
    return hasattr(values, "index") and hasattr(values, "to_numpy")


def _names(names: Any, found: dict[Any, float]) -> dict[Any, str]:
    if isinstance(names, Mapping):
        return {k: str(v) for k, v in names.items()}
    given = [str(n) for n in names]
    if all(isinstance(k, int) and 0 <= k < len(given) for k in found):  # by feature id
        return dict(enumerate(given))
    if len(given) != len(found):
        raise InputError(f"there are {len(found)} weights but {len(given)} names; pass one per weight.")
    return dict(zip(found, given, strict=True))
