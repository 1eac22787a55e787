"""Official LIME run with one seed or several: samples pooled and fitted again by lime, and how the runs agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import combinations
from typing import Any, Literal

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array, check_count
from captum_attn_lime.lime._diagnostics import (
    DEFAULT_TOP,
    About,
    Diagnostics,
    FitData,
    FitResult,
    Linear,
    diagnose,
)
from captum_attn_lime.lime._explainer import Masks, Remembered
from captum_attn_lime.lime._notices import emit
from captum_attn_lime.lime._standard_errors import ridge_alpha
from captum_attn_lime.lime._unseen import Features
from captum_attn_lime.metrics import spearman

NumSamples = int | Literal["auto"]
Interval = tuple[float, float]
MAX_SAMPLES = 5000
_CONFIDENCE, _Z = 0.95, 1.96
_LEAST_REPLICATE, _PER_FEATURE = 250, 5


@dataclass(frozen=True)
class Replicates:
    """How runs of LIME with several seeds agree on the same input.

    Attributes:
        seeds: The seed of each run; the official explainer gives each run's weights with it.
        samples: Number of samples of each run.
        k: How many features of each run the indices compare: the strongest ones that lime shows.
        vsi: Variables stability index, 0 to 100: :func:`variables_stability`.
        csi: Coefficients stability index, 0 to 100: :func:`coefficients_stability`; NaN without standard errors.
        jaccard: Mean over pairs of runs of the overlap of their top k: features in both among those in either.
        spearman: Mean over pairs of runs of the rank correlation of all weights; NaN for a single feature.
        weights: Each run's weights of all features, by feature id.
        stopped: Of ``num_samples="auto"``: ``"separated"`` if the top k and their order are told apart, ``"budget"`` if
            ``max_samples`` were spent before; None where the number of runs was given.
    """

    seeds: tuple[int, ...]
    samples: int
    k: int
    vsi: float
    csi: float
    jaccard: float
    spearman: float
    weights: tuple[dict[int, float], ...] = field(repr=False)
    stopped: Literal["separated", "budget"] | None = None

    def standard_errors(self) -> dict[int, float]:
        """Return by feature id the standard error of the mean weight, from the spread over the runs."""
        table = np.array([list(run.values()) for run in self.weights])
        errors = table.std(axis=0, ddof=1) / np.sqrt(len(table))
        return dict(zip(self.weights[0], errors.tolist(), strict=True))

    def __str__(self) -> str:
        """Return the numbers in one line."""
        end = {
            None: "",
            "separated": f"; enough: the top {self.k} are told apart",
            "budget": f"; max_samples were spent before the top {self.k} were told apart",
        }
        return (
            f"{len(self.seeds)} of {self.samples} samples, top {self.k}: VSI {self.vsi:.0f}, CSI {self.csi:.0f}, "
            f"Jaccard {self.jaccard:.2f}; Spearman {self.spearman:.3f}{end[self.stopped]}"
        )


def replicate_seeds(seed: int, n: int) -> tuple[int, ...]:
    """Return the seeds of n runs, the first one the seed itself.

    The others are hashed from it, so that replicates of neighbouring seeds have no run in common.
    """
    further = np.random.SeedSequence(seed).generate_state(n)[1:]
    return (seed, *(int(s) for s in further))


def variables_stability(tops: Sequence[Sequence[int]]) -> float:
    r"""Return the variables stability index of the features that several runs selected, from 0 to 100.

    .. math:: VSI = 100 \binom{m}{2}^{-1} \sum_{a < b} |V_a \cap V_b| / p

    with the m runs' selections :math:`V` of p features each.

    Reference:
        Visani et al., "Statistical stability indices for LIME", 2020 (arXiv 2001.11757).

    Example:
        >>> variables_stability([[0, 1], [0, 2], [0, 1]])
        66.66...
    """
    pairs = list(combinations([set(top) for top in tops], 2))
    return 100 * float(np.mean([len(a & b) / max(len(a), len(b)) for a, b in pairs]))


def coefficients_stability(intervals: Sequence[Mapping[int, Interval]]) -> float:
    """Return the coefficients stability index of several runs, from 0 to 100.

    For each feature the share of pairs of runs, among those that selected it, whose confidence intervals overlap; the
    mean of that over the features that at least two runs selected, times 100. NaN where there is none.

    Args:
        intervals: For each run the confidence interval of each selected feature's weight.

    Reference:
        Visani et al., "Statistical stability indices for LIME", 2020 (arXiv 2001.11757).

    Example:
        >>> coefficients_stability([{0: (0, 1), 1: (0, 1)}, {0: (0.5, 2), 1: (2, 3)}])
        50.0
    """
    shares = []
    for feature in {k for run in intervals for k in run}:
        own = [run[feature] for run in intervals if feature in run]
        if len(own) > 1:
            shares.append(np.mean([a[0] <= b[1] and b[0] <= a[1] for a, b in combinations(own, 2)]))
    known = bool(shares) and not any(np.isnan(end) for run in intervals for pair in run.values() for end in pair)
    return 100 * float(np.mean(shares)) if known else float("nan")


@dataclass(frozen=True)
class Plan:
    """How many samples lime draws, with how many seeds.

    Attributes:
        num_samples: Number of samples of each run, or ``"auto"``.
        num_features: Greatest number of features to show; all if None.
        replicates: Number of runs; with ``"auto"`` as many as are needed.
        max_samples: Greatest number of samples of all runs together, with ``"auto"``.
        model_regressor: lime's ``model_regressor``.
    """

    num_samples: NumSamples
    num_features: int | None
    replicates: int
    max_samples: int
    model_regressor: Any = None

    def __post_init__(self) -> None:
        if self.num_features is not None:
            check_count("num_features", self.num_features, 1)
        check_count("replicates", self.replicates, 1)
        check_count("max_samples", self.max_samples, 4)
        if self.num_samples != "auto":
            check_count("num_samples", self.num_samples, 2)
        elif self.replicates != 1:
            raise InputError("num_samples='auto' chooses the number of replicates; leave replicates= out.")
        elif ridge_alpha(self.model_regressor) is None:
            raise InputError(
                f"num_samples='auto' goes by standard errors, which {type(self.model_regressor).__name__} has not in "
                "closed form; use scikit-learn's Ridge or LinearRegression with an intercept, or pass a number."
            )

    @property
    def total(self) -> int:
        """The greatest number of samples of all runs."""
        return self.max_samples if self.num_samples == "auto" else self.num_samples * self.replicates

    def remembering(self, scores: Callable[[Masks], Array], tick: Callable[[int], object] | None = None) -> Any:
        """Return a classifier of masks that runs none twice, in whichever run; see :class:`Remembered`."""
        is_single = self.num_samples != "auto" and self.replicates == 1
        return scores if is_single else Remembered(scores, tick)  # alone, a run's masks are made distinct anyway

    def explanation(
        self,
        explainer: Any,
        run: Callable[[int], Any],
        *,
        features: int,
        seed: int,
        about: Mapping[int, About],
        names: Sequence[str] | None = None,
    ) -> Any:
        """Return lime's explanation, with its ``diagnostics``, of all runs' samples together.

        Args:
            explainer: An official explainer, at the seed.
            run: Its ``explain_instance`` for a number of samples.
            features: Number of features.
            seed: The first run's seed.
            about: What is explained, by the label that lime fits.
            names: The features' names, where the explainer does not know them.
        """
        known = Features.of(explainer, names)
        top = min(DEFAULT_TOP if self.num_features is None else self.num_features, features)
        if self.num_samples == "auto":
            size = min(max(_LEAST_REPLICATE, _PER_FEATURE * features), self.max_samples // 2)
            most = self.max_samples // size
            fits = _Fits(explainer.base, known, most, top)
        else:
            size, most = self.num_samples, self.replicates
            fits = _Fits(explainer.base, known, most)
        seeds = replicate_seeds(seed, most)
        explainer.base.explain_instance_with_data = fits
        try:
            for number in range(most):
                if number:
                    explainer.random_state.seed(seeds[number])  # The explainer's parts share this generator.
                explanation = run(size)
                if fits.is_done:
                    break
        finally:
            del explainer.base.explain_instance_with_data
        briefs: dict[str, None] = {}
        explanation.all_diagnostics = {}
        for label, one in about.items():
            diagnostics, own_briefs = fits.of[label].diagnose(one, seeds, size, top)
            explanation.all_diagnostics[diagnostics.label] = diagnostics
            briefs.update(dict.fromkeys(own_briefs))
        explanation.diagnostics = next(iter(explanation.all_diagnostics.values()))
        explanation.explained = explanation.diagnostics.explained
        answers = next(iter(fits.of.values())).data.y
        explanation.answer_range = (float(answers.min()), float(answers.max()))
        if hasattr(explanation, "min_value"):  # lime has seen the last run alone
            explanation.min_value, explanation.max_value = explanation.answer_range
        emit(tuple(briefs))
        return explanation


@dataclass(frozen=True)
class Run:
    """One run's samples as lime fitted them, and what the fit gave."""

    arguments: dict[str, Any]
    result: FitResult


