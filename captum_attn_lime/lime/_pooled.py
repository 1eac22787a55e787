"""`pooled` and `explain_until_separated`: one explanation from runs of LIME with several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import check_count
from captum_attn_lime.lime._diagnostics import DEFAULT_TOP
from captum_attn_lime.lime._fits import Fit, FitData
from captum_attn_lime.lime._stability import Replicates, Stopped, coefficients_stability, variables_stability
from captum_attn_lime.lime._standard_errors import ridge_alpha
from captum_attn_lime.lime._warnings import suppressed_warnings
from captum_attn_lime.metrics import spearman

if TYPE_CHECKING:
    from captum_attn_lime.lime._result import LimeExplanation

MAX_SAMPLES = 5000
_Z = 1.96
_PER_FEATURE = 10  # samples per feature; with fewer, standard errors are unreliable


def pooled(explanations: Iterable[LimeExplanation], *, k: int | None = None) -> LimeExplanation:
    """Return one explanation that lime fits to the samples of several explanations of one input.

    Its weights scatter like those of one run with as many samples, and ``diagnostics.replicates`` measures the runs'
    agreement. It does not call the model.

    Args:
        explanations: Explanations of the same input by the same object, with different seeds and equal ``num_samples``.
        k: Number of features of each run whose agreement is measured; by default the shown ones, at most 5.

    Raises:
        InputError: Fewer than two explanations, or explanations of different inputs or numbers.

    Example::

        explanation = pooled(lime.explain(text, seed=seed) for seed in range(5))
        print(explanation.diagnostics.replicates)
    """
    return _pooled(list(explanations), k, None)


def explain_until_separated(
    lime: Any,
    example: Any,
    target: int | str | None = None,
    *,
    num_samples: int = 250,
    max_samples: int = MAX_SAMPLES,
    confidence: float = 0.95,
    seed: int | None = None,
    **options: Any,
) -> LimeExplanation:
    """Explain with further seeds until the strongest features and their order are separated.

    These are the strongest ``num_features``, or 5. Each run has ``num_samples``; the runs are :func:`pooled`, and
    ``diagnostics.replicates.stopped`` says why they ended.

    Args:
        lime: :class:`LimeText`, :class:`LimeTabular`, :class:`LimeSequence` or :class:`LimeImage`.
        example: As for its ``explain``.
        target: As for its ``explain``.
        num_samples: Number of samples per run.
        max_samples: Largest number of samples over all runs.
        confidence: The smallest sufficient :meth:`Diagnostics.top_k_probability`.
        seed: Seed of the first run, from which the others are derived; the explainer's by default.
        **options: Passed to its ``explain``.

    Raises:
        InputError: ``max_samples`` is less than two runs, or the regressor has no standard errors in closed form.

    Reference:
        Zhou, Hooker and Wang, "S-LIME: Stabilized-LIME for Model Explanation", KDD 2021, uses a test for the same.
    """
    check_count("num_samples", num_samples, 2)
    check_count("max_samples", max_samples, 2 * num_samples)
    if ridge_alpha(lime.model_regressor) is None:
        raise InputError(
            f"explain_until_separated needs standard errors, which {type(lime.model_regressor).__name__} does not have "
            "in closed form; use scikit-learn's Ridge or LinearRegression with an intercept, or explain with a fixed "
            "num_samples=."
        )
    runs: list[LimeExplanation] = []
    stopped: Stopped = "budget"
    for run_seed in replicate_seeds(lime.seed if seed is None else seed, max_samples // num_samples):
        with suppressed_warnings():
            runs.append(lime.explain(example, target, num_samples=num_samples, seed=run_seed, **options))
        top = _top(runs[0])
        if len(runs) > 1 and all(_is_separated(fits, top, confidence) for fits in _by_label(runs)):
            stopped = "separated"
            break
    return _pooled(runs, None, stopped)


def replicate_seeds(seed: int, n: int) -> tuple[int, ...]:
    """Return the seeds of n runs, beginning with ``seed``.

    The others are hashed from it, so that neighbouring seeds share none.
    """
    further = np.random.SeedSequence(seed).generate_state(n)[1:]
    return (seed, *(int(s) for s in further))


def _pooled(runs: Sequence[LimeExplanation], k: int | None, stopped: Stopped | None) -> LimeExplanation:
    _check_same(runs)
    top = _top(runs[0]) if k is None else k
    fits, replicates = [], []
    for group in _by_label(runs):
        data = FitData.joined([fit.data for fit in group])
        fits.append(replace(group[0], data=data, result=data.fit(group[0].selected)))
        replicates.append(_agreement(group, [run.seed for run in runs], top, stopped))
    return runs[0].with_fits(fits, replicates)


def _by_label(runs: Sequence[LimeExplanation]) -> list[tuple[Fit, ...]]:
    """Return the runs' fits of each explained class."""
    return list(zip(*(run.fits for run in runs), strict=True))


