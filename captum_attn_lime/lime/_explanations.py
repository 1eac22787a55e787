"""Reads lime's ``Explanation`` objects as weights of features, character spans, words and tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.adapters import TextEncoding, Word
from captum_attn_lime.adapters.text._words import Span
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime._units import occurrences

Sharing = Literal["split", "broadcast", "first"]


def explanation_weights(explanation: Any, label: int | str | None = None) -> dict[int, float]:
    """Return the weight of each feature id of a lime explanation.

    It reads explanations of texts, rows and images, from every release numbered 0.2.0.1.

    Args:
        explanation: A lime ``Explanation`` or ``ImageExplanation``.
        label: The explained class; needed only if several were explained. Regressions have none.

    Raises:
        InputError: ``explanation`` is no lime explanation.
        TargetError: The class was not explained, or several were and ``label`` is None.
    """
    weights = _local_exp(explanation)[explained_label(explanation, label)]
    return {int(feature): float(weight) for feature, weight in weights}


def explanation_numbers(explanation: Any, label: int | str | None = None) -> dict[int, float]:
    """Return the number of each feature id, by the ``semantics`` of the class that made the explanation.

    For :class:`LimeTabular` and :class:`LimeSequence` they equal the results of ``attribute``: slopes with
    ``semantics="gradient"``, and with ``"times_input"`` the contribution of a feature's distance from its mean, where
    lime's weights are per standard deviation. For all other explanations they are lime's weights.

    Args:
        explanation: A lime ``Explanation`` or ``ImageExplanation``.
        label: The explained class, by index or name; needed only if several were explained.
    """
    weights = explanation_weights(explanation, label)
    factors = getattr(explanation, "factors", None)
    return weights if factors is None else {k: float(w * factors[k]) for k, w in weights.items()}


def explanation_spans(explanation: Any, label: int | str | None = None) -> list[tuple[int, int, float]]:
    """Return the character spans of a text explanation's units with their weights, in the order of the text.

    With lime's default ``bow=True`` a unit is all occurrences of a word, and its weight is divided evenly over them,
    which preserves sums. Units that were not selected (``num_features``) have the weight 0.

    Args:
        explanation: The ``Explanation`` of a text.
        label: The explained class; needed only if several were explained.

    Raises:
        InputError: It is not the explanation of a text.
    """
    units = _units_of(explanation)
    weights = explanation_weights(explanation, label)
    count = Counter(unit for unit, _, _ in units)
    return sorted((start, end, weights.get(unit, 0.0) / count[unit]) for unit, start, end in units)


def row_difference(explanation: Any, row: Sequence[float], names: Sequence[str]) -> str | None:
    """Return how a table explanation differs from a row, as text; None where it may explain the row.

    :meth:`LimeTabular.explain` stores the row. The official explainer stores only what it displays: numbers with two
    decimals, and "name=category" for categorical columns.

    Args:
        explanation: The ``Explanation`` of a row.
        row: The row, one number per column.
        names: The columns' names.
    """
    mapper = getattr(explanation, "domain_mapper", None)
    shown, labels = getattr(mapper, "feature_values", None), getattr(mapper, "feature_names", None)
    if shown is None or labels is None:
        return "it is not lime's explanation of a row"
    if getattr(mapper, "feature_indexes", None) is not None:  # a sparse row, without its zeros
        return None
    if len(labels) != len(row):
        return f"it has {len(labels)} columns, not {len(row)}"
    exact = getattr(explanation, "row", None)
    for i, value in enumerate(row):
        is_category = shown[i] == "True"
        rest = _after_name(str(labels[i]), names[i], i, mark="=" if is_category else "")
        if rest is None:
            return f"its column {i} is {labels[i]!r}, not {names[i]!r}"
        seen = exact[i] if exact is not None else rest if is_category else shown[i]
        if not _may_equal(seen, float(value), decimals=exact is None and not is_category):
            return f"its {names[i]!r} is {seen}, not {value:g}"
    return None


def word_weights(
    explanation: Any,
    words: Sequence[Word],
    label: int | str | None = None,
    *,
    share: Sharing = "split",
    unselected: float = 0.0,
) -> Tensor:
    """Return the weight of each word of a text explanation, to compare LIME with methods that score words.

    Words that share no character with any unit have no weight in LIME: NaN. With lime's default units these are
    punctuation.

    Args:
        explanation: The ``Explanation`` of a text.
        words: Words of the text, such as ``adapter.encode(text).words[0]``.
        label: The explained class; needed only if several were explained.
        share: How the words that a unit covers get its weight. ``"split"``: divided over its occurrences and their
            characters, which preserves sums. ``"first"``: divided over its occurrences, each to its first word.
            ``"broadcast"``: the whole weight for every word, as Captum does with the cells of a feature.
        unselected: The weight of units that lime did not select (``num_features``): 0, or NaN.

    Returns:
        (words,) float64.
    """
    spans: list[Span | None] = [(word.start, word.end) for word in words]
    return _shared(explanation, spans, label, share, by_characters=True, unselected=unselected)


def token_weights(
    explanation: Any, encoding: TextEncoding, label: int | str | None = None, *, share: Sharing = "split"
) -> Tensor:
    """Return the weight of each token of a text explanation, (N,) float64, in the order of ``encoding.inputs``.

    Tokens without a weight in LIME are NaN: special tokens, tokens between units, and the other text of a pair.
    ``.nan_to_num()`` makes them 0.

    Args:
        explanation: The ``Explanation`` of a text.
        encoding: The encoding of that single text.
        label: The explained class; needed only if several were explained.
        share: As in :func:`word_weights`, with tokens for words: ``"split"`` divides a unit's weight over its tokens
            in proportion to the characters that they share with it.

    Raises:
        InputError: The explanation is of another text.
    """
    raw = getattr(getattr(getattr(explanation, "domain_mapper", None), "indexed_string", None), "raw", None)
    texts = encoding.texts[0] if isinstance(encoding.texts[0], tuple) else (encoding.texts[0],)
    marked = getattr(explanation, "explained_text", None)
    matches = [k for k, text in enumerate(texts) if text == raw and marked in (None, ("first", "second")[k])]
    if len(encoding) != 1 or not matches:
        raise InputError(
            f"the explanation is of the text {str(raw)[:60]!r}, but the encoding has {len(encoding)} text(s), the "
            f"first {encoding.texts[0]!r:.60}; encode the explained text alone."
        )
    spans = [None if s is None or s[0] != matches[0] else (s[1], s[2]) for s in encoding.token_spans[0]]
    return _shared(explanation, spans, label, share, by_characters=False)


def explanation_score(explanation: Any, label: int | str | None = None) -> float:
    """Return the weighted R² of lime's linear model, from a number or a dict, by the release of lime.

    Args:
        explanation: A lime explanation.
        label: The explained class; needed only if several were explained. lime from PyPI keeps only the last one's.
    """
    return _number(explanation, explanation.score, label)


def explanation_prediction(explanation: Any, label: int | str | None = None) -> float:
    """Return the prediction of lime's linear model for the input; arguments as in :func:`explanation_score`."""
    return _number(explanation, explanation.local_pred, label)