def fit_data(base: Any, runs: Sequence[Run], features: Features) -> FitData:
    """Return what was fitted in these runs, together."""
    first = runs[0].arguments
    kernels = [base.kernel_fn(run.arguments["distances"]) for run in runs]
    starts = np.cumsum([0, *(len(kernel) for kernel in kernels)])[:-1]
    label = first["label"]
    samples = [np.asarray(run.arguments["neighborhood_data"], dtype=np.float64) for run in runs]
    return FitData(
        samples[0] if len(samples) == 1 else np.concatenate(samples),
        np.concatenate([np.asarray(run.arguments["neighborhood_labels"])[:, label] for run in runs]).astype(float),
        np.concatenate(kernels),
        tuple(starts.tolist()),
        int(label),
        first.get("model_regressor"),
        features,
    )


class _Fits:
    """Stands in for the method of ``explainer.base`` that fits, which is lime's own behind it, for each label.

    Args:
        base: The explainer's ``base``.
        features: What is known of the features.
        most: Greatest number of runs.
        top: So many strongest features have to be separated for the runs to end; None to make all runs.

    Attributes:
        of: The fits of each label.
    """

    def __init__(self, base: Any, features: Features, most: int, top: int | None = None) -> None:
        self.of: dict[int, _LabelFits] = {}
        self._make = partial(_LabelFits, base, base.explain_instance_with_data, features, most, top)
        self._signature = signature(base.explain_instance_with_data)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what lime's method returns, in the last run for the samples of all runs."""
        label = int(self._signature.bind(*args, **kwargs).arguments["label"])
        if label not in self.of:
            self.of[label] = self._make()
        return self.of[label](*args, **kwargs)

    @property
    def is_done(self) -> bool:
        """Whether the last run was the last one."""
        return all(own.is_done for own in self.of.values())


