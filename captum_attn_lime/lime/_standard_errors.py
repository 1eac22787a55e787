"""Errors of the weights of LIME's linear model: their scatter over samples, and the bias of the ridge penalty."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime.lime._base import Array

_LEAST_SLACK = 1e-3  # lower bound of 1 minus a leverage, which rounding can bring to 0 or below
_SINGULAR = 1e-10  # share of a column's variance that the other columns leave, below which they determine it
_RANKED = 200  # number of strongest features compared with all others; each needs a row of the covariance
_ROWS = 256  # rows of a matrix compared at once


def ridge_alpha(regressor: Any) -> float | None:
    """Return the penalty of a regressor whose standard errors have a closed form; None for others.

    Args:
        regressor: lime's ``model_regressor``; None means lime's default, ``Ridge(alpha=1)``.
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
    """Bounds on the probability that the strongest features, or their order, are wrong.

    NaN beyond the first 200 features and beyond those with standard errors.

    Attributes:
        of_set: At index k - 1, an upper bound on the probability that the set of the k strongest features is wrong.
        of_order: At index k - 1, the same for the set and its order.
    """

    of_set: tuple[float, ...]
    of_order: tuple[float, ...]


@dataclass(frozen=True)
class WeightErrors:
    """Errors of the weights of a ridge regression.

    Attributes:
        standard_errors: The scatter of each weight over samples, (features,); NaN where the samples do not determine
            it.
        ridge_bias: The penalty's effect on each weight, (features,): weight minus weight without a penalty. NaN where
            the samples do not determine the latter.
        order: Error bounds of the order of the features with standard errors.
        tied: Groups of collinear features.
        is_determined: Whether the samples determine the weights of all other features.
    """

    standard_errors: Array = field(repr=False)
    ridge_bias: Array = field(repr=False)
    order: OrderErrors = field(repr=False)
    tied: tuple[tuple[int, ...], ...] = ()
    is_determined: bool = True