def safe_html(explanation: Any) -> str:
    """Return lime's HTML page of a text or row explanation, with every bar under its class and names escaped.

    lime draws positive weights of two classes under the second one, whichever was explained, and does not escape words
    in its script, so that ``</script>`` in a word would end it.

    Args:
        explanation: An ``Explanation`` of the official explainer. The page of a :class:`LimeExplanation` is safe.
    """
    from captum_attn_lime.lime._html import html_page
    from captum_attn_lime.lime._result import LimeExplanation

    return explanation.as_html() if isinstance(explanation, LimeExplanation) else html_page(explanation)


def _shared(
    explanation: Any,
    spans: Sequence[Span | None],
    label: int | str | None,
    share: Sharing,
    *,
    by_characters: bool,
    unselected: float = 0.0,
) -> Tensor:
    """Return the weight of each span of a text explanation; NaN for spans without a unit."""
    if share not in get_args(Sharing):
        raise InputError(f"share must be one of {', '.join(map(repr, get_args(Sharing)))}, but is {share!r}.")
    units = _units_of(explanation)
    count = Counter(unit for unit, _, _ in units)
    weights = explanation_weights(explanation, label)
    out = np.full(len(spans), np.nan)
    places = [(start, end) for _, start, end in units]
    for (unit, start, end), overlaps in zip(units, _overlaps(places, spans), strict=True):
        whole = weights.get(unit, unselected)
        if np.isnan(whole):
            continue
        weight = whole / count[unit]
        total = end - start if by_characters else sum(overlaps.values())
        for k, n in overlaps.items():
            part = {
                "split": weight * n / total,
                "first": weight if k == min(overlaps) else 0.0,
                "broadcast": whole,
            }[share]
            out[k] = part if np.isnan(out[k]) else out[k] + part
    return torch.from_numpy(out)


