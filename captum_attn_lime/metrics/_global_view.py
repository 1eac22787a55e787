"""`global_view`: the scores of many examples as one table of features, with mean magnitude, spread and count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def global_view(scores: Any, names: Sequence[Sequence[str]]) -> DataFrame:
    """Return how strong each feature is over many examples: the mean magnitude of its scores, their spread and number.

    A feature is known by its name (a word, a column). One that occurs several times in an example counts once there,
    with the sum of its scores. Magnitudes are averaged over the examples that have the feature, and not over the
    others: a word that occurs once says little however strong it is, so look at ``count``.

    Magnitudes of different methods have different units; ``plot.global_view`` shows several tables side by side.

    Args:
        scores: For each example one score per feature: a tensor or an array (examples, features), or a sequence of
            vectors. Scores behind an example's last name (special and padding tokens) are no feature's, and NaN is
            no score.
        names: For each example the names of its features, as ``encoding.feature_names``.

    Returns:
        One row per feature, the strongest first: ``mean``, ``sd`` (over examples, with n - 1; NaN for a single one) and
        ``count``, the number of examples that have it. ``attrs["outside"]`` is the mean share of an example's
        magnitudes that lies behind its last name.

    Raises:
        InputError: Scores and names do not fit each other, or a score is infinite.

    Example:
        >>> global_view([[0.5, -0.5, 1.0], [0.25]], [("good", "good", "film"), ("film",)])
                  mean       sd  count
        feature
        film     0.625  0.53033      2
        good     0.000      NaN      1

        Attention over a batch of texts, as words::

            x = adapter.encode(texts)
            rollout = AttentionAttribution(adapter)
            cells = rollout.attribute(**x.arguments(rollout))  # told the words, each cell has its word's score
            view = global_view(features.pool(cells, x.feature_mask, "first"), x.feature_names)
    """
    import pandas as pd

    vectors = _vectors(scores)
    if isinstance(names, str) or len(names) != len(vectors) or any(isinstance(row, str) for row in names):
        raise InputError(
            f"names must hold a sequence of names for each of the {len(vectors)} example(s), as encoding.feature_names "
            f"does, but came as {type(names).__name__} of {len(names)}."
        )
    found, outside = [], []
    for i, (values, own) in enumerate(zip(vectors, names, strict=True)):
        if len(values) < len(own):
            raise InputError(f"example {i} has {len(own)} features, but {len(values)} scores came.")
        if np.isinf(values[: len(own)]).any():
            raise InputError(f"example {i} has an infinite score; look at the method's input and the model's output.")
        magnitude = np.where(np.isfinite(values), np.abs(values), 0.0)
        outside.append(float(magnitude[len(own) :].sum() / (magnitude.sum() or 1.0)))
        found += [(i, str(name), value) for name, value in zip(own, values, strict=False) if not np.isnan(value)]
    table = pd.DataFrame(found, columns=["example", "feature", "score"])
    magnitudes = table.groupby(["feature", "example"])["score"].sum().abs()
    view = magnitudes.groupby("feature").agg(["mean", "std", "count"]).rename(columns={"std": "sd"})
    ordered: DataFrame = view.sort_values("mean", ascending=False, kind="stable")
    ordered.attrs["outside"] = float(np.mean(outside))
    return ordered


def _vectors(scores: Any) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Return one vector of floats per example."""
    out = []
    if not len(scores):
        raise InputError("there are no scores; pass those of at least one example.")
    for i, row in enumerate(scores):
        values = row.detach().cpu().double() if hasattr(row, "detach") else row
        try:
            vector = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"the scores of example {i} must be numbers, but came as {type(row).__name__}.") from None
        if vector.ndim != 1:
            raise InputError(
                f"the scores of example {i} have shape {vector.shape}; needed is one number per feature: bring cells "
                "to features with features.pool(attributions, encoding.feature_mask, ...)."
            )
        out.append(vector)
    return out