def varying(x: Array) -> NDArray[np.bool_]:
    """Return which features vary over the samples, bool (features,)."""
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
    r"""Return the errors of the weights of a ridge regression with an intercept.

    With the rows centred by their weighted mean, :math:`A = X^T W X + \alpha I` and
    :math:`h_i = w_i (1 / \sum w + x_i^T A^{-1} x_i)`, their covariance is

    .. math:: A^{-1} \left[ \sum_i \frac{w_i^2 e_i^2}{1 - h_i} x_i x_i^T \right] A^{-1}

    over the drawn samples: the scatter of the weights over seeds. The residuals are not noise but the model's
    nonlinearity, of unequal size, which the sandwich estimator allows. The bias of the penalty is the same for all
    seeds. It is

    .. math:: -\alpha A^{-1} \beta \quad \text{with} \quad \beta = (X^T W X)^{-1} A w

    the weights without a penalty. It needs memory for two copies of the samples and a matrix of their smaller side.

    Args:
        x: The samples' features, (n, features).
        residuals: Score minus fit, (n,).
        kernel: lime's weight of each sample, (n,).
        alpha: The penalty; the intercept has none.
        weights: The fitted weights, (features,).
        drawn: Samples that depend on the seed, bool (n,); all by default. The input itself does not.
        unknown: Features whose errors are unknown for other reasons.

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
    # (A^T A + a)^-1 A^T = A^T (A A^T + a)^-1: use the smaller of the two matrices.
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
    errors, ridge_bias = np.full(d, np.nan), np.full(d, np.nan)
    errors[seen[known]] = np.sqrt(np.einsum("ij,ij->j", half, half))[known]
    if bias is not None:
        ridge_bias[seen[known]] = bias[known]
    return WeightErrors(
        errors,
        ridge_bias,
        order_errors(weights[seen], half, known, size=d),
        tuple(tuple(seen[group].tolist()) for group in tied),
        bias is not None,
    )


def _solved(inner: Array, scaled: Array, alpha: float, *, is_wide: bool) -> Array:
    """Return ``scaled @ inverse(scaled.T @ scaled + alpha)`` from the Gram matrix of the smaller side.

    It overwrites ``inner``.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    if alpha > 0:
        inner[np.diag_indices_from(inner)] += alpha
        try:
            # The transpose of a symmetric matrix is itself in LAPACK's order, so this works in place.
            factor = cho_factor(inner.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:  # the penalty is lost in rounding
            inner = scaled @ scaled.T if is_wide else scaled.T @ scaled
        else:
            right = np.array(scaled if is_wide else scaled.T, order="F")
            half = cho_solve(factor, right, overwrite_b=True, check_finite=False)
            return np.asarray(half if is_wide else half.T)
    # Without a penalty collinear features have no inverse, and share their weight.
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
    """Return the penalty's effect on each weight, (features,); None where the samples do not determine the weights.

    The weights without a penalty solve the normal equations, whose right side follows from the penalised weights.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    chosen = np.ones(len(weights), dtype=bool)
    chosen[[k for group in tied for k in group[1:]]] = False  # they have the bias of the first one
    part = inner.T.copy(order="F") if chosen.all() else np.asfortranarray(inner[np.ix_(chosen, chosen)])
    variance = part.diagonal().copy()
    try:
        factor = cho_factor(part, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    if (factor[0].diagonal() ** 2 <= _SINGULAR * variance).any():
        return None
    bias = np.zeros(len(weights))
    if alpha == 0:
        return bias
    right = (inner @ weights + alpha * weights)[chosen]
    bias[chosen] = weights[chosen] - cho_solve(factor, right, check_finite=False)
    return bias


def order_errors(weights: Array, half: Array, known: Any = None, *, size: int | None = None) -> OrderErrors:
    """Return bounds on the probability that the order of features by magnitude is wrong.

    Weights are assumed normal around their estimates. The probabilities that the weaker of a pair is stronger, with
    either sign, are summed over pairs, which gives upper bounds.

    Args:
        weights: (features,).
        half: A root of their covariance ``half.T @ half``.
        known: The features to compare, bool (features,); all by default.
        size: Number of entries of the result, padded by NaN; by default one per weight.

    Example:
        >>> order_errors(np.array([3.0, -1.0]), np.eye(2) * 0.5**0.5).of_set
        (0.0227..., 0.0)
    """
    from scipy.special import ndtr

    order = np.argsort(-np.abs(weights), kind="stable")
    if known is not None:
        order = order[known[order]]
    n, top = len(order), order[:_RANKED]
    magnitude = np.abs(weights)[order]
    sign = np.where(weights < 0, -1.0, 1.0)[order]
    shared = (half[:, top].T @ half)[:, order] * sign[: len(top), None] * sign
    variance = np.einsum("ij,ij->j", half, half)[order]
    wrong = np.zeros(shared.shape)
    for joint in (1, -1):
        gap = magnitude[: len(top), None] - joint * magnitude
        error = np.sqrt(np.maximum(variance[: len(top), None] + variance - 2 * joint * shared, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(gap > 0, gap / error, 0.0)
        wrong += ndtr(-z)
    wrong = np.triu(wrong, 1)
    below, above = wrong.sum(axis=1), wrong.sum(axis=0)[: len(top)]
    of_set, of_order = (np.full(len(weights) if size is None else size, np.nan) for _ in range(2))
    # Adding feature k + 1 removes its pairs with the features above it and adds those with the features below.
    of_set[: len(top)] = np.cumsum(below - above)
    of_order[: len(top)] = np.cumsum(below)
    if n:
        of_set[n - 1] = 0.0
    return OrderErrors(_clipped(of_set), _clipped(of_order))


def _clipped(values: Array) -> tuple[float, ...]:
    return tuple(float(v) for v in np.clip(values, 0.0, 1.0))
