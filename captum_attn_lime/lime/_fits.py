"""Fits lime's public `LimeBase` to samples and their scores, and computes the errors of its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime._explained import Explained
from captum_attn_lime.lime._base import Array
from captum_attn_lime.lime._fit_warnings import Features
from captum_attn_lime.lime._standard_errors import OrderErrors, WeightErrors, ridge_alpha, weight_errors

FitResult = tuple[Any, Any, Any, Any]  # intercept, pairs of feature and weight, score, prediction


@dataclass(frozen=True)
class FitData:
    """The samples that lime's linear model is fitted to.

    Attributes:
        x: Rows of the linear model, float or bool (n, features).
        y: The model's scores, (n,).
        kernel: lime's weight of each sample, (n,).
        originals: Indices of the samples that equal the input, one per run.
        label: The weights' label in the explanation; 1 for regressions, as in lime.
        regressor: lime's ``model_regressor``.
        features: The features.
    """

    x: NDArray[Any]
    y: Array
    kernel: Array
    originals: tuple[int, ...]
    label: int
    regressor: Any
    features: Features = field(default_factory=Features)

    @classmethod
    def joined(cls, runs: Sequence[FitData]) -> FitData:
        """Return the samples of several runs, concatenated."""
        starts = np.cumsum([0, *(len(run.y) for run in runs)]).tolist()
        return replace(
            runs[0],
            x=np.concatenate([run.x for run in runs]),
            y=np.concatenate([run.y for run in runs]),
            kernel=np.concatenate([run.kernel for run in runs]),
            originals=tuple(start + k for start, run in zip(starts, runs, strict=False) for k in run.originals),
        )

    def fit(self, num_features: int | None = None) -> FitResult:
        """Return the result of ``LimeBase.explain_instance_with_data`` for these samples.

        Args:
            num_features: Number of features that lime selects, by its default method; all if None.
        """
        from lime.lime_base import LimeBase

        # The identity as kernel function: we pass weights where LimeBase expects distances.
        base = LimeBase(np.asarray, random_state=0)
        result: FitResult = base.explain_instance_with_data(
            self._floats,
            self.y[:, None],
            self.kernel,
            0,
            self.x.shape[1] if num_features is None else num_features,
            feature_selection="none" if num_features is None else "auto",
            model_regressor=copy.deepcopy(self.regressor),
        )
        return result

    def linear(self, result: FitResult) -> Linear:
        """Return the linear model that lime fitted, with its standard errors."""
        intercept, pairs, score, _ = result
        weights = {int(k): float(w) for k, w in pairs}
        ids = sorted(weights)
        x = self._floats
        x = x if len(ids) == x.shape[1] else x[:, ids]
        coefficients = np.array([weights[k] for k in ids])
        alpha = ridge_alpha(self.regressor)
        errors = None
        if alpha is not None:
            drawn = np.ones(len(x), dtype=bool)
            drawn[list(self.originals)] = False
            residuals = self.y - number(intercept) - x @ coefficients
            unknown = [i for i, k in enumerate(ids) if k in self.features.constant]
            errors = weight_errors(x, residuals, self.kernel, alpha, coefficients, drawn=drawn, unknown=unknown)
        return Linear(tuple(ids), coefficients, errors, number(score))

    def full(self, result: FitResult) -> Linear:
        """Return the linear model over all features; fits it where lime selected some."""
        return self.linear(result if len(result[1]) == self.x.shape[1] else self.fit())

    @property
    def _floats(self) -> Array:
        return np.asarray(self.x, dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """One fit of lime, and the number that it explains.

    Attributes:
        data: The samples.
        result: The result of ``LimeBase.explain_instance_with_data``.
        explained: The explained number.
        is_cut: Whether the model sees only a part of the input.
    """

    data: FitData
    result: FitResult
    explained: Explained
    is_cut: bool = False

    @property
    def selected(self) -> int | None:
        """Number of features that lime selected; None where all are shown."""
        shown = len(self.result[1])
        return shown if shown < self.data.x.shape[1] else None


class RecordingBase:
    """Replaces an official explainer's public ``base``, and records each fit.

    Args:
        base: The explainer's ``LimeBase``.
        features: The features.
        label: The weights' label in the explanation, where it differs from the fitted one.
        on_fit: Called with the samples and the result of each fit.
    """

    def __init__(
        self, base: Any, features: Features, label: int | None, on_fit: Callable[[FitData, FitResult], object]
    ) -> None:
        self.base, self.features, self.label, self.on_fit = base, features, label, on_fit

    def explain_instance_with_data(
        self,
        neighborhood_data: Any,
        neighborhood_labels: Any,
        distances: Array,
        label: int,
        num_features: int,
        feature_selection: str = "auto",
        model_regressor: Any = None,
    ) -> FitResult:
        """Return the result of the explainer's ``LimeBase``."""
        options = dict(feature_selection=feature_selection, model_regressor=model_regressor)
        result: FitResult = self.base.explain_instance_with_data(
            neighborhood_data, neighborhood_labels, distances, label, num_features, **options
        )
        x = np.asarray(neighborhood_data, dtype=np.float64)
        data = FitData(
            x.astype(bool) if ((x == 0) | (x == 1)).all() else x,  # bins and categories, to save memory
            np.asarray(neighborhood_labels)[:, label].astype(np.float64),
            self.base.kernel_fn(distances),
            (0,),
            int(label) if self.label is None else self.label,
            model_regressor,
            self.features,
        )
        self.on_fit(data, result)
        return result


@dataclass(frozen=True)
class Linear:
    """A linear model: feature ids, their weights (features,), the weights' errors if known, and R²."""

    ids: tuple[int, ...]
    coefficients: Array
    errors: WeightErrors | None
    r2: float

    @property
    def weights(self) -> dict[int, float]:
        """Weights by feature id."""
        return dict(zip(self.ids, self.coefficients.tolist(), strict=True))

    @property
    def standard_errors(self) -> dict[int, float]:
        """Standard errors by feature id; NaN where unknown."""
        return self._by_id(None if self.errors is None else self.errors.standard_errors)

    @property
    def ridge_bias(self) -> dict[int, float]:
        """The penalty's effect on weights by feature id; NaN where unknown."""
        return self._by_id(None if self.errors is None else self.errors.ridge_bias)

    @property
    def order_errors(self) -> OrderErrors | None:
        """Error bounds of the features' order; None where unknown."""
        return None if self.errors is None else self.errors.order

    @property
    def tied(self) -> list[list[int]]:
        """Groups of ids of collinear features."""
        return [] if self.errors is None else [[self.ids[k] for k in group] for group in self.errors.tied]

    def _by_id(self, values: Array | None) -> dict[int, float]:
        known = np.full(len(self.ids), np.nan) if values is None else values
        return dict(zip(self.ids, known.tolist(), strict=True))


def number(value: Any) -> float:
    """Return lime's number, a float or an array of one, as a float."""
    return float(np.asarray(value, dtype=np.float64).reshape(-1)[0])
