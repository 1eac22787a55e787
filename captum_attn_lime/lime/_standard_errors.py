"""How far the weights of LIME's linear model may be off: their scatter over other samples, and what ridge does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime.lime._base import Array

_LEAST_SLACK = 1e-3  # of 1 minus a sample's leverage, which rounding can bring to 0 or below
_SINGULAR = 1e-10  # of a column's own variance: what is left of it beside the others' where they determine it
_RANKED = 200  # strongest features whose order is compared with all others; each costs a row of the covariance
_ROWS = 256  # rows of a matrix that are compared at once


def ridge_alpha(regressor: Any) -> float | None:
    """Return the penalty of a regressor whose standard errors have a closed form; None for any other.

    Args:
        regressor: lime's ``model_regressor``; None stands for lime's own, ``Ridge(alpha=1)``.
    """
    from sklearn.linear_model import LinearRegression, Ridge

    if regressor is None:
        return 1.0
    if type(regressor) not in (LinearRegression, Ridge) or not regressor.fit_intercept or regressor.positive:
        return None
    alpha = getattr(regressor, "alpha", 0.0)
    return float(alpha) if np.ndim(alpha) == 0 else None


@dataclass(frozen=True)
class OrderErrors:
    """Bounds on the probability that the strongest features are others, or in another order.

    NaN beyond the first 200 features, and beyond those that have standard errors.

    Attributes:
        of_set: At index k - 1, a bound on the probability that the k strongest features are not these k.
        of_order: At index k - 1, the same for these k in this order.
    """

    of_set: tuple[float, ...]
    of_order: tuple[float, ...]


@dataclass(frozen=True)
class WeightErrors:
    """How far the weights of a ridge regression may be off.

    Attributes:
        standard_errors: How each weight would scatter over other samples, (features,); NaN where the samples say
            nothing of a feature.
        ridge_bias: What the penalty adds to each weight, (features,): weight minus weight without a penalty. NaN where
            the samples do not determine the latter.
        order: How sure the order of the features with standard errors is.
        tied: Groups of features that go together in every sample.
        is_determined: Whether the samples determine the weights of all other features.
    """

    standard_errors: Array = field(repr=False)
    ridge_bias: Array = field(repr=False)
    order: OrderErrors = field(repr=False)
    tied: tuple[tuple[int, ...], ...] = ()
    is_determined: bool = True


def varying(x: Array) -> NDArray[np.bool_]:
    """Return which features are not the same in all samples, (features,)."""
    return np.asarray(x.max(axis=0) > x.min(axis=0))


def weight_errors(
    x: Array,
    residuals: Array,
    kernel: Array,
    alpha: float,
    weights: Array,
    *,
    drawn: Any = None,
    unknown: Any = (),
) -> WeightErrors:
    r"""Return how far the weights of a ridge regression with an intercept may be off.

    With the rows centred by their weighted mean, :math:`A = X^T W X + \alpha I` and
    :math:`h_i = w_i (1 / \sum w + x_i^T A^{-1} x_i)`, their covariance is

    .. math:: A^{-1} \left[ \sum_i \frac{w_i^2 e_i^2}{1 - h_i} x_i x_i^T \right] A^{-1}

    over the samples that are drawn: how the weights would scatter over other seeds. The model is not linear, so the
    residuals are its own, of unequal size, and not noise; the sandwich asks nothing else of them. What the penalty does
    is no scatter: every seed has it alike. It is

    .. math:: -\alpha A^{-1} \beta \quad \text{with} \quad \beta = (X^T W X)^{-1} A w

    the weights without a penalty. Beside the samples' own size, memory goes to two copies of them and a matrix of their
    lesser side.

    Args:
        x: The samples' features, (n, features).
        residuals: Answer minus fit, (n,).
        kernel: lime's weight of each sample, (n,).
        alpha: The penalty; the intercept has none.
        weights: What was fitted, (features,).
        drawn: Which samples another seed would replace, (n,) bool; all by default. The input itself always stays.
        unknown: Features of which nothing can be said for other reasons.

    Reference:
        MacKinnon and White, "Some heteroskedasticity-consistent covariance matrix estimators", 1985 (HC2).
    """
    n, d = x.shape
    seen = np.flatnonzero(varying(x))
    total = kernel.sum()
    scaled = x[:, seen] if len(seen) < d else x.copy()
    scaled -= (kernel @ scaled) / total
    scaled *= np.sqrt(kernel)[:, None]
    is_wide = len(seen) > n
    # (A^T A + a)^-1 A^T = A^T (A A^T + a)^-1: of the two matrices the smaller one is made.
    inner = scaled @ scaled.T if is_wide else scaled.T @ scaled
    tied = [] if is_wide else _tied(inner)
    bias = None if is_wide else _ridge_bias(inner, weights[seen], alpha, tied)
    half = _solved(inner, scaled, alpha, is_wide=is_wide)
    leverage = kernel / total + np.einsum("ij,ij->i", half, scaled)
    del scaled
    scale = kernel * residuals**2 / np.maximum(1 - leverage, _LEAST_SLACK)
    half *= np.sqrt(scale if drawn is None else np.where(drawn, scale, 0.0))[:, None]

    known = ~np.isin(seen, list(unknown))
    known[[k for group in tied for k in group]] = False
    errors, found = np.full(d, np.nan), np.full(d, np.nan)
    errors[seen[known]] = np.sqrt(np.einsum("ij,ij->j", half, half))[known]
    if bias is not None:
        found[seen[known]] = bias[known]
    return WeightErrors(
        errors,
        found,
        order_errors(weights[seen], half, known, places=d),
        tuple(tuple(seen[group].tolist()) for group in tied),
        bias is not None,
    )


def _solved(inner: Array, scaled: Array, alpha: float, *, is_wide: bool) -> Array:
    """Return ``scaled @ inverse(scaled.T @ scaled + alpha)`` from the Gram matrix of the lesser side.

    It writes into ``inner``.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    if alpha > 0:
        inner[np.diag_indices_from(inner)] += alpha
        try:
            # Symmetric, so that its transpose is itself in the order of LAPACK: solved in place, without a copy.
            factor = cho_factor(inner.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:  # a penalty that is lost beside the numbers
            inner = scaled @ scaled.T if is_wide else scaled.T @ scaled
        else:
            right = np.array(scaled if is_wide else scaled.T, order="F")
            half = cho_solve(factor, right, overwrite_b=True, check_finite=False)
            return np.asarray(half if is_wide else half.T)
    # Without a penalty features that always go together have no inverse, and share their weight.
    inverse = np.linalg.pinv(inner, hermitian=True)
    return np.asarray(inverse @ scaled if is_wide else scaled @ inverse)


def _tied(inner: Array) -> list[list[int]]:
    """Return groups of features whose correlation over the samples is 1 or -1.

    Args:
        inner: Gram matrix of the centred features.
    """
    size = np.sqrt(inner.diagonal())
    columns = np.arange(len(inner))
    leader = columns.copy()
    for start in range(0, len(inner), _ROWS):
        rows = slice(start, start + _ROWS)
        least = (1 - _SINGULAR) * size[rows, None] * size
        together = (np.abs(inner[rows]) >= least) & (least > 0) & (columns > columns[rows, None])
        for i, j in zip(*together.nonzero(), strict=True):
            leader[j] = min(leader[j], leader[start + i])
    groups: dict[int, list[int]] = {}
    for feature, first in enumerate(leader.tolist()):
        groups.setdefault(first, []).append(feature)
    return [group for group in groups.values() if len(group) > 1]


def _ridge_bias(inner: Array, weights: Array, alpha: float, tied: list[list[int]]) -> Array | None:
    """Return what the penalty adds to each weight, (features,); None where the samples do not determine the weights.

    The weights without a penalty solve the same equations without it, and the penalised ones tell the right side.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    chosen = np.ones(len(weights), dtype=bool)
    chosen[[k for group in tied for k in group[1:]]] = False  # they share what the first one has
    part = inner.T.copy(order="F") if chosen.all() else np.asfortranarray(inner[np.ix_(chosen, chosen)])
    own = part.diagonal().copy()
    try:
        factor = cho_factor(part, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    if (factor[0].diagonal() ** 2 <= _SINGULAR * own).any():
        return None
    bias = np.zeros(len(weights))
    if alpha == 0:
        return bias
    answers = (inner @ weights + alpha * weights)[chosen]
    bias[chosen] = weights[chosen] - cho_solve(factor, answers, check_finite=False)
    return bias


def order_errors(weights: Array, half: Array, known: Any = None, *, places: int | None = None) -> OrderErrors:
    """Return how probable it is that features are ordered by magnitude otherwise than their weights say.

    Weights are taken as normal around what is found. For each pair it is asked whether the weaker one is stronger
    after all, with either sign; over pairs the probabilities are summed, which can only be too much.

    Args:
        weights: (features,).
        half: A root of their covariance: ``half.T @ half``.
        known: Which features take part, (features,) bool; all by default.
        places: Number of entries; those that no feature with a weight is for are NaN.

    Example:
        >>> order_errors(np.array([3.0, -1.0]), np.eye(2) * 0.5**0.5).of_set
        (0.0227..., 0.0)
    """
    from scipy.special import ndtr

    order = np.argsort(-np.abs(weights), kind="stable")
    if known is not None:
        order = order[known[order]]
    n, top = len(order), order[:_RANKED]
    size = np.abs(weights)[order]
    sign = np.where(weights < 0, -1.0, 1.0)[order]
    shared = (half[:, top].T @ half)[:, order] * sign[: len(top), None] * sign
    own = np.einsum("ij,ij->j", half, half)[order]
    wrong = np.zeros(shared.shape)
    for joint in (1, -1):
        gap = size[: len(top), None] - joint * size
        error = np.sqrt(np.maximum(own[: len(top), None] + own - 2 * joint * shared, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(gap > 0, gap / error, 0.0)
        wrong += ndtr(-z)
    wrong = np.triu(wrong, 1)
    below, above = wrong.sum(axis=1), wrong.sum(axis=0)[: len(top)]
    of_set, of_order = (np.full(len(weights) if places is None else places, np.nan) for _ in range(2))
    # From k to k + 1 features the next one's pairs with those above it leave, and those with all below it come.
    of_set[: len(top)] = np.cumsum(below - above)
    of_order[: len(top)] = np.cumsum(below)
    if n:
        of_set[n - 1] = 0.0
    return OrderErrors(_clipped(of_set), _clipped(of_order))


def _clipped(values: Array) -> tuple[float, ...]:
    return tuple(float(v) for v in np.clip(values, 0.0, 1.0))