class _LabelFits:
    """The fits of one label.

    It keeps the samples of each run. In the last run it has lime fit those of all runs, and lime then writes this fit
    down as it does with any.

    Args:
        base: The explainer's ``base``.
        fit: Its method that fits.
        features: What is known of the features.
        most: Greatest number of runs.
        top: As for all labels.

    Attributes:
        runs: The runs so far.
        result: The last fit's.
        full: The linear model over all features of all samples, once it is known.
        is_done: Whether the last run was the last one.
    """

    def __init__(self, base: Any, fit: Callable[..., Any], features: Features, most: int, top: int | None) -> None:
        self.base, self.fit, self.features = base, fit, features
        self.most, self.top = most, top
        self.runs: list[Run] = []
        self.result: Any = None
        self.full: Linear | None = None
        self.stopped: Literal["separated", "budget"] | None = None
        self.is_done = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what lime's method returns, in the last run for the samples of all runs."""
        call = signature(self.fit).bind(*args, **kwargs)
        self.result = self.fit(*args, **kwargs)
        self.runs.append(Run(dict(call.arguments), self.result))
        self.is_done = len(self.runs) == self.most
        if len(self.runs) == 1:
            return self.result
        for name in ("neighborhood_data", "neighborhood_labels", "distances"):
            call.arguments[name] = np.concatenate([run.arguments[name] for run in self.runs])
        # lime's selection takes long, and is made once; without it, its fit is also what the runs are ended by.
        selects = len(self.result[1]) < call.arguments["neighborhood_data"].shape[1]
        if self.top is not None:
            if not selects:
                self.result = self.fit(*call.args, **call.kwargs)
            self.full = self.data.full(self.result)
            error = self.full.order_errors
            is_apart = error is not None and error.of_order[self.top - 1] <= 1 - _CONFIDENCE
            self.stopped = "separated" if is_apart else "budget"
            self.is_done |= is_apart
        if self.is_done and (selects or self.top is None):
            self.result = self.fit(*call.args, **call.kwargs)
        return self.result

    @property
    def data(self) -> FitData:
        """The samples of all runs."""
        return fit_data(self.base, self.runs, self.features)

    def diagnose(self, about: About, seeds: tuple[int, ...], samples: int, k: int) -> tuple[Diagnostics, Sequence[str]]:
        """Return the diagnostics of all runs' samples together, and their warnings in words without numbers."""
        n = len(self.runs)
        replicates = self.agreement(seeds[:n], samples, k) if n > 1 else None
        return diagnose(self.data, self.result, about, full=self.full, replicates=replicates)

    def agreement(self, seeds: tuple[int, ...], samples: int, k: int) -> Replicates:
        """Return how the runs agree.

        Args:
            seeds: Each run's seed.
            samples: Number of samples of each run.
            k: Number of features that are compared.
        """
        tops, intervals = [], []
        full: list[Linear] = []
        for run in self.runs:
            data = fit_data(self.base, [run], self.features)
            full.append(data.full(run.result))
            shown = full[-1] if len(run.result[1]) == len(full[-1].ids) else data.linear(run.result)
            weights, errors = shown.weights, shown.standard_errors
            top = [int(feature) for feature, _ in run.result[1][:k]]
            tops.append(top)
            sure = [f for f in top if not np.isnan(errors[f])]
            intervals.append({f: (weights[f] - _Z * errors[f], weights[f] + _Z * errors[f]) for f in sure})
        pairs = list(combinations(range(len(full)), 2))
        sets = [set(top) for top in tops]
        return Replicates(
            seeds=seeds,
            samples=samples,
            k=k,
            vsi=variables_stability(tops),
            csi=coefficients_stability(intervals),
            jaccard=float(np.mean([len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs])),
            spearman=float(np.mean([spearman(full[a].coefficients, full[b].coefficients) for a, b in pairs])),
            weights=tuple(one.weights for one in full),
            stopped=self.stopped,
        )