def _top(run: LimeExplanation) -> int:
    fit = run.fits[0]
    return min(DEFAULT_TOP, fit.data.x.shape[1]) if fit.selected is None else fit.selected


def _check_same(runs: Sequence[LimeExplanation]) -> None:
    """Raise InputError unless the explanations are runs on one input with different seeds."""
    from captum_attn_lime.lime._result import LimeExplanation

    if len(runs) < 2 or not all(isinstance(run, LimeExplanation) for run in runs):
        given = ", ".join(type(run).__name__ for run in runs) or "none"
        raise InputError(f"pooled needs at least two explanations of this package's explain(), but got {given}.")
    first = runs[0]
    same: dict[str, list[Any]] = {
        "explained numbers": [
            tuple((one.index, one.unit) for one in (fit.explained for fit in run.fits)) for run in runs
        ],
        "features": [run.feature_names for run in runs],
        "texts": [run.text for run in runs],
        "numbers of samples": [len(run.fits[0].data.y) for run in runs],
        "numbers of features shown": [len(run.fits[0].result[1]) for run in runs],
    }
    for what, values in same.items():
        if any(value != values[0] for value in values):
            raise InputError(
                f"the explanations differ in their {what}; pool runs of one input that differ only in the seed."
            )
    if any(not np.isclose(run.diagnostics.fx, first.diagnostics.fx, rtol=1e-3) for run in runs):
        raise InputError(
            f"the model's scores of the inputs differ ({[run.diagnostics.fx for run in runs]}); pool runs of one input "
            "that differ only in the seed."
        )
    if len({run.seed for run in runs}) < len(runs) or any(
        len(fit.data.originals) > 1 for run in runs for fit in run.fits
    ):
        raise InputError("two of the explanations have the same samples; pool single runs with different seeds.")


def _is_separated(fits: Sequence[Fit], top: int, confidence: float) -> bool:
    data = FitData.joined([fit.data for fit in fits])
    if len(data.y) < _PER_FEATURE * data.x.shape[1]:
        return False
    error = data.linear(data.fit()).order_errors
    return error is not None and error.of_order[top - 1] <= 1 - confidence


def _agreement(fits: Sequence[Fit], seeds: Sequence[int], k: int, stopped: Stopped | None) -> Replicates:
    """Return the agreement of runs on their k strongest features."""
    tops, intervals, full = [], [], []
    for fit in fits:
        full.append(fit.data.full(fit.result))
        shown = full[-1] if fit.selected is None else fit.data.linear(fit.result)
        weights, errors = shown.weights, shown.standard_errors
        tops.append([int(feature) for feature, _ in fit.result[1][:k]])
        known = [f for f in tops[-1] if not np.isnan(errors[f])]
        intervals.append({f: (weights[f] - _Z * errors[f], weights[f] + _Z * errors[f]) for f in known})
    pairs = list(combinations(range(len(full)), 2))
    sets = [set(top) for top in tops]
    return Replicates(
        seeds=tuple(seeds),
        samples=len(fits[0].data.y),
        k=k,
        vsi=variables_stability(tops),
        csi=coefficients_stability(intervals),
        jaccard=float(np.mean([len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs])),
        spearman=float(np.mean([spearman(full[a].coefficients, full[b].coefficients) for a, b in pairs])),
        weights=tuple(one.weights for one in full),
        stopped=stopped,
    )
