"""What a LIME fit cannot know of its features, by name: those it never varied, cannot tell apart, or holds down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NAMED = 5  # names in one warning
# Of the largest weight without a penalty: what the penalty may take off any weight before it is worth a word.
_LEAST_PULL = 0.1

# Fewer samples and effective samples a feature give no steady ranking.
_SAMPLES, _EFFECTIVE = 10, 5

Notice = tuple[str, str]  # words without numbers or names, and with them


@dataclass(frozen=True)
class Features:
    """What a fit's features are called, and how lime makes their values.

    Attributes:
        names: By feature its name; None to number them.
        noun: What a feature is.
        is_binned: Whether values of columns are cut into bins.
        flat: Columns whose training values are all equal, for which lime makes up a spread.
    """

    names: Sequence[str] | None = None
    noun: str = "feature"
    is_binned: bool = False
    flat: tuple[int, ...] = ()

    @classmethod
    def of(cls, explainer: Any, names: Sequence[str] | None = None) -> Features:
        """Return what an official explainer knows of its features.

        Args:
            explainer: The explainer.
            names: The features' names, where only the caller knows them.
        """
        columns = getattr(explainer, "feature_names", None)
        if columns is None:  # of texts and pictures
            return cls(names)
        is_binned = getattr(explainer, "discretizer", None) is not None
        return cls([str(name) for name in columns], "column", is_binned, () if is_binned else _flat(explainer))

    def called(self, ids: Sequence[int]) -> str:
        """Return features with their noun, at most five by name.

        Example:
            >>> Features(["age", "sex"], "column").called([1]), Features().called(range(7))
            ("column 'sex'", 'features 0, 1, 2, 3, 4 and 2 more')
        """
        if self.names is not None and max(ids) < len(self.names):
            names = [repr(str(self.names[k])) for k in ids[:_NAMED]]
        else:
            names = [str(k) for k in ids[:_NAMED]]
        more = [f"{len(ids) - _NAMED} more"] if len(ids) > _NAMED else names[-1:]
        before = names if len(ids) > _NAMED else names[:-1]
        listed = f"{', '.join(before)} and {more[0]}" if before else more[0]
        return f"{self.noun}{'s' if len(ids) > 1 else ''} {listed}"


def _flat(explainer: Any) -> tuple[int, ...]:
    """Return the columns for which scikit-learn's scaler took 1 in the place of a standard deviation of 0."""
    scaler = getattr(explainer, "scaler", None)
    variance = getattr(scaler, "var_", None)
    if scaler is None or variance is None:
        return ()
    flat = (np.asarray(scaler.scale_) == 1) & (np.asarray(variance) < 0.5)
    flat[list(explainer.categorical_features)] = False
    return tuple(np.flatnonzero(flat).tolist())


def unseen_warnings(features: Features, unseen: Sequence[int], tied: Sequence[Sequence[int]]) -> list[Notice]:
    """Return what there is to say of features that the samples say nothing of.

    Args:
        features: What the features are called.
        unseen: Features that are the same in every sample.
        tied: Groups of features that go together in every sample.
    """
    out: list[Notice] = []
    if unseen:
        are, it, its = ("is", "it", "its") if len(unseen) == 1 else ("are", "them", "their")
        same = ("one bin" if are == "is" else "one bin each") if features.is_binned else "the same"
        advice = (
            "columns of few values belong into categorical_features=, others have no bins with semantics='gradient'"
            if features.is_binned
            else "pass a larger num_samples="
        )
        brief = f"LIME cannot see {features.noun}s that are the same in all of its samples; {advice}"
        told = f"{features.called(unseen)} {are} {same} in every sample: LIME cannot see {it}, and {its} weight is 0"
        out.append((brief, f"{told} whatever the model does; {advice}"))
    if features.flat:
        brief = "LIME has no scale for columns whose training values are all equal"
        are = "has a single value" if len(features.flat) == 1 else "have a single value each"
        told = f"{features.called(features.flat)} {are} in the training data"
        out.append((brief, f"{told}: LIME makes up a spread of 1, and the weight says nothing"))
    for group in tied:
        brief = f"LIME cannot tell {features.noun}s apart that go together in all of its samples"
        told = f"{features.called(group)} go together in every sample: LIME cannot tell them apart"
        out.append((brief, f"{told}, and shares their effect among them; pass a larger num_samples="))
    return out


def sample_warnings(samples: int, effective: float, features: int, *, is_determined: bool) -> list[Notice]:
    """Return what there is to say of too few samples.

    Args:
        samples: Number of samples.
        effective: So many samples of equal weight say as much.
        features: Number of features.
        is_determined: Whether a linear model without a penalty has one solution.
    """
    advice = "pass a larger num_samples="
    own = f"{samples} samples, {effective:.0f} effective ones,"
    if not is_determined:
        return [
            (
                f"LIME has few samples for its features: they do not determine the weights; {advice}",
                f"{own} do not determine the weights of {features} features, and the ridge penalty chooses among those "
                f"that fit as well: {advice} (or kernel_width=)",
            )
        ]
    if samples >= _SAMPLES * features and effective >= _EFFECTIVE * features:
        return []
    return [
        (
            f"LIME has few samples for its features, so that weights are unsteady; {advice}",
            f"{own} for {features} features; a steady ranking takes at least {_SAMPLES} and {_EFFECTIVE} a feature: "
            f"{advice}",
        )
    ]


def ridge_warnings(
    features: Features, weights: Mapping[int, float], bias: Mapping[int, float], errors: Mapping[int, float]
) -> list[Notice]:
    """Return what there is to say of a penalty that moves weights by more than chance does, and visibly.

    Args:
        features: What the features are called.
        weights: By feature its weight.
        bias: What the penalty adds to each.
        errors: Their standard errors.
    """
    known = [k for k in weights if not np.isnan(bias[k])]
    largest = max((abs(weights[k] - bias[k]) for k in known), default=0.0)
    moved = [k for k in known if abs(bias[k]) > max(_LEAST_PULL * largest, errors[k])]
    if not moved:
        return []
    k = max(moved, key=lambda k: abs(bias[k]))
    ridge = "the ridge penalty of LIME's fit moves weights by"
    advice = "without a penalty: model_regressor=LinearRegression() of scikit-learn"
    told = f"that of {features.called([k])} is {weights[k]:.3g} and would be {weights[k] - bias[k]:.3g}"
    return [(f"{ridge} much more than chance does; {advice}", f"{ridge} up to {abs(bias[k]):.2g}: {told}; {advice}")]
