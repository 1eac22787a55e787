"""How runs of LIME with several seeds agree: `Replicates` and the published indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

Interval = tuple[float, float]
Stopped = Literal["separated", "budget"]


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
        stopped: Of :func:`explain_until_separated`: ``"separated"`` if the top k and their order are told apart,
            ``"budget"`` if ``max_samples`` were spent before; None where the runs were given.
    """

    seeds: tuple[int, ...]
    samples: int
    k: int
    vsi: float
    csi: float
    jaccard: float
    spearman: float
    weights: tuple[dict[int, float], ...] = field(repr=False)
    stopped: Stopped | None = None

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
