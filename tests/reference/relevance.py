"""Relevance by retained probabilities: every softmax of a model kept in the graph, and dense products in numpy.

It has nothing in common with the package's way: attention is computed by its formula, the gradient is that of torch
with respect to the whole (B, H, N, N) weights, and the matrices of all layers are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention

from tests.reference.attention import fuse


class Gated(NamedTuple):
    """The weights of a layer and the gradient of what is explained with respect to them, both (B, H, Q, K)."""

    weights: np.ndarray
    gradient: np.ndarray


def gated_softmaxes(run: Callable[[], Tensor], explained: Callable[[Tensor], Tensor]) -> list[Gated]:
    """Return weights and gradients of each softmax over tensors of three dimensions or more, in call order.

    Args:
        run: Runs the model, in a mode in which its attention is a softmax or one of torch's attention functions.
        explained: Takes the output and returns the sum of what is explained of each example.
    """
    with torch.enable_grad(), _kept_in_the_graph() as kept:
        total = explained(run())
    gradients = torch.autograd.grad(total, kept, allow_unused=True, materialize_grads=True)
    return [Gated(to_numpy(a), to_numpy(g)) for a, g in zip(kept, gradients, strict=True)]


def relevance_rows(
    layers: Sequence[Gated], query: np.ndarray, how: str = "mean", heads: list[int] | None = None
) -> np.ndarray:
    """Return the rows (B, N) of a query (B, N) of the whole matrix: R = I, then R + Ā R for each layer."""
    n = query.shape[1]
    relevance = np.broadcast_to(np.eye(n), (len(query), n, n))
    for layer in layers:
        relevance = relevance + positive_part(layer, how, heads) @ relevance
    return np.einsum("bq,bqk->bk", query, relevance)


def positive_part(layer: Gated, how: str = "mean", heads: list[int] | None = None) -> np.ndarray:
    """Return Ā, the heads' mean of the positive part of weights times their gradients, (B, Q, K)."""
    return fuse(np.maximum(layer.weights * layer.gradient, 0.0), how, heads)


class _Kept(list[Tensor]):
    """The weights of each softmax, and stand-ins for torch's functions that compute and keep them."""

    depth = 0  # F.softmax calls Tensor.softmax

    def keep(self, weights: Tensor) -> Tensor:
        if not weights.requires_grad:
            weights = weights.detach().requires_grad_()  # where nothing below has parameters
        self.append(weights)
        return weights

    def softmax_like(self, original: Any) -> Any:
        def softmax(*args: Any, **kwargs: Any) -> Any:
            scores = args[0] if args else kwargs["input"]
            if self.depth == 0 and scores.dtype == torch.float64 and kwargs.get("dtype") is not None:
                kwargs = {**kwargs, "dtype": None}  # many models round to float32 here
            self.depth += 1
            try:
                weights = original(*args, **kwargs)
            finally:
                self.depth -= 1
            return self.keep(weights) if self.depth == 0 and scores.dim() >= 3 else weights

        return softmax

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.dim() == 4 and key.shape[1] != query.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=scores.dtype).masked_fill(~attn_mask, -math.inf)
        return self.keep(_safe_softmax(scores if attn_mask is None else scores + attn_mask)) @ value

    def flexible(self, query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any = None) -> Tensor:
        if block_mask is None:
            return self.attention(query, key, value)
        places = (torch.arange(n) for n in (*query.shape[:3], key.shape[2]))
        return self.attention(query, key, value, block_mask.mask_mod(*torch.meshgrid(*places, indexing="ij")))


@contextmanager
def _kept_in_the_graph() -> Iterator[list[Tensor]]:
    """Replace softmax and torch's attention functions by ones that keep the weights; return the list of weights."""
    kept = _Kept()
    places = [(torch, "softmax"), (F, "softmax"), (Tensor, "softmax")]
    replaced: list[tuple[Any, str, Any]] = [(o, name, kept.softmax_like(getattr(o, name))) for o, name in places]
    replaced += [(F, "scaled_dot_product_attention", kept.attention), (flex_attention, "flex_attention", kept.flexible)]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, function in replaced:
            setattr(owner, name, function)
        yield kept
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def _safe_softmax(scores: Tensor) -> Tensor:
    """Return the softmax, with zeros for rows of which all scores are -inf."""
    closed = (scores == -math.inf).all(dim=-1, keepdim=True)
    powers = (scores - scores.masked_fill(closed, 0.0).amax(dim=-1, keepdim=True).detach()).exp()
    return powers / powers.sum(dim=-1, keepdim=True).masked_fill(closed, 1.0)


def to_numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()
