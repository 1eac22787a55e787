"""`Diagnostics`: how reliable a LIME explanation is, computed from the samples of lime's fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from captum_attn_lime._explained import Explained
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._fit_warnings import Notice, ridge_warnings, sample_warnings, unseen_warnings
from captum_attn_lime.lime._fits import Fit, Linear, number
from captum_attn_lime.lime._stability import Replicates
from captum_attn_lime.lime._standard_errors import OrderErrors, varying

DEFAULT_TOP = 5
LEAST_R2 = 0.5
SATURATED = 0.99
_ALONE = 1.5  # below this effective sample size only the input counts
_CONSTANT = 1e-6  # relative to the largest score: variation of float32 models between batches


@dataclass(frozen=True)
class Diagnostics:
    """How reliable one LIME explanation is, without further model calls.

    ``print(explanation.diagnostics)`` shows a report.

    Attributes:
        label: lime's label of the explained class; 1 for regressions.
        explained: The explained number: its class (for a language model the token), unit and value.
        fx: The model's score of the input.
        local_prediction: The shown linear model's prediction for the input.
        intercept: Its intercept.
        r2: R² of the linear model over all features, weighted by lime's kernel; NaN for a constant score (where
            lime's R² is 1).
        r2_shown: R² of the shown features, after lime selected ``num_features``; lime's ``explanation.score``.
        target_sd: Standard deviation of the model's scores over the samples, weighted by the kernel.
        effective_sample_size: (Σw)² / Σw² of the kernel's weights w: the equivalent number of equally weighted samples.
        n_samples: Number of samples, over all replicates.
        n_distinct: Number of distinct samples, as rows of lime's linear model.
        n_features: Number of features.
        weights: Weights of the shown features, the strongest first, as in lime.
        standard_errors: Their standard errors: the scatter over seeds. NaN where the samples do not determine a
            weight, and for a ``model_regressor`` that is neither ridge nor ordinary least squares.
        ridge_bias: The effect of the ridge penalty on them, the same for all seeds: the weight minus the weight
            without a penalty. NaN where standard errors are, or where the samples do not determine the latter.
        full_weights: Weights of the linear model over all features, by id; those of ``weights`` if all are shown.
        full_standard_errors: Their standard errors.
        order_errors: Error bounds of the full model's order, for :meth:`top_k_probability`; None without standard
            errors.
        warnings: Reasons why the explanation is less reliable than it looks.
        replicates: The agreement of runs with several seeds; None for a single run.
    """

    label: int
    explained: Explained
    fx: float
    local_prediction: float
    intercept: float
    r2: float
    r2_shown: float
    target_sd: float
    effective_sample_size: float
    n_samples: int
    n_distinct: int
    n_features: int
    weights: dict[int, float] = field(repr=False)
    standard_errors: dict[int, float] = field(repr=False)
    ridge_bias: dict[int, float] = field(repr=False)
    full_weights: dict[int, float] = field(repr=False)
    full_standard_errors: dict[int, float] = field(repr=False)
    order_errors: OrderErrors | None = field(repr=False)
    warnings: tuple[str, ...] = ()
    replicates: Replicates | None = None

    def top_k_probability(self, k: int, *, ordered: bool = False) -> float:
        """Return the probability that the k features with the largest weights are the k strongest.

        It is about the linear model over all features, and about sampling error only. Weights are assumed normal, and
        the probabilities of all pairs to swap are summed, so that it is a lower bound, loose where many features are
        close. Equally strong features are never separated. Features without a standard error are ignored.

        Args:
            k: Number of features.
            ordered: Whether their order must be right, too.

        Returns:
            The probability; NaN without standard errors, and beyond the 200 strongest features.

        Raises:
            InputError: There are fewer features.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= self.n_features:
            raise InputError(f"k must be a number of features from 1 to {self.n_features}, but is {k!r}.")
        if self.order_errors is None:
            return float("nan")
        return 1 - (self.order_errors.of_order if ordered else self.order_errors.of_set)[k - 1]

    def separated(self, k: int, *, ordered: bool = True, confidence: float = 0.95) -> bool:
        """Return whether the k strongest features, by default in their order, are separated from all others.

        Args:
            k: Number of features.
            ordered: Whether their order counts, too.
            confidence: The smallest sufficient :meth:`top_k_probability`.
        """
        return self.top_k_probability(k, ordered=ordered) >= confidence

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict of plain Python types."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the report."""
        shown = len(self.weights)
        lines = [
            f"LIME of the {self.explained.label}{' (predicted)' if self.explained.is_predicted else ''}",
            f"f(x)        {self.fx:.4g}; linear model {self.local_prediction:.4g}; intercept {self.intercept:.4g}",
            f"fit         R² {self.r2:.3f} of all {self.n_features} features"
            + (f", {self.r2_shown:.3f} of the {shown} shown" if shown < self.n_features else ""),
            f"target      standard deviation {self.target_sd:.3g} over the samples",
            f"samples     {self.n_samples}, {self.n_distinct} distinct; effective {self.effective_sample_size:.0f}, "
            f"{self.effective_sample_size / self.n_features:.1f} a feature",
            *self._ranking(),
        ]
        if self.replicates is not None:
            lines.append(f"replicates  {self.replicates}")
        return "\n".join(lines + [f"warning     {text}" for text in self.warnings])

    def _ranking(self) -> list[str]:
        if self.order_errors is None:
            return ["errors      none for this model_regressor; pool explanations of several seeds"]
        errors = np.array([error for error in self.standard_errors.values() if not np.isnan(error)])
        if not len(errors):
            return ["errors      none: the samples do not determine the weights"]
        k = min(DEFAULT_TOP, len(errors))
        largest = max(map(abs, self.weights.values()), default=0.0) or 1.0
        moved = np.abs([bias for bias in self.ridge_bias.values() if not np.isnan(bias)])
        sure = [self.top_k_probability(k, ordered=ordered) for ordered in (False, True)]
        return [
            f"errors      median standard error {np.median(errors):.2g}, "
            f"{np.median(errors) / largest:.1%} of the largest weight",
            *([f"penalty     moves weights by up to {moved.max():.2g}"] if len(moved) and moved.max() > 0 else []),
            f"ranking     top {k}: the right set with probability {sure[0]:.2f}, in the right order with {sure[1]:.2f}",
        ]


