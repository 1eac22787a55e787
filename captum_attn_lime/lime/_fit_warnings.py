"""Warnings about a LIME fit: constant or collinear features, too few samples, and a strong ridge penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NAMED = 5  # names in one warning
_LEAST_SHIFT = 0.1  # by the penalty, relative to the largest weight without it, before a warning
# Samples and effective samples per feature for a stable ranking.
_SAMPLES, _EFFECTIVE = 10, 5

Notice = tuple[str, str]  # the message without numbers and names, and with them


@dataclass(frozen=True)
class Features:
    """The names of a fit's features, and how lime makes their values.

    Attributes:
        names: The features' names; None to number them.
        kind: The word for a feature.
        is_binned: Whether columns are cut into bins.
        constant: Columns whose training values are all equal, for which lime assumes a spread of 1.
    """

    names: Sequence[str] | None = None
    kind: str = "feature"
    is_binned: bool = False
    constant: tuple[int, ...] = ()

    @classmethod
    def of(cls, explainer: Any) -> Features:
        """Return the features of an official explainer."""
        columns = getattr(explainer, "feature_names", None)
        if columns is None:  # text and image explainers
            return cls()
        is_binned = getattr(explainer, "discretizer", None) is not None
        return cls([str(name) for name in columns], "column", is_binned, () if is_binned else _constant(explainer))

    def listed(self, ids: Sequence[int]) -> str:
        """Return features as text, at most five of them.

        Example:
            >>> Features(["age", "sex"], "column").listed([1]), Features().listed(range(7))
            ("column 'sex'", 'features 0, 1, 2, 3, 4 and 2 more')
        """
        if self.names is not None and max(ids) < len(self.names):
            names = [repr(str(self.names[k])) for k in ids[:_NAMED]]
        else:
            names = [str(k) for k in ids[:_NAMED]]
        more = [f"{len(ids) - _NAMED} more"] if len(ids) > _NAMED else names[-1:]
        before = names if len(ids) > _NAMED else names[:-1]
        listed = f"{', '.join(before)} and {more[0]}" if before else more[0]
        return f"{self.kind}{'s' if len(ids) > 1 else ''} {listed}"


def _constant(explainer: Any) -> tuple[int, ...]:
    """Return the columns for which scikit-learn's scaler uses a scale of 1 instead of a standard deviation of 0."""
    scaler = getattr(explainer, "scaler", None)
    variance = getattr(scaler, "var_", None)
    if scaler is None or variance is None:
        return ()
    constant = (np.asarray(scaler.scale_) == 1) & (np.asarray(variance) < 0.5)
    constant[list(explainer.categorical_features)] = False
    return tuple(np.flatnonzero(constant).tolist())


def unseen_warnings(features: Features, unseen: Sequence[int], tied: Sequence[Sequence[int]]) -> list[Notice]:
    """Return warnings about features whose weights the samples do not determine.

    Args:
        features: The features.
        unseen: Features that are the same in every sample.
        tied: Groups of features that are collinear in the samples.
    """
    out: list[Notice] = []
    if unseen:
        are, it, its = ("is", "it", "its") if len(unseen) == 1 else ("are", "them", "their")
        same = ("one bin" if are == "is" else "one bin each") if features.is_binned else "the same"
        advice = (
            "put columns of few values into categorical_features=, or use semantics='gradient', which has no bins"
            if features.is_binned
            else "pass a larger num_samples="
        )
        brief = f"LIME cannot see {features.kind}s that are the same in all of its samples; {advice}"
        detail = f"{features.listed(unseen)} {are} {same} in every sample: LIME cannot see {it}, and {its} weight is 0"
        out.append((brief, f"{detail} whatever the model does; {advice}"))
    if features.constant:
        brief = "LIME has no scale for columns whose training values are all equal"
        are = "has a single value" if len(features.constant) == 1 else "have a single value each"
        detail = f"{features.listed(features.constant)} {are} in the training data"
        out.append((brief, f"{detail}: LIME assumes a spread of 1, and the weight means nothing"))
    for group in tied:
        brief = f"LIME cannot separate {features.kind}s that change together in all of its samples"
        detail = f"{features.listed(group)} change together in every sample: LIME cannot separate them"
        out.append((brief, f"{detail}, and divides their effect among them; pass a larger num_samples="))
    return out


def sample_warnings(samples: int, effective: float, features: int, *, is_determined: bool) -> list[Notice]:
    """Return the warning about too few samples, if any.

    Args:
        samples: Number of samples.
        effective: Effective sample size.
        features: Number of features.
        is_determined: Whether the linear model without a penalty has one solution.
    """
    advice = "pass a larger num_samples="
    count = f"{samples} samples ({effective:.0f} effective)"
    if not is_determined:
        return [
            (
                f"LIME has few samples for its features: they do not determine the weights; {advice}",
                f"{count} do not determine the weights of {features} features, and the ridge penalty chooses among "
                f"equally good fits; {advice} (or kernel_width=)",
            )
        ]
    if samples >= _SAMPLES * features and effective >= _EFFECTIVE * features:
        return []
    return [
        (
            f"LIME has few samples for its features, so weights are unstable; {advice}",
            f"{count} for {features} features; a stable ranking needs at least {_SAMPLES} ({_EFFECTIVE} effective) per "
            f"feature; {advice}",
        )
    ]


def ridge_warnings(
    features: Features, weights: Mapping[int, float], bias: Mapping[int, float], errors: Mapping[int, float]
) -> list[Notice]:
    """Return the warning about a penalty that shifts weights visibly and by more than their standard errors, if any.

    Args:
        features: The features.
        weights: The features' weights.
        bias: The penalty's effect on them.
        errors: Their standard errors.
    """
    known = [k for k in weights if not np.isnan(bias[k])]
    largest = max((abs(weights[k] - bias[k]) for k in known), default=0.0)
    moved = [k for k in known if abs(bias[k]) > max(_LEAST_SHIFT * largest, errors[k])]
    if not moved:
        return []
    k = max(moved, key=lambda k: abs(bias[k]))
    ridge = "the ridge penalty of LIME's fit moves weights by"
    advice = "without a penalty: model_regressor=LinearRegression() of scikit-learn"
    detail = f"that of {features.listed([k])} is {weights[k]:.3g} and would be {weights[k] - bias[k]:.3g}"
    return [(f"{ridge} much more than chance does; {advice}", f"{ridge} up to {abs(bias[k]):.2g}: {detail}; {advice}")]
