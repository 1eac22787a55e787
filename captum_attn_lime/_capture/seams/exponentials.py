"""Softmaxes written out: exponentials of scores divided by their sum, or by the exponential of a log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attn_lime._capture import layout
from captum_attn_lime._capture.weak import TensorTable

Func = Callable[..., Any]

EXPONENTIALS: frozenset[Func] = frozenset(
    {torch.exp, Tensor.exp, Tensor.exp_, torch.exp_, torch.exp2, Tensor.exp2, torch.special.exp2}
)
LOG_SOFTMAXES: frozenset[Func] = frozenset({F.log_softmax, torch.log_softmax, Tensor.log_softmax})
LOG_SUMS: frozenset[Func] = frozenset({torch.logsumexp, Tensor.logsumexp, torch.special.logsumexp})
SUMS: frozenset[Func] = frozenset({torch.sum, Tensor.sum})
_DIVISIONS: frozenset[Func] = frozenset(
    {torch.div, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__, torch.true_divide}
)
_DIFFERENCES: frozenset[Func] = frozenset({torch.sub, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__})
# Operations on a sum before the division: adding a small number, clamping, restoring a dimension.
_TOUCHES: frozenset[Func] = frozenset(
    {
        torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, torch.clamp, Tensor.clamp,
        Tensor.clamp_min, torch.clamp_min, Tensor.clamp_, Tensor.unsqueeze, torch.unsqueeze, Tensor.expand,
        Tensor.expand_as, Tensor.to, Tensor.float,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Normalised:
    """Softmax weights: exponentials divided by their sum.

    Attributes:
        axis: The dimension that sums to one.
        call: Number of the exponential.
        scores: Its argument.
    """

    axis: int
    call: int
    scores: Tensor


@dataclass(frozen=True)
class _Powers:
    call: int
    scores: Tensor


class ExponentialWatch:
    """Tracks exponentials until they are divided by their sum.

    Args:
        number: Registers a new exponential and returns its number.
        carriers: Operations whose result on weights is weights.
        multiplies: Multiplications, which apply masks.
    """

    def __init__(self, number: Callable[[Tensor], int], carriers: frozenset[Func], multiplies: frozenset[Func]) -> None:
        self._number = number
        self._carriers = carriers
        self._multiplies = multiplies
        self._powers: TensorTable[_Powers] = TensorTable()
        self._sums: TensorTable[Normalised] = TensorTable()
        self._logs: TensorTable[tuple[int, Tensor]] = TensorTable()  # log weights: dimension and scores
        self._log_sums: TensorTable[int] = TensorTable()

    def see(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Normalised | None:
        """Process an operation's result; return the softmax that it completes, or None."""
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor):
            return None
        if func in EXPONENTIALS:
            return self._exponential(source, output)
        if func in LOG_SOFTMAXES or func in LOG_SUMS:
            dim = reduced_dim(args, kwargs)
            if dim is not None and func in LOG_SOFTMAXES:
                self._logs[output] = (dim % output.dim(), source)
            elif dim is not None:
                self._log_sums[output] = dim % source.dim()
            return None
        if func in _DIFFERENCES and _is_tensor(args, 1) and args[1] in self._log_sums:
            self._logs[output] = (self._log_sums[args[1]], source)
            return None
        if not self._powers:
            return None
        return self._after(func, args, kwargs, source, output)

    def _after(
        self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, output: Tensor
    ) -> Normalised | None:
        """Process an operation on an exponential or its sum."""
        if func in SUMS and source in self._powers:
            dim = reduced_dim(args, kwargs)
            if dim is not None:
                powers = self._powers[source]
                self._sums[output] = Normalised(dim % source.dim(), powers.call, powers.scores)
        elif func in _DIVISIONS and _is_tensor(args, 1) and source in self._powers and args[1] in self._sums:
            total = self._sums[args[1]]
            if total.call == self._powers[source].call:
                self._powers.pop(output, None)  # divided in place
                return total
        elif source in self._sums and func in _TOUCHES:
            self._sums[output] = self._sums[source]
        elif source in self._powers and func in self._carriers and output.dim() == source.dim():
            powers = self._powers[source]
            if layout.moved_axis(func, args, source, output, source.dim() - 1) == source.dim() - 1:
                self._powers[output] = powers
        elif func in self._multiplies and (found := self._masked(args, output)) is not None:
            self._powers[output] = found
        return None

    def _exponential(self, source: Tensor, output: Tensor) -> Normalised | None:
        if source in self._logs:
            axis, scores = self._logs[source]
            return Normalised(axis, self._number(scores), scores)
        if output.dim() >= 2:
            self._powers[output] = _Powers(self._number(source), source)
        return None

    def _masked(self, args: tuple[Any, ...], output: Tensor) -> _Powers | None:
        """Return the exponential, if it was multiplied by a mask that broadcasts to it."""
        held = [a for a in args[:2] if isinstance(a, Tensor) and a in self._powers and a.shape == output.shape]
        return self._powers[held[0]] if len(held) == 1 else None


def reduced_dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return the dimension argument of a softmax or sum; None if it is not a single dimension."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    return dim if isinstance(dim, int) else None


def _is_tensor(args: tuple[Any, ...], index: int) -> bool:
    return len(args) > index and isinstance(args[index], Tensor)
