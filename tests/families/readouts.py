"""What raw attention and rollout must give where a prediction reads several tokens: the `scores` of a family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.reference.attention import fuse, rollout_matrix

Scores = Callable[[list[np.ndarray]], dict[str, np.ndarray]]


def weighted(weights: np.ndarray, layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of tokens read with weights (B, N) from a stack of layers (B, H, N, N)."""
    return {
        "raw": np.einsum("bq,bqk->bk", weights, fuse(layers[-1], "mean")),
        "rollout": np.einsum("bq,bqk->bk", weights, rollout_matrix(layers)),
    }


def mean_of(first: int) -> Scores:
    """Return the scores of a model that reads the mean of all tokens from `first` on."""

    def scores(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
        batch, _, n, _ = layers[-1].shape
        weights = np.zeros((batch, n))
        weights[:, first:] = 1 / (n - first)
        return weighted(weights, layers)

    return scores


def attention_pooling(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of a model whose last call, of one query, pools the tokens: its heads' mean is the weights."""
    return weighted(fuse(layers[-1], "mean")[:, 0], layers[:-1])


def first_row_alone(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of a model that reads the first row of its only attention: no rollout is expected."""
    return {"raw": fuse(layers[-1], "mean")[:, 0]}


def last_layer_of_one_query(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of a model that computes its last layer for the first token only, with its residual."""
    row = fuse(layers[-1], "mean")[:, 0]
    start = 0.5 * row
    start[:, 0] += 0.5
    return {"raw": row, "rollout": weighted(start, layers[:-1])["rollout"]}
