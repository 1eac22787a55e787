"""Weights of the output tokens to explain: the prediction's readout, or a user's ``query=``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._passes import ForwardPass
from captum_attn_lime.errors import SelectionError

Query = str | int | slice | Sequence[int] | Tensor


def is_auto(query: Query) -> bool:
    """Return whether the output tokens to explain are those that the prediction reads."""
    return isinstance(query, str) and query == "auto"


def output_weights(query: Query, run: ForwardPass, layer: AttentionMap) -> Tensor:
    """Return the weights (B, Q) of the output tokens to explain.

    Args:
        query: As for :func:`query_weights`, or ``"auto"``.
        run: The captured pass; for ``"auto"`` with its readout.
        layer: The last of the explained layers.

    Raises:
        SelectionError: The query selects no token of the layer, or the readout is over different tokens.
    """
    last = run.maps[-1]
    if layer is run.top:
        return torch.ones(layer.shape[0], 1)
    if run.readout is None or not is_auto(query):
        # A query refers to the tokens of the layer if it is self-attention, otherwise to those of the stack.
        weights = query_weights(query, layer if layer.kind in ("self", "windowed") else last)
    elif layer.index == last.index or layer.index in last.follows or last.index in layer.follows:
        weights = run.readout
    else:
        raise SelectionError(
            f"layer {layer.name!r} has different tokens from {last.name!r}, whose tokens the prediction reads; pass "
            "query= for the selected layers."
        )
    if weights.shape[1] != layer.shape[2]:
        raise SelectionError(
            f"layer {layer.name!r} has {layer.shape[2]} output tokens but the readout is over those of {last.name!r} "
            f"({last.shape[2]}); pass query= for the selected layers."
        )
    return weights


def query_weights(query: Query, attention: AttentionMap) -> Tensor:
    """Return the weights (B, Q) of the output tokens that a query selects.

    Args:
        query: An index for all examples, one index per example (a sequence or an integer tensor of length B), a slice
            (the mean of its tokens), weights (B, Q), or ``"first"``, ``"last"``, ``"mean"`` over real tokens.
        attention: The map of the output tokens.

    Raises:
        SelectionError: The query selects no token of the map.

    Example:
        >>> from captum_attn_lime.attention import DenseMap
        >>> query_weights(-1, DenseMap(torch.ones(1, 1, 3, 3) / 3))
        tensor([[0., 0., 1.]])
    """
    batch, n = attention.shape[0], attention.shape[2]
    if isinstance(query, str):
        return _by_name(query, attention)
    if isinstance(query, slice):
        chosen = torch.zeros(batch, n, device=attention.device)
        chosen[:, query] = 1.0
        return _normalised(chosen, query)
    if isinstance(query, Tensor) and query.is_floating_point():
        if tuple(query.shape) != (batch, n):
            raise SelectionError(f"query weights must have shape (B, N) = {(batch, n)}, but have {tuple(query.shape)}.")
        if not bool(torch.isfinite(query).all()) or not bool(query.any(dim=1).all()):
            raise SelectionError("query weights must be finite, and at least one must be non-zero for each example.")
        return query.to(attention.device)
    try:
        index = torch.as_tensor(query)
    except (TypeError, ValueError, RuntimeError):
        index = torch.tensor(0.5)
    if index.is_floating_point() or index.dtype == torch.bool or index.numel() not in (1, batch):
        raise SelectionError(
            f"query={query!r} is not valid: pass an index, one index per example ({batch}), a slice, weights "
            f"(B, N) = {(batch, n)}, or 'auto', 'first', 'last', 'mean'."
        )
    index = index.reshape(-1).expand(batch).to(attention.device)
    if bool(((index < -n) | (index >= n)).any()):
        raise SelectionError(f"query {query!r} is out of range: there are {n} tokens (0 to {n - 1}).")
    return torch.nn.functional.one_hot(index % n, n).to(attention.dtype)


def _by_name(query: str, attention: AttentionMap) -> Tensor:
    if attention.shape[2] != attention.shape[3]:
        raise SelectionError(
            f"attention {attention.name!r} is not square, so queries cannot be selected by name; pass indices."
        )
    real = attention.reads_itself().to(attention.dtype)  # (B, Q): 0 for padding, which may not attend to itself
    if query == "mean":
        return _normalised(real, query)
    place = real.cumsum(dim=1)
    if query == "first":
        return _normalised(real * (place == 1), query)
    if query == "last":
        return _normalised(real * (place == real.sum(dim=1, keepdim=True)), query)
    raise SelectionError(f"query={query!r} is not known; the names are 'auto', 'first', 'last' and 'mean'.")


def _normalised(weights: Tensor, query: object) -> Tensor:
    total = weights.sum(dim=1, keepdim=True)
    if bool((total == 0).any()):
        raise SelectionError(f"query={query!r} selects no token.")
    return weights / total