def _units_of(explanation: Any) -> list[tuple[int, int, int]]:
    """Return feature, start and end of each unit of a text explanation, in the order of the text."""
    string = getattr(getattr(explanation, "domain_mapper", None), "indexed_string", None)
    if string is None:
        raise InputError(
            f"{type(explanation).__name__} is not lime's explanation of a text and has no character spans; for rows "
            "and images use explanation_weights."
        )
    return occurrences(string)


def _overlaps(units: Sequence[Span], spans: Sequence[Span | None]) -> Iterator[dict[int, int]]:
    """Yield for each unit the number of characters that it shares with each overlapping span, by the span's index."""
    order = sorted((s[0], s[1], k) for k, s in enumerate(spans) if s is not None and s[1] > s[0])
    ends = list(accumulate((end for _, end, _ in order), max))  # the latest end of the spans so far
    for start, end in units:
        shared = {}
        for a, b, k in order[bisect_right(ends, start) : bisect_left(order, (end,))]:
            if b > start:
                shared[k] = min(end, b) - max(start, a)
        yield shared


def _number(explanation: Any, value: Any, label: int | str | None) -> float:
    if isinstance(value, dict):
        value = value[explained_label(explanation, label)]
    return float(np.asarray(value, dtype=float).reshape(-1)[0])


def _after_name(label: str, name: str, i: int, *, mark: str) -> str | None:
    """Return the rest of a column's label after its name and the mark; None for the label of another column.

    Unnamed columns are numbered, in the label or in ``name``.
    """
    for known in (name, str(i)):
        if label.startswith(known + mark) and (mark or label == known):
            return label[len(known + mark) :]
    if name != str(i):
        return None
    return label.rpartition(mark)[2] if mark else ""


def _may_equal(shown: Any, value: float, *, decimals: bool) -> bool:
    """Return whether a value that lime shows may equal a number; names of categories may."""
    try:
        number = float(shown)
    except ValueError:
        return True
    return abs(number - value) <= (0.005 if decimals else 0.0) + 1e-6 * abs(value)


def _local_exp(explanation: Any) -> dict[Any, Any]:
    weights = getattr(explanation, "local_exp", None)
    if not isinstance(weights, dict) or not weights:
        raise InputError(
            f"explanation must be an explanation of lime, but is {type(explanation).__name__} without local_exp."
        )
    return weights


def explained_label(explanation: Any, label: int | str | None) -> Any:
    """Return the key of the explained class in ``local_exp``."""
    weights = _local_exp(explanation)
    if getattr(explanation, "mode", "classification") == "regression":
        return 1  # lime keeps the weights under 1 and their negatives under 0
    if label is None and len(weights) == 1:
        return next(iter(weights))
    explained = getattr(explanation, "explained", None)
    if isinstance(label, str):
        known = getattr(explanation, "all_diagnostics", {})
        named = [key for key, one in known.items() if one.explained.name == label]
        names = [str(name) for name in getattr(explanation, "class_names", None) or ()]
        label = named[0] if named else names.index(label) if label in names else label
    token = getattr(explanation, "token", None)
    if token is not None:  # lime has two classes: this token and any other
        if label in (token, getattr(explained, "name", None)) or (isinstance(label, str) and label in weights):
            return next(iter(weights))
        raise TargetError(f"token {label} was not explained; the explanation is of token {token}.")
    if label in weights:
        return label
    classes = sorted(int(key) for key in weights)
    raise TargetError(
        f"several classes were explained, {classes}; pass label=."
        if label is None
        else f"class {label} was not explained; the explanation has {classes}."
    )
