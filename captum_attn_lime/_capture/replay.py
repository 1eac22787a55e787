"""Replays the moves of tokens on their indices, to determine the token at each position of each window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attn_lime._capture.provenance import Fold

Func = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Start:
    """A tensor with new tokens: (B, tokens, ..., channels), or with channels in dimension 1.

    Attributes:
        shape: Its shape.
        came: Places that it was computed from; its tokens are in order only if theirs are.
        is_lost: Whether the origin of its tokens is unknown; the dimensions of tokens and features are still known.
    """

    shape: tuple[int, ...]
    came: tuple[Place, ...] = ()
    is_lost: bool = False

    @property
    def start(self) -> Start:
        """Itself."""
        return self

    @property
    def ground(self) -> Place:
        """Itself: its tokens have not moved."""
        return self


@dataclass(frozen=True, eq=False)
class Step:
    """A tensor whose tokens were moved, or projected in place.

    Attributes:
        before: The place of the operation's input.
        shape: Its shape.
        func: The operation; None for a projection along ``axis``.
        args: Its arguments after the tensor.
        kwargs: Its keyword arguments.
        part: The index of the result, if there are several.
        axis: The dimension of a projection.
    """

    before: Place
    shape: tuple[int, ...]
    func: Func | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    part: int | None = None
    axis: int = -1
    start: Start = field(init=False)
    ground: Place = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.before.start)
        object.__setattr__(self, "ground", self.before.ground if self.func is None else self)


Place = Start | Step


def replay(shape: tuple[int, ...], axis: int, steps: Sequence[Step]) -> Tensor | None:
    """Return the token in each element after a sequence of steps, numbered from 1, and 0 for padding.

    Args:
        shape: Shape of the start, with the batch in dimension 0.
        axis: Its channel dimension; all others index tokens.
        steps: The steps, in order.

    Returns:
        The numbers, which continue over examples; None if a step splits tokens or merges them out of order.

    Example:
        >>> replay((1, 3, 1), 2, [Step(Start((1, 3, 1)), (1, 3, 1), torch.roll, (1, 1))]).flatten()
        tensor([3, 1, 2], dtype=torch.int32)
    """
    labels = _numbered(shape, axis)
    for step in steps:
        if step.func is None:
            one = labels.narrow(step.axis, 0, 1)
            if not bool((labels == one).all()):
                if not _merges(labels, step):
                    return None
                one = _numbered(step.shape, step.axis).narrow(step.axis, 0, 1)  # new tokens
            labels = one.expand(step.shape)
            continue
        try:
            # Where the model's tensor can be viewed, the labels may have to be copied.
            func = Tensor.reshape if step.func is Tensor.view else step.func
            args = step.args[:1] if func is F.pad else step.args
            labels = func(labels, *args, **{k: v for k, v in step.kwargs.items() if func is not F.pad or k == "pad"})
        except (RuntimeError, TypeError, IndexError):
            return None
        labels = labels if step.part is None else labels[step.part]
    return labels


def _numbered(shape: tuple[int, ...], axis: int) -> Tensor:
    """Return the token numbers, from 1, in each element of a tensor with channels in one dimension."""
    lead = [1 if d == axis % len(shape) else n for d, n in enumerate(shape)]
    return torch.arange(1, math.prod(lead) + 1, dtype=torch.int32).reshape(lead).expand(shape)


def _merges(labels: Tensor, step: Step) -> bool:
    """Return whether a projection merges several tokens into one, and keeps their order."""
    first, last = labels.amin(dim=step.axis).flatten(), labels.amax(dim=step.axis).flatten()
    # If padding was merged in, the smallest number is 0.
    order = last if bool((first == 0).any()) else first
    return labels.shape[0] == step.start.shape[0] and bool((order[1:] > order[:-1]).all())


def varying(labels: Tensor | None) -> Tensor | None:
    """Return the labels without the dimensions along which they are constant: channels and heads."""
    if labels is None:
        return None
    for axis in range(labels.dim() - 1, -1, -1):
        one = labels.select(axis, 0)
        if bool((labels == one.unsqueeze(axis)).all()):
            labels = one
    return labels


def arranged(standing: Tensor | None, sizes: tuple[int, int, int], dims: int) -> Tensor | None:
    """Return labels as (windows, w); None if windows and positions cannot be distinguished."""
    windows, heads, width = sizes
    if standing is None:
        return None
    if standing.dim() == 1 and standing.numel() == windows * width and 1 in (windows, width):
        return standing.reshape(windows, width)
    if standing.dim() != 2:
        return None
    if standing.shape == (windows, width) and windows == width and dims == 3:
        return None  # (windows, w, C), or (w, windows, C) as nn.MultiheadAttention has it
    if standing.shape == (windows, width):
        return standing
    if standing.shape == (width, windows) and dims == 3:
        return standing.T
    if standing.shape == (windows * heads, width):
        both = [without_heads(standing, Fold(windows, heads, first)) for first in (True, False)]
        return next((w for w in both if w is not None), None)
    return None


def without_heads(standing: Tensor, fold: Fold) -> Tensor | None:
    """Return labels (windows * heads, w) as (windows, w); None unless all heads of a window hold the same tokens."""
    sizes = (fold.batch, fold.heads) if fold.batch_first else (fold.heads, fold.batch)
    by_head = standing.reshape(*sizes, -1)
    by_head = by_head if fold.batch_first else by_head.transpose(0, 1)
    return by_head[:, 0] if bool((by_head == by_head[:, :1]).all()) else None


def tokens_of(windows: Tensor, batch: int) -> Tensor | None:
    """Return example * N + token at each position, -1 for padding.

    None unless each token occurs exactly once, in a window of its own example.
    """
    real = windows > 0
    total = int(real.sum())
    if total == 0 or total % batch or not torch.equal(windows[real].sort().values, _numbers(total)):
        return None
    tokens = windows.long() - 1
    owner = torch.where(real, tokens // (total // batch), -1)
    alone = bool((~real | (owner == owner.amax(dim=1, keepdim=True))).all())
    return tokens if alone else None


def _numbers(total: int) -> Tensor:
    return torch.arange(1, total + 1, dtype=torch.int32)


def channel_axes(start: Start) -> tuple[int, ...]:
    """Return the possible channel dimensions: the last, as in (B, N, C), or 1, as in (B, C, rows, columns)."""
    return (len(start.shape) - 1, 1)
