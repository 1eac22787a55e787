"""How sure the weights of LIME's linear model are: their covariance over other random samples, and of their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from captum_attn_lime.lime.base import Array

_LEAST_SLACK = 1e-3  # of 1 minus a sample's leverage, which rounding can bring to 0 or below


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


def weight_covariance(x: Array, residuals: Array, kernel: Array, alpha: float, drawn: Any = None) -> Array:
    r"""Return the sandwich covariance of the weights of a ridge regression with an intercept, (features, features).

    With the rows centred by their weighted mean, :math:`A = X^T W X + \alpha I` and
    :math:`h_i = w_i (1 / \sum w + x_i^T A^{-1} x_i)`, it is

    .. math:: A^{-1} \left[ \sum_i \frac{w_i^2 e_i^2}{1 - h_i} x_i x_i^T \right] A^{-1}

    over the samples that are drawn: how the weights would scatter over other seeds. The model is not linear, so the
    residuals are its own, of unequal size, and not noise; the sandwich asks nothing else of them.

    Args:
        x: The samples' features, (n, features).
        residuals: Answer minus fit, (n,).
        kernel: lime's weight of each sample, (n,).
        alpha: The penalty; the intercept has none.
        drawn: Which samples another seed would replace, (n,) bool; all by default. The input itself always stays.

    Reference:
        MacKinnon and White, "Some heteroskedasticity-consistent covariance matrix estimators", 1985 (HC2).
    """
    total = kernel.sum()
    x = x - (kernel @ x) / total
    weighted = x * kernel[:, None]
    inner = weighted.T @ x
    inner[np.diag_indices_from(inner)] += alpha
    # Without a penalty features that always go together have no inverse, and share their weight.
    inverse = np.linalg.inv(inner) if alpha > 0 else np.linalg.pinv(inner, hermitian=True)
    leverage = kernel / total + ((weighted @ inverse) * x).sum(axis=1)
    scale = residuals**2 / np.maximum(1 - leverage, _LEAST_SLACK)
    if drawn is not None:
        scale = np.where(drawn, scale, 0.0)
    weighted *= np.sqrt(scale)[:, None]
    half = weighted @ inverse
    return np.asarray(half.T @ half)


@dataclass(frozen=True)
class OrderErrors:
    """Bounds on the probability that the strongest features are others, or in another order.

    Attributes:
        of_set: At index k - 1, a bound on the probability that the k strongest features are not these k.
        of_order: At index k - 1, the same for these k in this order.
    """

    of_set: tuple[float, ...]
    of_order: tuple[float, ...]


def order_errors(weights: Array, covariance: Array) -> OrderErrors:
    """Return how probable it is that features are ordered by magnitude otherwise than their weights say.

    Weights are taken as normal around what is found. For each pair it is asked whether the weaker one is stronger
    after all, with either sign; over pairs the probabilities are summed, which can only be too much.

    Args:
        weights: (features,).
        covariance: Of the weights, (features, features).

    Example:
        >>> order_errors(np.array([3.0, -1.0]), np.eye(2) * 0.5).of_set
        (0.0227..., 0.0)
    """
    from scipy.special import ndtr

    n = len(weights)
    order = np.argsort(-np.abs(weights), kind="stable")
    size = np.abs(weights)[order]
    sign = np.where(weights < 0, -1.0, 1.0)[order]
    shared = covariance[np.ix_(order, order)] * sign[:, None] * sign
    own = np.diag(shared)
    wrong = np.zeros((n, n))
    for joint in (1, -1):
        gap = size[:, None] - joint * size
        error = np.sqrt(np.maximum(own[:, None] + own - 2 * joint * shared, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(gap > 0, gap / error, 0.0)
        wrong += ndtr(-z)
    wrong = np.triu(wrong, 1)
    below, above = wrong.sum(axis=1), wrong.sum(axis=0)
    # From k to k + 1 features the next one's pairs with those above it leave, and those with all below it come.
    of_set = np.cumsum(below - above)
    of_set[-1] = 0.0
    return OrderErrors(_clipped(of_set), _clipped(np.cumsum(below)))


def _clipped(values: Array) -> tuple[float, ...]:
    return tuple(float(v) for v in np.clip(values, 0.0, 1.0))