def diagnose(fit: Fit, replicates: Replicates | None = None) -> tuple[Diagnostics, tuple[str, ...]]:
    """Return the diagnostics of a fit, and its warnings as messages without numbers.

    Args:
        fit: The samples, lime's fit of them, and the explained number.
        replicates: The agreement of the runs.
    """
    data, (intercept, pairs, score, prediction) = fit.data, fit.result
    weights = {int(k): float(w) for k, w in pairs}
    full = data.full(fit.result)
    everything = fit.selected is None
    shown = full if everything else data.linear(fit.result)
    errors, bias = shown.standard_errors, shown.ridge_bias
    total = float(data.kernel.sum())
    mean = float(data.kernel @ data.y) / total
    sd = float(np.sqrt(data.kernel @ (data.y - mean) ** 2 / total))
    is_constant = sd <= _CONSTANT * float(np.abs(data.y).max())
    numbers: dict[str, Any] = dict(
        fx=float(data.y[0]),
        r2=float("nan") if is_constant else full.r2,
        r2_shown=number(score),
        target_sd=sd,
        effective_sample_size=total**2 / float((data.kernel**2).sum()),
        n_samples=len(data.y),
        n_features=len(full.ids),
    )
    penalty = ridge_warnings(data.features, weights, bias, errors)
    warned = _notices(fit, full, numbers, penalty, is_constant=is_constant)
    diagnostics = Diagnostics(
        label=data.label,
        explained=fit.explained,
        local_prediction=number(prediction),
        intercept=number(intercept),
        n_distinct=len({hash(row.tobytes()) for row in data.x}),
        weights=weights,
        standard_errors={k: errors[k] for k in weights},
        ridge_bias={k: bias[k] for k in weights},
        full_weights={k: weights[k] for k in full.ids} if everything else full.weights,
        full_standard_errors=full.standard_errors,
        order_errors=full.order_errors,
        warnings=tuple(detail for _, detail in warned),
        replicates=replicates,
        **numbers,
    )
    return diagnostics, tuple(brief for brief, _ in warned if brief)


def _notices(
    fit: Fit, full: Linear, numbers: dict[str, Any], penalty: list[Notice], *, is_constant: bool
) -> list[Notice]:
    """Return all warnings."""
    data = fit.data
    few = sample_warnings(
        len(data.y),
        numbers["effective_sample_size"],
        len(full.ids),
        is_determined=full.errors is None or full.errors.is_determined,
    )
    of_samples = few + [("", detail) for _, detail in penalty] if few else penalty
    unseen = np.flatnonzero(~varying(data.x)).tolist()
    return [
        *unseen_warnings(data.features, unseen, full.tied),
        *_warnings(fit, numbers, of_samples, is_constant=is_constant),
    ]


def _warnings(fit: Fit, numbers: dict[str, Any], of_samples: list[Notice], *, is_constant: bool) -> list[Notice]:
    """Return the warnings about the fit; ``of_samples`` are left out where all scores are equal."""
    fx, d, r2, r2_shown = (numbers[k] for k in ("fx", "n_features", "r2", "r2_shown"))
    out: list[Notice] = []
    if fit.is_cut:  # the adapter has warned
        out.append(("", "the text is longer than the model's limit, and the part cut off is not explained"))
    if is_constant:
        if numbers["effective_sample_size"] < _ALONE:
            brief = (
                "LIME's kernel gives weight to the input alone, so nothing is explained; pass a larger kernel_width="
            )
            return [
                *out,
                (brief, "the kernel gives the perturbed copies no weight: the input is far from all of them"),
            ]
        brief = "the model gives the same score for every perturbed copy, so nothing is explained"
        return [*out, (brief, f"the model's score is {fx:.6g} for every perturbed copy: weights and R² mean nothing")]
    if d == 1:
        brief = "LIME has a single feature, so there is nothing to compare it with"
        out.append(
            (brief, "there is a single feature: its weight is the effect of removing everything, shrunk by ridge")
        )
    if fit.explained.unit == "probability" and not 1 - SATURATED <= fx <= SATURATED:
        brief = "LIME explains a saturated probability, which hardly changes; output='logits' stays informative"
        out.append((brief, f"the probability is saturated ({fx:.6f}); output='logits' stays informative"))
    out += of_samples
    if r2 < LEAST_R2:
        brief = "LIME's linear model fits poorly around this input (R² below 0.5)"
        out.append((brief, f"R² is {r2:.2f}: the linear model explains little of the model's behaviour here"))
    elif r2_shown < LEAST_R2:
        brief = "the features that LIME selected fit poorly (R² below 0.5), while all features fit; raise num_features="
        out.append(
            (brief, f"R² is {r2:.2f} with all features, but {r2_shown:.2f} with those shown: raise num_features=")
        )
    return out
