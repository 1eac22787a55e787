"""The slow version of each method, by its name in the table: whole matrices in numpy, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.reference.attention import fuse, rollout_matrix
from tests.reference.relevance import Gated, relevance_rows

# (layers, query (B, Q), head fusion, heads) to scores (B, K); further options of the method by name
Oracle = Callable[..., np.ndarray]


def raw(layers: Sequence[Gated], query: np.ndarray, how: str, heads: list[int] | None) -> np.ndarray:
    return np.mean([np.einsum("bq,bqk->bk", query, fuse(layer.weights, how, heads)) for layer in layers], axis=0)


def rollout(
    layers: Sequence[Gated], query: np.ndarray, how: str, heads: list[int] | None, residual: float = 0.5
) -> np.ndarray:
    product = rollout_matrix([layer.weights for layer in layers], how, residual, heads)
    return np.einsum("bq,bqk->bk", query, product)


def relevance(layers: Sequence[Gated], query: np.ndarray, how: str, heads: list[int] | None) -> np.ndarray:
    return relevance_rows(layers, query, how, heads)


ORACLES: dict[str, Oracle] = {"raw": raw, "relevance": relevance, "rollout": rollout}
