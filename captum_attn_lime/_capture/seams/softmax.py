"""The eager seam: a softmax whose result is multiplied with values.

A softmax alone is not attention (class probabilities and expert routers are softmaxes too). It is attention if its
result, possibly after a cast, dropout, reshape or mask, is contracted over the softmax dimension with another tensor:
by a matrix product, an einsum, or a broadcast multiplication and a sum (additive attention).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attn_lime._capture import layout
from captum_attn_lime._capture.operations import MATRIX_TRANSPOSE
from captum_attn_lime._capture.recorder import MULTIPLIES, Recorder, kind_of
from captum_attn_lime._capture.seams.exponentials import (
    EXPONENTIALS,
    LOG_SOFTMAXES,
    LOG_SUMS,
    SUMS,
    ExponentialWatch,
    reduced_dim,
)
from captum_attn_lime._capture.weak import TensorTable
from captum_attn_lime.attention import DenseMap

Func = Callable[..., Any]

SOFTMAXES: frozenset[Func] = frozenset(
    {torch.softmax, Tensor.softmax, F.softmax, F.softmin, torch.special.softmax, torch._softmax}
)
SQUASHES: frozenset[Func] = frozenset(
    {
        torch.sigmoid,
        Tensor.sigmoid,
        F.sigmoid,
        F.log_softmax,
        torch.log_softmax,
        Tensor.log_softmax,
        F.logsigmoid,
    }
)
# Before the first of these there is nothing to track.
BEGINS: frozenset[Func] = SOFTMAXES | EXPONENTIALS | LOG_SOFTMAXES | LOG_SUMS
_MATMULS: frozenset[Func] = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})
# Operations between the softmax and the product that keep the result weights.
_CARRIERS: frozenset[Func] = frozenset(
    {
        F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16,
        Tensor.double, Tensor.contiguous, Tensor.clone, Tensor.view, Tensor.reshape, torch.reshape, Tensor.unsqueeze,
        torch.unsqueeze, Tensor.squeeze, torch.squeeze, Tensor.transpose, torch.transpose, Tensor.permute,
        torch.permute, Tensor.expand, Tensor.flatten, torch.flatten, Tensor.masked_fill, torch.masked_fill,
        Tensor.masked_fill_, Tensor.nan_to_num, torch.nan_to_num, MATRIX_TRANSPOSE, Tensor.swapaxes, torch.where,
        Tensor.detach, Tensor.__getitem__, Tensor.narrow, torch.narrow, Tensor.div, torch.div, Tensor.__truediv__,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Weights: the result of a softmax, after operations that keep it one.

    Attributes:
        axis: The softmax dimension in the tensor.
        call: Number of the softmax.
        same_source: Whether the scores compare a tensor with itself.
        is_learned: Whether the queries are parameters.
    """

    axis: int
    call: int
    same_source: bool | None
    is_learned: bool


@dataclass(frozen=True)
class Weighted:
    """A broadcast product of softmax weights and values, before its sum."""

    held: Weights
    weights: Tensor
    value: Tensor


