"""Tracks tokens through views, shifts and padding, to map windowed attention back to the grid of tokens.

A model with windows splits its grid of tokens into windows, runs attention over (batch * windows, w), and moves the
tokens back. For each tensor, this module records the tensor in which its tokens originated (its *start*, with the batch
in dimension 0) and the operations that moved them since. Nothing is computed until an attention call runs over more
groups than there are examples. Then the moves are replayed on token indices, to determine the token at each position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attn_lime._capture.operations import DISORDERS, JOINS, MATMULS, MERGES, MOVES, POINTWISE
from captum_attn_lime._capture.provenance import Fold
from captum_attn_lime._capture.replay import (
    Place,
    Start,
    Step,
    arranged,
    channel_axes,
    replay,
    tokens_of,
    varying,
    without_heads,
)
from captum_attn_lime._capture.weak import TensorTable
from captum_attn_lime.attention import AttentionMap, DenseMap, WindowedMap

Func = Callable[..., Any]
RowView = Callable[[Tensor], Tensor]


class TokenPlaces:
    """Tracks tokens from tensor to tensor; refers to tensors weakly, and replays moves only on demand."""

    def __init__(self) -> None:
        # None marks a tensor whose token positions are unknown, such as an attention output: they become known when it
        # is added to the residual stream.
        self._places: TensorTable[Place | None] = TensorTable()
        self._in_order: dict[Start, bool] = {}
        self._replayed: dict[Any, Tensor | None] = {}
        self._of_features: dict[tuple[int, int], bool] = {}  # by the id of labels, which stay alive, and dimension

    def entry(self, tensor: Tensor) -> tuple[Place | None] | None:
        """Return the place of a tensor's tokens for `restore`; None if the tensor has no entry."""
        return (self._places[tensor],) if tensor in self._places else None

    def restore(self, tensor: Tensor, entry: tuple[Place | None] | None) -> None:
        """Restore the place of a tensor's tokens."""
        if entry is not None:
            self._places[tensor] = entry[0]

    def lose(self, tensor: Tensor) -> None:
        """Mark the place of a tensor's tokens as unknown."""
        self._places[tensor] = None

    def follow(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, batch: int | None) -> None:
        """Propagate the places of the arguments' tokens to the results."""
        results = [r for r in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(r, Tensor)]
        given = [x for x in _flat(args, kwargs) if isinstance(x, Tensor)]
        sources = list({id(x): x for x in given if not isinstance(x, nn.Parameter)}.values())
        is_same = bool(sources) and any(r is sources[0] for r in results) and func not in POINTWISE
        if batch is None or not results or not sources or is_same:
            return
        if func in MOVES and args and sources[0] is args[0] and _is_plain((*args[1:], *kwargs.values())):
            self._move(func, args, kwargs, sources[0], out, batch)
            return
        axis = _projected_axis(func, args, given, results[0])
        if axis is not None:
            place = self._place(sources[0], batch)
            if place is None and sources[0].dim() >= 3 and len(sources[0]) == batch:
                place = Start(tuple(sources[0].shape), is_lost=True)
            step = None if place is None else Step(place, tuple(results[0].shape), axis=axis)
            self._carry(sources[0], results[0], step)
            return
        merges = func in MERGES or (func in JOINS and _is_last(args, kwargs, results[0]))
        for result in results:
            self._compute(func, sources, result, batch, merges=merges)

    def _move(
        self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, out: Any, batch: int
    ) -> None:
        place = self._place(source, batch)
        if func is F.pad and not _is_constant(args, kwargs):
            place = None
        several = isinstance(out, (tuple, list))
        for part, result in enumerate(out if several else (out,)):
            step = None
            if place is not None:
                step = Step(place, tuple(result.shape), func, args[1:], kwargs, part if several else None)
            self._carry(source, result, step)

    def _carry(self, source: Tensor, result: Tensor, step: Step | None) -> None:
        if step is not None or source in self._places:
            self._places[result] = step

    def _compute(self, func: Func, sources: list[Tensor], result: Tensor, batch: int, *, merges: bool) -> None:
        """Set the place of the result of an operation that keeps the tokens' positions, or merges tokens in order."""
        if func in POINTWISE:
            sources = [s for s in sources if s.shape == result.shape]
        places = [self._place(s, batch) for s in sources]
        known = [p for p in places if p is not None and not p.start.is_lost]
        is_lost = any(
            s in self._places and (p is None or p.start.is_lost) for s, p in zip(sources, places, strict=True)
        )
        if func in POINTWISE and len({id(p.ground) for p in known}) == 1:
            # The positions of an attention output's tokens are unknown; take them from the tensor it is added to.
            self._places[result] = next((p for p in known if p is p.ground), known[0])
        elif known and result.dim() >= 3 and len(result) == batch and (func in POINTWISE or (merges and not is_lost)):
            came = {id(p): p for p in known if not (isinstance(p.ground, Start) and not p.ground.came)}
            self._places[result] = Start(tuple(result.shape), tuple(came.values()))
        elif known or is_lost:
            self._places[result] = None

    def _place(self, tensor: Tensor, batch: int) -> Place | None:
        if tensor not in self._places and tensor.dim() >= 3 and tensor.shape[0] == batch:
            self._places[tensor] = Start(tuple(tensor.shape))
        return self._places.get(tensor)

    def on_grid(
        self, attention: AttentionMap, rows: RowView, value: Tensor, carriers: Sequence[Tensor], batch: int | None
    ) -> tuple[AttentionMap, RowView, Tensor]:
        """Convert a call over windows to a call over all tokens of each example.

        Args:
            attention: The map, (windows, H, w, w) if it is over windows; any other is returned unchanged.
            rows: Converts the call's output to (windows, H, w, d).
            value: The call's values, (windows, H, w, d).
            carriers: The call's keys, values and queries in the model's layout.
            batch: Number of examples.

        Returns:
            A `WindowedMap` (B, H, N, N), a function from the call's output to (B, H, N, d), and values (B, H, N, d).
        """
        groups, heads, queries, keys = attention.shape
        if not batch or queries != keys or attention.kind not in ("self", "unknown") or groups % batch:
            return attention, rows, value
        if isinstance(attention, DenseMap):
            carriers = carriers[:-1]  # its query is the weights
        places = [place for place in map(self._places.get, carriers) if place is not None]
        if groups == batch and not any(_disorders(place) for place in places):
            return attention, rows, value
        found = [self._tokens(place, (groups, heads, queries), batch) for place in places]
        tokens = [f for f in found if f is not None]
        if not tokens:
            return attention, rows, value
        if any(not torch.equal(tokens[0], other) for other in tokens[1:]):
            attention.kind = "unknown"  # queries and keys are in different orders
            return attention, rows, value
        if groups == batch and torch.equal(tokens[0].flatten(), torch.arange(tokens[0].numel())):
            return attention, rows, value
        windowed = WindowedMap(attention, tokens[0], examples=batch)
        return windowed, lambda x: windowed.by_token(rows(x)), windowed.by_token(value.detach())

    def mixes_channels(self, value: Tensor, summed: int) -> bool:
        """Return whether a sum over a dimension of an attention call's values certainly runs over features, not tokens.

        It does if the dimension holds features of a single token, and another dimension except the first holds tokens.
        If the dimensions of tokens and features are unknown, the answer is False.
        """
        place, summed = self._places.get(value), summed % value.dim()
        if place is None or value.shape[summed] == 1:
            return False
        found = [labels for axis in channel_axes(place.start) if (labels := self._labels(place, axis)) is not None]
        for labels in found:
            if (id(labels), summed) not in self._of_features:
                self._of_features[id(labels), summed] = _along_features(labels, summed)
        return bool(found) and all(self._of_features[id(labels), summed] for labels in found)

    def fold(self, value: Tensor, batch: int | None) -> Fold | None:
        """Return how dimension 0 of values (X * H, w, d) combines examples or windows with heads; None if uncertain.

        For values (X, H, w, d), the result is that dimension 0 holds examples or windows, and no heads.
        """
        place = self._places.get(value)
        if batch is None or place is None or place.start.is_lost or value.shape[0] == batch:
            return None
        for axis in channel_axes(place.start):
            standing = varying(self._labels(place, axis))
            if standing is not None and standing.dim() == 1:
                standing = standing.expand(value.shape[0], -1)  # all heads of one example
            if standing is None or standing.shape != (value.shape[0], value.shape[-2]):
                continue
            real = standing[standing > 0]
            heads = 0 if len(real) == 0 else int((real == real[0]).sum())
            for batch_first in (True, False):
                if heads and value.shape[0] % heads == 0:
                    fold = Fold(value.shape[0] // heads, heads, batch_first)
                    windows = without_heads(standing, fold)
                    if windows is not None and tokens_of(windows, batch) is not None:
                        return fold
        return None

    def _tokens(self, place: Place, sizes: tuple[int, int, int], batch: int) -> Tensor | None:
        """Return the token at each position of each window, (windows, w), -1 for padding; None if uncertain."""
        if not self._is_in_order(place.start):
            return None
        for axis in channel_axes(place.start):
            windows = arranged(varying(self._labels(place, axis)), sizes, len(place.shape))
            tokens = None if windows is None else tokens_of(windows, batch)
            if tokens is not None:
                return tokens
        return None

    def _is_in_order(self, start: Start) -> bool:
        """Return whether the tokens of a start are in the order of the input, through all it was computed from."""
        waiting = [start]
        while waiting:
            now = waiting[-1]
            missing = [p.start for p in now.came if p.start not in self._in_order]
            waiting.extend(missing)
            if not missing:
                came_in_order = all(self._in_order[p.start] and self._keeps_order(p) for p in now.came)
                self._in_order[now] = came_in_order and not now.is_lost
                waiting.pop()
        return self._in_order[start]

    def _keeps_order(self, place: Place) -> bool:
        for axis in channel_axes(place.start):
            labels = self._labels(place, axis)
            standing = varying(labels)
            if labels is None or standing is None or labels.shape[0] != place.start.shape[0]:
                continue
            real = standing[standing > 0]
            if bool((real[1:] > real[:-1]).all()):
                return True
        return False

    def _labels(self, place: Place, axis: int) -> Tensor | None:
        """Return the token number in each element of a place, 0 for padding, by replaying its moves."""
        steps: list[Step] = []
        while isinstance(place, Step):
            steps.append(place)
            place = place.before
        key = (place.shape, axis, *((s.func, repr(s.args), repr(s.kwargs), s.part, s.shape, s.axis) for s in steps))
        if key not in self._replayed:
            self._replayed[key] = replay(place.shape, axis, steps[::-1])
        return self._replayed[key]


def _along_features(labels: Tensor, axis: int) -> bool:
    """Return whether token numbers are constant along a dimension, and vary along another except the first."""
    others = [d for d in range(1, labels.dim()) if d != axis]
    return not _varies(labels, axis) and any(_varies(labels, d) for d in others)


def _varies(labels: Tensor, axis: int) -> bool:
    return bool((labels != labels.narrow(axis, 0, 1)).any())


def _disorders(place: Place) -> bool:
    """Return whether the tokens of a grid were shifted or padded."""
    while isinstance(place, Step):
        if place.func in DISORDERS and len(place.shape) >= 4:
            return True
        place = place.before
    return False


def _projected_axis(func: Func, args: tuple[Any, ...], given: Sequence[Tensor], result: Tensor) -> int | None:
    """Return the dimension along which an operation projects each token independently; None if it does not."""
    if func is F.linear:
        return -1
    if len(given) < 2 or not args or given[0] is not args[0]:
        return None
    x, weight = given[:2]
    if func in (torch.conv1d, torch.conv2d):
        alone = all(size == 1 for size in weight.shape[2:]) and x.shape[2:] == result.shape[2:]
        return 1 if alone else None
    is_product = func in MATMULS and isinstance(weight, nn.Parameter) and weight.dim() == 2
    return -1 if is_product and x.shape[:-1] == result.shape[:-1] else None


def _is_last(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    """Return whether tensors are concatenated along the last dimension."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return bool(dim in (-1, result.dim() - 1))


def _is_constant(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    return bool(mode == "constant")


def _is_plain(values: Sequence[Any]) -> bool:
    """Return whether arguments are plain numbers, strings and slices: no index tensors, no other types."""
    return all(
        _is_plain(v)
        if isinstance(v, (tuple, list))
        else v is None or v is Ellipsis or isinstance(v, (int, float, str, slice))
        for v in values
    )


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    flat: list[Any] = []
    for value in (*args, *kwargs.values()):
        flat.extend(value if isinstance(value, (tuple, list)) else (value,))
    return flat
