"""The agreement of LIME runs with several seeds: `Replicates` and the published indices."""

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
    """The agreement of LIME runs with several seeds on one input.

    Attributes:
        seeds: The seed of each run, which reproduces it with the official explainer.
        samples: Number of samples of each run.
        k: Number of features of each run that the indices compare, the strongest ones.
        vsi: Variables stability index, 0 to 100: :func:`variables_stability`.
        csi: Coefficients stability index, 0 to 100: :func:`coefficients_stability`; NaN without standard errors.
        jaccard: Mean Jaccard index of the top k over pairs of runs.
        spearman: Mean rank correlation of all weights over pairs of runs; NaN for a single feature.
        weights: Each run's weights of all features, by feature id.
        stopped: Why :func:`explain_until_separated` stopped: ``"separated"`` if the top k and their order are
            separated, ``"budget"`` if ``max_samples`` were used up; None for other runs.
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
        """Return the standard error of the mean weight by feature id, from the scatter over runs."""
        table = np.array([list(run.values()) for run in self.weights])
        errors = table.std(axis=0, ddof=1) / np.sqrt(len(table))
        return dict(zip(self.weights[0], errors.tolist(), strict=True))

    def __str__(self) -> str:
        """Return a one-line summary."""
        end = {
            None: "",
            "separated": f"; the top {self.k} are separated",
            "budget": f"; max_samples reached before the top {self.k} were separated",
        }
        return (
            f"{len(self.seeds)} of {self.samples} samples, top {self.k}: VSI {self.vsi:.0f}, CSI {self.csi:.0f}, "
            f"Jaccard {self.jaccard:.2f}; Spearman {self.spearman:.3f}{end[self.stopped]}"
        )


def variables_stability(tops: Sequence[Sequence[int]]) -> float:
    r"""Return the variables stability index (0 to 100) of the features that several runs selected.

    .. math:: VSI = 100 \binom{m}{2}^{-1} \sum_{a < b} |V_a \cap V_b| / p

    for the selections :math:`V` of m runs with p features each.

    Reference:
        Visani et al., "Statistical stability indices for LIME", 2020 (arXiv 2001.11757).

    Example:
        >>> variables_stability([[0, 1], [0, 2], [0, 1]])
        66.66...
    """
    pairs = list(combinations([set(top) for top in tops], 2))
    return 100 * float(np.mean([len(a & b) / max(len(a), len(b)) for a, b in pairs]))


def coefficients_stability(intervals: Sequence[Mapping[int, Interval]]) -> float:
    """Return the coefficients stability index (0 to 100) of several runs.

    It is the share of pairs of runs that selected a feature and whose confidence intervals of it overlap, averaged over
    the features that at least two runs selected. NaN without such features or intervals.

    Args:
        intervals: The confidence interval of each selected feature's weight, for each run.

    Reference:
        Visani et al., "Statistical stability indices for LIME", 2020 (arXiv 2001.11757).

    Example:
        >>> coefficients_stability([{0: (0, 1), 1: (0, 1)}, {0: (0.5, 2), 1: (2, 3)}])
        50.0
    """
    shares = []
    for feature in {k for run in intervals for k in run}:
        pairs = list(combinations([run[feature] for run in intervals if feature in run], 2))
        if pairs:
            shares.append(np.mean([a[0] <= b[1] and b[0] <= a[1] for a, b in pairs]))
    known = bool(shares) and not any(np.isnan(end) for run in intervals for pair in run.values() for end in pair)
    return 100 * float(np.mean(shares)) if known else float("nan")
