"""lime's ``Explanation`` objects read as weights of features, of character spans and of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime.adapters import Word
from captum_attn_lime.errors import InputError, TargetError


def explanation_weights(explanation: Any, label: int | None = None) -> dict[int, float]:
    """Return the weight of each feature id of a lime explanation.

    Reads the explanations of every lime that calls itself 0.2.0.1, for text, rows and images.

    Args:
        explanation: A lime ``Explanation`` or ``ImageExplanation``.
        label: The explained class; needed only if several were explained. Regression has none.

    Raises:
        InputError: Not a lime explanation.
        TargetError: The class was not explained, or several were and none is named.
    """
    weights = _local_exp(explanation)[_label(explanation, label)]
    return {int(feature): float(weight) for feature, weight in weights}


def explanation_spans(explanation: Any, label: int | None = None) -> list[tuple[int, int, float]]:
    """Return the character spans of a text explanation's units with their weights, in the order of the text.

    With lime's default ``bow=True`` a unit is a word wherever it occurs, and its weight is the effect of removing all
    occurrences; it is divided evenly over them, so that sums stay what they are. A unit that was not selected
    (``num_features``) has the weight 0.

    Args:
        explanation: The ``Explanation`` of a text.
        label: The explained class; needed only if several were explained.

    Raises:
        InputError: Not the explanation of a text.
    """
    string = getattr(getattr(explanation, "domain_mapper", None), "indexed_string", None)
    if string is None:
        raise InputError(
            f"{type(explanation).__name__} is not lime's explanation of a text, so it has no character spans; "
            "for rows and images use explanation_weights."
        )
    weights = explanation_weights(explanation, label)
    out = []
    for unit in range(string.num_words()):
        places = string.positions[unit] if string.bow else [string.positions[unit]]
        for place in places:
            start = int(string.string_start[place])
            out.append((start, start + len(string.as_list[place]), weights.get(unit, 0.0) / len(places)))
    return sorted(out)


def row_difference(explanation: Any, row: Sequence[float], names: Sequence[str]) -> str | None:
    """Return what shows that a table explanation is of another row, in words; None where nothing does.

    :meth:`LimeTabular.explain` leaves the row itself. The official explainer leaves what it would display: numbers
    with two decimals, and "name=category" for categorical columns.

    Args:
        explanation: The ``Explanation`` of a row.
        row: The row, one number per column.
        names: The columns' names.
    """
    mapper = getattr(explanation, "domain_mapper", None)
    shown, labels = getattr(mapper, "feature_values", None), getattr(mapper, "feature_names", None)
    if shown is None or labels is None:
        return "it is not lime's explanation of a row"
    if getattr(mapper, "feature_indexes", None) is not None:  # a sparse row, of which zeros are left out
        return None
    if len(labels) != len(row):
        return f"it has {len(labels)} columns, not {len(row)}"
    exact = getattr(explanation, "explained_row", None)
    for i, value in enumerate(row):
        is_category = shown[i] == "True"
        rest = _after_name(str(labels[i]), names[i], i, mark="=" if is_category else "")
        if rest is None:
            return f"its column {i} is {labels[i]!r}, not {names[i]!r}"
        came = exact[i] if exact is not None else rest if is_category else shown[i]
        if not _may_be(came, float(value), decimals=exact is None and not is_category):
            return f"its {names[i]!r} is {came}, not {value:g}"
    return None


def word_weights(explanation: Any, words: Sequence[Word], label: int | None = None) -> Tensor:
    """Return the weight of each word of a text explanation, so that LIME stands beside methods that score words.

    A unit's weight is divided over its characters, and a word takes what falls on it. Words that share no character
    with any unit have no weight in LIME: NaN. With lime's default units that is the punctuation.

    Args:
        explanation: The ``Explanation`` of a text.
        words: Words whose spans are in that text, such as ``adapter.encode(text).words[0]``.
        label: The explained class; needed only if several were explained.

    Returns:
        (words,) float64.
    """
    spans = explanation_spans(explanation, label)
    out = torch.full((len(words),), float("nan"), dtype=torch.float64)
    for i, word in enumerate(words):
        shares = []
        for start, end, weight in spans:
            shared = min(end, word.end) - max(start, word.start)
            if shared > 0:
                shares.append(weight * shared / (end - start))
        if shares:
            out[i] = sum(shares)
    return out


def _after_name(label: str, name: str, i: int, *, mark: str) -> str | None:
    """Return what a column's label says after its name and the mark; None where it is the label of another column.

    Either side may have its columns numbered for lack of names.
    """
    for known in (name, str(i)):
        if label.startswith(known + mark) and (mark or label == known):
            return label[len(known + mark) :]
    if name != str(i):
        return None
    return label.rpartition(mark)[2] if mark else ""


def _may_be(came: Any, value: float, *, decimals: bool) -> bool:
    """Return whether a number as lime shows it may be this value; what is no number (a category's name) may be."""
    try:
        number = float(came)
    except ValueError:
        return True
    return abs(number - value) <= (0.005 if decimals else 0.0) + 1e-6 * abs(value)


def _local_exp(explanation: Any) -> dict[Any, Any]:
    found = getattr(explanation, "local_exp", None)
    if not isinstance(found, dict) or not found:
        raise InputError(f"expected lime's explanation, but got {type(explanation).__name__} without local_exp.")
    return found


def _label(explanation: Any, label: int | None) -> Any:
    """Return the key of the explained class in ``local_exp``."""
    have = _local_exp(explanation)
    if getattr(explanation, "mode", "classification") == "regression":
        return 1  # lime keeps the weights under 1 and their negatives under 0.
    if label is None and len(have) == 1:
        return next(iter(have))
    token = getattr(explanation, "explained_target", None)
    if token is not None:  # lime itself knows two classes: this token and any other
        if label == token:
            return next(iter(have))
        raise TargetError(f"token {label} was not explained; the explanation is of token {token}.")
    if label in have:
        return label
    classes = sorted(int(key) for key in have)
    raise TargetError(
        f"several classes were explained, {classes}; pass label=."
        if label is None
        else f"class {label} was not explained; the explanation has {classes}."
    )
