"""softmax(QKᵀ/√d + mask), rollout and raw attention in numpy float64, one row at a time."""

from __future__ import annotations

import math

import numpy as np


def softmax_rows(query: np.ndarray, key: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Attention weights (B, H, Q, K) of query (B, H, Q, d) and key (B, Hk, K, d); allowed is (B, Q, K) of bool."""
    batch, heads, n_queries, d = query.shape
    n_keys = key.shape[2]
    out = np.zeros((batch, heads, n_queries, n_keys))
    for b in range(batch):
        for h in range(heads):
            k = key[b, h * key.shape[1] // heads].astype(np.float64)
            for i in range(n_queries):
                scores = [float(np.dot(query[b, h, i].astype(np.float64), k[j])) / math.sqrt(d) for j in range(n_keys)]
                open_keys = [j for j in range(n_keys) if allowed is None or allowed[b, i, j]]
                if not open_keys:
                    continue
                top = max(scores[j] for j in open_keys)
                weights = {j: math.exp(scores[j] - top) for j in open_keys}
                total = math.fsum(weights.values())
                for j, w in weights.items():
                    out[b, h, i, j] = w / total
    return out


def fuse(weights: np.ndarray, how: str, heads: list[int] | None = None) -> np.ndarray:
    chosen = weights if heads is None else weights[:, heads]
    return {"mean": np.mean, "max": np.max, "min": np.min}[how](chosen, axis=1)


def rollout_matrix(
    layers: list[np.ndarray], how: str = "mean", residual: float = 0.5, heads: list[int] | None = None
) -> np.ndarray:
    """The whole product (B, N, N) of Abnar and Zuidema, each factor divided by its row sums."""
    product = None
    for weights in layers:
        fused = (1 - residual) * fuse(weights, how, heads) + residual * np.eye(weights.shape[-1])
        sums = fused.sum(axis=-1, keepdims=True)
        factor = fused / np.where(sums == 0, 1, sums)
        product = factor if product is None else factor @ product
    return product


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, N, H*d) to (B, H, N, d)."""
    batch, n, width = x.shape
    return x.reshape(batch, n, heads, width // heads).transpose(0, 2, 1, 3)
