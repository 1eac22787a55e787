"""`global_view`: the mean magnitude, spread and count of each feature over many examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def global_view(scores: Any, names: Sequence[Sequence[str]]) -> DataFrame:
    """Return the strength of each feature over many examples: mean magnitude, standard deviation and count.

    Features are identified by name (a word, a column). If a name occurs several times in an example, its scores are
    summed there and count once. The mean is over the examples that contain the feature only: a word that occurs once
    says little however strong it is, so check ``count``.

    Different methods have different units; ``plot.global_view`` draws several tables side by side.

    Args:
        scores: One score per feature for each example: a tensor or an array (examples, features), or a sequence of
            vectors. Scores beyond an example's last name (special and padding tokens) belong to no feature; NaN is
            a missing score.
        names: The feature names of each example, as in ``encoding.feature_names``.

    Returns:
        One row per feature, the strongest first: ``mean``, ``sd`` (over examples, with n - 1; NaN for a single one) and
        ``count``, the number of examples that contain it. ``attrs["outside"]`` is the share of an example's magnitudes
        that belongs to no feature, averaged over examples.

    Raises:
        InputError: Scores and names do not match, or a score is infinite.

    Example:
        >>> global_view([[0.5, -0.5, 1.0], [0.25]], [("good", "good", "film"), ("film",)])
                  mean       sd  count
        feature
        film     0.625  0.53033      2
        good     0.000      NaN      1

        Attention over a batch of texts, by word::

            x = adapter.encode(texts)
            rollout = AttentionAttribution(adapter)
            cells = rollout.attribute(**x.arguments(rollout))  # with the feature mask: each cell has its word's score
            view = global_view(features.pool(cells, x.feature_mask, "first"), x.feature_names)
    """
    import pandas as pd

    vectors = _vectors(scores)
    if isinstance(names, str) or len(names) != len(vectors) or any(isinstance(row, str) for row in names):
        raise InputError(
            f"names must hold a sequence of names for each of the {len(vectors)} example(s), but is a "
            f"{type(names).__name__} of length {len(names)}; pass encoding.feature_names."
        )
    found, outside = [], []
    for i, (values, features) in enumerate(zip(vectors, names, strict=True)):
        if len(values) < len(features):
            raise InputError(
                f"example {i} has {len(features)} features, but {len(values)} scores; pass one per feature."
            )
        if np.isinf(values[: len(features)]).any():
            raise InputError(f"example {i} has an infinite score; check the method's input and the model's output.")
        magnitude = np.where(np.isfinite(values), np.abs(values), 0.0)
        outside.append(float(magnitude[len(features) :].sum() / (magnitude.sum() or 1.0)))
        found += [(i, str(name), value) for name, value in zip(features, values, strict=False) if not np.isnan(value)]
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
            raise InputError(f"the scores of example {i} must be numbers, but are {type(row).__name__}.") from None
        if vector.ndim != 1:
            raise InputError(
                f"the scores of example {i} have shape {vector.shape}, but one number per feature is needed; aggregate "
                "cells with features.pool(attributions, encoding.feature_mask, ...)."
            )
        out.append(vector)
    return out
