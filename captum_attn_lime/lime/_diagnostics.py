"""`Diagnostics`: how far a LIME explanation can be trusted, computed from the data of the official fit alone."""

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
_ALONE = 1.5  # effective samples where only the input itself counts
_CONSTANT = 1e-6  # of the largest answer: what float32 models vary by from batch to batch


@dataclass(frozen=True)
class Diagnostics:
    """How far one LIME explanation can be trusted. No model call is made for it.

    ``print(explanation.diagnostics)`` shows a report.

    Attributes:
        label: lime's label of what is explained; for regression 1, under which lime keeps the weights.
        explained: The number that is explained: its class (of a language model the token), unit and value.
        fx: The model's answer for the input itself.
        local_prediction: What the linear model that is shown says for the input itself.
        intercept: Its intercept.
        r2: R² of the linear model over all features, weighted by lime's kernel; NaN where the target is constant
            (lime's own score is then 1).
        r2_shown: The same of what is shown, after lime selected ``num_features``; lime's ``explanation.score``.
        target_sd: Standard deviation of the model's answers over the samples, weighted by the kernel.
        effective_sample_size: (Σw)² / Σw² of the kernel's weights w: so many samples of equal weight say as much.
        n_samples: Number of samples, of all replicates together.
        n_distinct: Number of different samples among them, as lime's linear model sees them.
        n_features: Number of features.
        weights: Weight of each feature that is shown, the strongest first, as in lime.
        standard_errors: Standard error of each of them: how it would scatter over other seeds. NaN where the samples
            say nothing of a feature, and for a ``model_regressor`` that is neither ridge nor ordinary least squares.
        ridge_bias: What the ridge penalty adds to each of them, over all seeds alike: the weight minus what it would be
            without a penalty. NaN where standard errors are, or where the samples do not determine the latter.
        full_weights: Weights of the linear model over all features, by id; those of ``weights`` if all are shown.
        full_standard_errors: Their standard errors.
        order_errors: Of the linear model over all features, what :meth:`top_k_probability` reads; None without
            standard errors.
        warnings: What makes the explanation say less than it seems to.
        replicates: How runs with several seeds agree; None for a single run.
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
        """Return how probable it is that the k features with the largest weights are the k strongest.

        It speaks of the linear model over all features, and of chance in the samples only. Weights are taken as normal,
        and the chances of all pairs to change places are summed: where many features are close that is too much, and
        this number too low. Two features that are equally strong are never told apart, with however many samples.
        Features that the samples say nothing of take no part.

        Args:
            k: Number of features.
            ordered: Whether their order has to be right, too.

        Returns:
            The probability; NaN without standard errors, and beyond the 200 strongest features.

        Raises:
            InputError: There are not so many features.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= self.n_features:
            raise InputError(f"k is a number of features from 1 to {self.n_features}, but is {k!r}.")
        if self.order_errors is None:
            return float("nan")
        return 1 - (self.order_errors.of_order if ordered else self.order_errors.of_set)[k - 1]

    def separated(self, k: int, *, ordered: bool = True, confidence: float = 0.95) -> bool:
        """Return whether the k strongest features, by default in their order, are told apart from all others.

        Args:
            k: Number of features.
            ordered: Whether their order counts, too.
            confidence: The least :meth:`top_k_probability`.
        """
        return self.top_k_probability(k, ordered=ordered) >= confidence

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as a dict of plain Python types."""
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
            f"samples     {self.n_samples}, {self.n_distinct} different; effective {self.effective_sample_size:.0f}, "
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
            return ["errors      none: the samples say nothing of the features"]
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
    """Return the diagnostics of an official fit, and its warnings in words without numbers.

    Args:
        fit: The samples, what lime's ``LimeBase`` made of them, and what is explained.
        replicates: How the runs agree.
    """
    data, (intercept, found, score, prediction) = fit.data, fit.result
    weights = {int(k): float(w) for k, w in found}
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
    pulled = ridge_warnings(data.features, weights, bias, errors)
    warned = _notices(fit, full, numbers, pulled, is_constant=is_constant)
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
    fit: Fit, full: Linear, numbers: dict[str, Any], pulled: list[Notice], *, is_constant: bool
) -> list[Notice]:
    """Return all that there is to warn of."""
    data = fit.data
    few = sample_warnings(
        len(data.y),
        numbers["effective_sample_size"],
        len(full.ids),
        is_determined=full.errors is None or full.errors.is_determined,
    )
    of_samples = few + [("", detail) for _, detail in pulled] if few else pulled
    unseen = np.flatnonzero(~varying(data.x)).tolist()
    return [
        *unseen_warnings(data.features, unseen, full.tied),
        *_warnings(fit, numbers, of_samples, is_constant=is_constant),
    ]


def _warnings(fit: Fit, numbers: dict[str, Any], of_samples: list[Notice], *, is_constant: bool) -> list[Notice]:
    """Return what else there is to warn of; ``of_samples`` has no say where all answers are equal."""
    fx, d, r2, r2_shown = (numbers[k] for k in ("fx", "n_features", "r2", "r2_shown"))
    out: list[Notice] = []
    if fit.is_cut:  # of which the adapter has warned
        out.append(("", "the text is longer than the model takes, and what was cut is not explained"))
    if is_constant:
        if numbers["effective_sample_size"] < _ALONE:
            brief = "LIME's kernel counts the input alone, so that nothing is explained; pass a larger kernel_width="
            return [
                *out,
                (brief, "the kernel gives the perturbed copies no weight: the input is far from all of them"),
            ]
        brief = "the model gives LIME the same answer for every perturbed copy, so that nothing is explained"
        return [*out, (brief, f"the model's answer is {fx:.6g} for every perturbed copy: weights and R² say nothing")]
    if d == 1:
        brief = "LIME has a single feature, so that there is nothing to weigh it against"
        out.append((brief, "there is a single feature: its weight says what removing everything does, shrunk by ridge"))
    if fit.explained.unit == "probability" and not 1 - SATURATED <= fx <= SATURATED:
        brief = "LIME explains a saturated probability, which hardly moves; output='logits' stays informative"
        out.append((brief, f"the probability is saturated ({fx:.6f}); output='logits' stays informative"))
    out += of_samples
    if r2 < LEAST_R2:
        brief = "LIME's linear model fits the model badly around this input (R² below 0.5)"
        out.append((brief, f"R² is {r2:.2f}: the linear model leaves most of what the model does here unexplained"))
    elif r2_shown < LEAST_R2:
        brief = "the features that LIME selected fit badly (R² below 0.5), while all of them fit; raise num_features="
        out.append(
            (brief, f"R² is {r2:.2f} with all features, but {r2_shown:.2f} with those shown: raise num_features=")
        )
    return out