def softmax(recorder: Recorder, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a softmax and start to track its result."""
    output = recorder.run(func, args, kwargs)
    if recorder.on_softmax is not None:
        recorder.on_softmax(args, kwargs, output)
    recorder.trace.follow(func, args, kwargs, output, recorder.batch)
    return output


class SoftmaxWatch:
    """Tracks softmax results until they are multiplied with values."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._weights: TensorTable[Weights] = TensorTable()
        self._weighted: TensorTable[Weighted] = TensorTable()
        self._calls = 0
        self.is_idle = True  # until the first softmax or exponential
        self._done: dict[int, int] = {}  # the index of each softmax's map
        self._elsewhere: set[int] = set()  # softmaxes that multiply more than values, such as relative positions
        # A proxy avoids a reference cycle, which would keep the maps and their files alive after the capture.
        number = partial(SoftmaxWatch._number, weakref.proxy(self))
        self._exponentials = ExponentialWatch(number, _CARRIERS, MULTIPLIES)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Start to track a softmax's result."""
        self.is_idle = False
        scores = args[0] if args else kwargs["input"]
        dim = reduced_dim(args, kwargs)
        self._recorder.note_squash(scores)
        if dim is not None and output.dim() >= 2:
            self._hold(output, dim % output.dim(), self._number(scores), scores)

    def _number(self, scores: Tensor) -> int:
        """Return the number of a new softmax; one over scores of self-attention must later multiply values."""
        self._calls += 1
        provenance = self._recorder.provenance
        if provenance.scores_same_source(scores):
            self._recorder.awaited[self._calls] = (self._recorder.module_name, provenance.compared(scores))
        return self._calls

    def _hold(self, output: Tensor, axis: int, call: int, scores: Tensor) -> None:
        provenance = self._recorder.provenance
        same, learned = provenance.scores_same_source(scores), provenance.scores_of_learned(scores)
        self._weights[output] = Weights(axis, call, same, learned)

    def see(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Process an operation's result; return it, or the leaf that replaces it."""
        if not isinstance(output, Tensor):
            return output
        if func in BEGINS:
            self.is_idle = False
        found = self._exponentials.see(func, args, kwargs, output)
        if found is not None:
            self._hold(output, found.axis, found.call, found.scores)
            return output
        if not (self._weights or self._weighted):
            return output
        if func in _MATMULS:
            factors = [*args, *(kwargs[name] for name in ("input", "other", "mat2") if name in kwargs)]
            return self._matmul(factors[0], factors[1], output) if len(factors) == 2 else output
        if func is torch.einsum:
            return self._einsum(args, output)
        if func in SUMS:
            return self._sum(args, kwargs, output)
        if func in MULTIPLIES and len(args) == 2:
            self._multiply(args[0], args[1], output)
        elif func in _CARRIERS:
            self._carry(func, args, output)
        elif func is F.linear:
            self._note_elsewhere(args[:1])
        return output

    def _note_elsewhere(self, factors: tuple[Any, ...]) -> None:
        """Record that weights multiply something other than the values, so the values are not all they act on."""
        for factor in factors:
            if isinstance(factor, Tensor) and factor in self._weights:
                call = self._weights[factor].call
                self._elsewhere.add(call)
                if call in self._done:
                    self._recorder.maps[self._done[call]].value = None

    def _carry(self, func: Func, args: tuple[Any, ...], output: Tensor) -> None:
        source = next((a for a in args if isinstance(a, Tensor) and a in self._weights), None)
        if source is None:
            return
        held = self._weights[source]
        axis = layout.moved_axis(func, args, source, output, held.axis)
        if axis is not None:
            self._weights[output] = replace(held, axis=axis)

    def _multiply(self, a: Any, b: Any, output: Tensor) -> None:
        for weights, value in ((a, b), (b, a)):
            if not isinstance(weights, Tensor) or weights not in self._weights:
                continue
            held = self._weights[weights]
            if output.shape == weights.shape:
                # By a scale, a head mask or a dropout mask: still one weight per key.
                self._weights[output] = held
            elif isinstance(value, Tensor) and output.dim() == weights.dim():
                # The weights were broadcast over the values' features.
                self._weighted[output] = Weighted(held, weights, value)

    def _sum(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor) or source not in self._weighted:
            return output
        held = self._weighted[source]
        dim, axis = reduced_dim(args, kwargs), held.held.axis
        if dim is None or dim % source.dim() != axis:
            return output
        placed = layout.from_broadcast(held.weights, held.value, axis, self._recorder)
        return self._record(placed, held.held, output, held.weights, held.value)

    def _matmul(self, a: Tensor, b: Tensor, output: Tensor) -> Any:
        if self._is_convolution(a, output) or self._is_convolution(b, output):
            return output
        if a in self._weights and (held := self._weights[a]).axis == a.dim() - 1 and _are_values(b, a):
            return self._record(layout.from_matmul(a, b, self._recorder), held, output, a, b)
        if b in self._weights and (held := self._weights[b]).axis == b.dim() - 2 and _are_values(a, b):
            placed = layout.from_matmul(b.transpose(-1, -2), a.transpose(-1, -2), self._recorder)
            return self._record(layout.transposed(placed), held, output, b, a)
        self._note_elsewhere((a, b))
        return output

    def _is_convolution(self, weights: Tensor, output: Tensor) -> bool:
        """Return whether a factor is the kernel of a dynamic convolution: one softmax per token and head.

        Each token's kernel weighs that token's neighbours, without a comparison of queries and keys.
        """
        if weights not in self._weights or output.dim() != 3 or 1 not in weights.shape[1:]:
            return False
        groups = len(weights)
        return groups != self._recorder.batch and self._recorder.provenance.is_of_features(weights, groups)

    def _einsum(self, args: tuple[Any, ...], output: Tensor) -> Any:
        operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if not isinstance(args[0], str) or len(operands) != 2:
            return output
        for index, weights in enumerate(operands):
            value = operands[1 - index]
            if weights not in self._weights or isinstance(value, nn.Parameter) or weights.dim() < 3:
                continue
            held = self._weights[weights]
            placed = layout.from_einsum(args[0], index, weights, held.axis, value, self._recorder)
            if placed is not None:
                return self._record(placed, held, output, weights, value)
        self._note_elsewhere(tuple(operands))
        return output

    def _record(self, placed: layout.Placed, held: Weights, output: Tensor, weights: Tensor, value: Tensor) -> Tensor:
        if held.call in self._done:
            # The weights are used again, as with relative values: the first values are not all they act on.
            self._recorder.maps[self._done[held.call]].value = None
            return output
        self._done[held.call] = len(self._recorder.maps)
        self._recorder.awaited.pop(held.call, None)
        pooled = placed.weights.shape[2] == 1
        kind = kind_of(None if pooled and held.is_learned else held.same_source, pooled=pooled)
        if self._recorder.places.mixes_channels(value, placed.summed):
            kind = "channel"
        attention = DenseMap(placed.weights, name=self._recorder.module_name, kind=kind)
        output = self._recorder.add(attention, output, placed.rows, placed.value, weights, value)
        if held.call in self._elsewhere:
            self._recorder.maps[-1].value = None
        return output


def _are_values(value: Tensor, weights: Tensor) -> bool:
    """Return whether a factor can be values; a matrix shared by the batch is class embeddings or a codebook."""
    return not isinstance(value, nn.Parameter) and value.dim() >= 3 and weights.dim() >= 3
