"""Agreement of attributions: how similarly two methods rank the same features.

Agreement is not quality. Two methods can agree and both be wrong about the model; faithfulness metrics evaluate a
method.

Every function here drops the features for which either method has no value (NaN). It returns NaN without a warning if
the result is undefined: fewer than two features are left, or a method gives them all the same score.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_attn_lime.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Return Kendall's tau-b of two score vectors, from -1 (reversed order) to 1 (same order).

    Tau-b is (C - D) / sqrt((n0 - n1)(n0 - n2)), with C concordant pairs, D discordant pairs, n0 pairs in all, and n1
    and n2 pairs tied in ``a`` and in ``b``.

    Args:
        a: Scores, ``(n,)``.
        b: Scores of the same features, ``(n,)``.

    Returns:
        Tau-b; NaN if either vector is constant or fewer than two features have both values.

    Raises:
        InputError: The vectors differ in length, or are not vectors of real numbers.

    Reference:
        Kendall, The treatment of ties in ranking problems, Biometrika 1945.

    Example:
        >>> round(kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]), 3)
        0.667
    """
    from scipy.stats import kendalltau

    x, y = _pair(a, b)
    if _is_constant(x) or _is_constant(y):
        return float("nan")
    return float(np.clip(kendalltau(x, y, variant="b").statistic, -1.0, 1.0))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation, from -1 to 1; ties get average ranks.

    Args:
        a: Scores, ``(n,)``.
        b: Scores of the same features, ``(n,)``.

    Returns:
        The correlation; NaN if either vector is constant or fewer than two features have both values.

    Raises:
        InputError: The vectors differ in length, or are not vectors of real numbers.

    Example:
        >>> round(spearman([1, 2, 3, 4], [1, 2, 4, 3]), 3)
        0.8
    """
    from scipy.stats import spearmanr

    x, y = _pair(a, b)
    if _is_constant(x) or _is_constant(y):
        return float("nan")
    return float(np.clip(spearmanr(x, y).statistic, -1.0, 1.0))


def top_k_jaccard(a: ArrayLike, b: ArrayLike, k: int) -> float:
    """Return the Jaccard overlap of the two top-k sets, from 0 to 1: their intersection over their union.

    A feature is among the top k if at most k features, itself included, score at least as high. If a tie crosses the
    k-th place, all tied features are left out. The result is therefore independent of the order of the features, and
    the many zeros of a sparse explanation never fill a top k.

    Random scores overlap too: see :func:`jaccard_by_chance`.

    Args:
        a: Scores, ``(n,)``; the highest rank first. Pass magnitudes to rank by magnitude.
        b: Scores of the same features, ``(n,)``.
        k: Size of the top, at least 1.

    Returns:
        The overlap; NaN if there are at most ``k`` features (all would be in the top), or if a tie leaves one of the
        two sets empty.

    Raises:
        InputError: The vectors differ in length or are not vectors of real numbers, or ``k`` is not a positive int.

    Example:
        >>> round(top_k_jaccard([9, 8, 7, 1], [9, 1, 7, 8], 2), 3)
        0.333
    """
    x, y = _pair(a, b)
    k = check_k(k)
    if len(x) <= k:
        return float("nan")
    top_x, top_y = _top(x, k), _top(y, k)
    if not top_x.any() or not top_y.any():
        return float("nan")
    return float((top_x & top_y).sum() / (top_x | top_y).sum())


def jaccard_by_chance(n: int, k: int) -> float:
    """Return the expected top-k overlap of two random rankings of ``n`` features, the baseline for overlaps.

    The number m of shared features is hypergeometric, and the overlap is m / (2k - m).

    Args:
        n: Number of features.
        k: Size of the top, at least 1.

    Returns:
        The expected overlap; NaN if ``n <= k``, as for :func:`top_k_jaccard`.

    Example:
        >>> round(jaccard_by_chance(20, 5), 3)
        0.155
    """
    k = check_k(k)
    if n <= k:
        return float("nan")
    return sum(comb(k, m) * comb(n - k, k - m) * m / (2 * k - m) for m in range(1, k + 1)) / comb(n, k)


# The columns of the table of agreement: a function of two score vectors and the size of the top.
MEASURES: dict[str, Callable[[ArrayLike, ArrayLike, int], float]] = {
    "kendall_tau": lambda a, b, k: kendall_tau(a, b),
    "spearman": lambda a, b, k: spearman(a, b),
    "top_k_jaccard": top_k_jaccard,
}


def agreement(scores: DataFrame, *, k: int = 5, signed: bool = False) -> DataFrame:
    """Return the agreement of each pair of methods.

    By default this compares the *magnitudes* of the scores, because attention has no sign: an attention weight says
    that a word was read, not whether it speaks for or against a class. Compare signed scores only if all methods have
    signs.

    Args:
        scores: One row per feature and one column per method; NaN where a method has no value for a feature. Leave out
            special tokens and padding: their shared large or zero scores would make unrelated methods agree.
        k: Size of the top for ``top_k_jaccard``.
        signed: Compare the scores themselves instead of their magnitudes.

    Returns:
        One row per pair of methods, indexed by ``(method_a, method_b)``, with a column for each of ``MEASURES``:
        ``kendall_tau``, ``spearman`` and ``top_k_jaccard``. ``attrs`` holds ``k``, ``signed`` and
        ``jaccard_by_chance``: for each pair of methods the overlap of random scores over the features that both have a
        value for. Empty where there is only one method.

    Raises:
        InputError: ``scores`` is not a table of numbers with a name per column, or ``k`` is not a positive int.

    Example:
        >>> import pandas as pd
        >>> table = agreement(pd.DataFrame({"attention": [0.1, 0.3, 0.6], "gradient": [0.2, -0.5, 1.0]}), k=1)
        >>> table.loc[("attention", "gradient")].to_dict()
        {'kendall_tau': 1.0, 'spearman': 1.0, 'top_k_jaccard': 1.0}
    """
    import pandas as pd

    if not isinstance(scores, pd.DataFrame):
        raise InputError(f"scores must be a DataFrame, features by methods, but is {type(scores).__name__}.")
    if not scores.columns.is_unique:
        raise InputError(f"each method needs a unique name, but the columns are {list(scores.columns)}; rename some.")
    k = check_k(k)
    columns = {name: _vector(scores[name], repr(name)) for name in scores.columns}
    if not signed:
        columns = {name: np.abs(column) for name, column in columns.items()}
    pairs = list(combinations(columns, 2))
    index = pd.MultiIndex.from_tuples(pairs, names=["method_a", "method_b"])
    values = [[measure(columns[a], columns[b], k) for measure in MEASURES.values()] for a, b in pairs]
    table: DataFrame = pd.DataFrame(values, index=index, columns=list(MEASURES), dtype=float)
    chance = {(a, b): jaccard_by_chance(len(_pair(columns[a], columns[b])[0]), k) for a, b in pairs}
    table.attrs.update(k=k, signed=signed, jaccard_by_chance=chance)
    return table


def _top(x: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """Return which features are among the top k, (n,) bool; features tied across the k-th place are not."""
    descending = np.sort(x)[::-1]
    return np.asarray(x > descending[k])


def _is_constant(x: NDArray[np.float64]) -> bool:
    return len(x) < 2 or bool((x == x[0]).all())


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both vectors, restricted to the features for which both have a value."""
    x, y = _vector(a, "the first"), _vector(b, "the second")
    if len(x) != len(y):
        raise InputError(
            f"the two score vectors have {len(x)} and {len(y)} values; agreement needs one value per feature from "
            "each method, over the same features."
        )
    known = ~(np.isnan(x) | np.isnan(y))
    return x[known], y[known]


def _vector(values: Any, name: str) -> NDArray[np.float64]:
    x = np.asarray(values)
    try:
        if x.dtype.kind not in "biufO":  # astype would parse text as numbers, and drop imaginary parts
            raise TypeError
        x = x.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} score vector does not hold real numbers: {values!r}.") from None
    if x.ndim != 1:
        raise InputError(f"{name} score vector has shape {x.shape}; agreement needs one value per feature, (n,).")
    return x


def check_k(k: Any) -> int:
    """Return the size of the top as an int, checked."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k is the size of the top and must be a positive int, but is {k!r}.")
    return int(k)
