"""Inputs of a model: their kind, a short part of long ones, and copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Kind(NamedTuple):
    """The properties of an input apart from its values and length; facts hold for all inputs of the same kind.

    Attributes:
        inputs: Dimensions, dtype and device of each input, and whether its first example is constant.
        args: A comparable description of each further argument, see :func:`kind_of`.
        autocast: Whether autocast is on.
        is_long: Whether the facts come from a part of the input.
    """

    inputs: tuple[Any, ...]
    args: tuple[Any, ...]
    autocast: bool
    is_long: bool = False


def kind_of(inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], *, is_long: bool = False) -> Kind | None:
    """Return the kind of an input; None if a further argument is an object that cannot be compared.

    A further argument may enable parts of a model, so its values are compared: for masks, whether they are constant, or
    have padding on the left or right; for everything else, all values of the first example.

    Example:
        >>> ids = torch.zeros(2, 5, dtype=torch.int64)
        >>> ones, padded = torch.ones(2, 5), torch.tensor([[1.0, 1, 1, 0, 0]] * 2)
        >>> kind_of((ids,), (ones,)) == kind_of((ids[:, :4],), (ones[:, :4],))
        True
        >>> kind_of((ids,), (ones,)) == kind_of((ids,), (padded,))
        False
    """
    sizes = {size for x in inputs for size in x.shape[1:]}
    batch = len(inputs[0])
    with torch.no_grad():
        args = tuple(_argument(x, sizes, batch) for x in forward_args)
        if None in args:
            return None
        # A constant input may hide operations of the model.
        of_inputs = tuple((x.dim(), x.dtype, str(x.device), _runs(x[:1]) is not None) for x in inputs)
    autocast = torch.is_autocast_enabled(inputs[0].device.type)
    return Kind(of_inputs, args, autocast, is_long)


def _argument(x: Any, sizes: set[int], batch: int) -> Any:
    """Return a comparable description of an argument; None if there is none."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_meta:
            return None
        row = x[:1] if x.dim() and len(x) == batch else x
        shape = tuple("input's" if size in sizes else size for size in x.shape[1:])
        runs = _runs(row)
        return ("tensor", shape, x.dtype, str(x.device), _content(row) if runs is None else runs)
    if x is None or isinstance(x, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        return (type(x), x)
    if isinstance(x, np.generic):
        return (type(x), x.item())
    if isinstance(x, Mapping):
        x = [part for item in x.items() for part in item]
    if isinstance(x, (list, tuple)):
        parts = tuple(_argument(part, sizes, batch) for part in x)
        return None if None in parts else (type(x), parts)
    return None


def _runs(row: Tensor) -> tuple[Any, ...] | None:
    """Return the values, and lengths up to 2, of a row of one or two runs, such as a mask; else None.

    A run of one cell differs from longer ones, since a single token cannot be mixed.
    """
    cells = row.reshape(-1)
    if len(cells) < 2:
        return None
    changes = (cells[1:] != cells[:-1]).nonzero().flatten().tolist()
    if not changes:
        return (cells[0].item(),)
    if len(changes) > 1:
        return None
    first, rest = changes[0] + 1, len(cells) - changes[0] - 1
    return (cells[0].item(), min(first, 2), cells[-1].item(), min(rest, 2))


def _content(row: Tensor) -> Any:
    """Return the bytes of a row, or their number and hash."""
    raw = row.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return raw if len(raw) <= 1024 else (len(raw), hash(raw))


def shortened(
    inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], *, longer_than: int, to: int
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]] | None:
    """Return a part of a long sequence, of one example with its further arguments; None if no part is representative.

    Facts such as the last call, the operations that mix tokens, and the input with the tokens hold for every length,
    and are determined faster from a few tokens. The part is the beginning, unless that is padding.

    Args:
        inputs: Tensors (B, N) or (B, N, D).
        forward_args: Further arguments; tensors with a dimension for examples or tokens are cut too.
        longer_than: The number of tokens above which a sequence is long.
        to: The number of tokens to keep.

    Example:
        >>> import torch
        >>> ids = torch.arange(2000).expand(2, -1)
        >>> short, (mask,) = shortened((ids,), (torch.ones(2, 2000),), longer_than=1000, to=16)
        >>> short[0].shape, mask.shape
        (torch.Size([1, 16]), torch.Size([1, 16]))
    """
    batch = len(inputs[0])
    lengths = {x.shape[1] for x in inputs if x.dim() in (2, 3)}
    if len(lengths) != 1 or any(x.dim() not in (2, 3) for x in inputs) or min(lengths) <= max(longer_than, to):
        return None
    (length,) = lengths
    tensors = [x for x in (*inputs, *forward_args) if isinstance(x, Tensor)]
    by_token = [x for x in tensors if x.dim() in (2, 3) and x.shape[:2] == (batch, length)]
    part = _representative_part([x for x in by_token if x.dim() == 2 or x.shape[2] != length], length, to)
    if part is None:
        return None
    example, start = part

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        is_by_example = len(x) == batch
        x = x[example : example + 1] if is_by_example else x
        for axis in range(int(is_by_example), x.dim()):
            if x.shape[axis] == length:
                x = x.narrow(axis, start, to)
        return x

    # Not by `cut`, since the number of features may equal the number of tokens.
    short = tuple(x[example : example + 1, start : start + to] for x in inputs)
    return short, tuple(cut(x) for x in forward_args)


def _representative_part(by_token: list[Tensor], length: int, to: int) -> tuple[int, int] | None:
    """Return an example and the start of a part of it that is not just padding; None if there is none.

    Padding does not show which operations mix tokens; it is constant, unlike the rest of the row. The part is at the
    beginning, or around the first position at which one of the tensors varies.
    """
    varying = [(x[:, 1:] != x[:, :-1]).reshape(len(x), length - 1, -1).any(dim=2).cpu() for x in by_token]
    for example in range(len(by_token[0]) if by_token else 1):
        rows = [(x[example].cpu(), varies[example]) for x, varies in zip(by_token, varying, strict=True)]
        firsts = [int(varies.nonzero()[0]) + 1 for _, varies in rows if bool(varies.any())]
        starts = {0, *(max(0, min(first - to // 2, length - to)) for first in firsts)}
        for start in sorted(starts):
            if all(_is_representative(row, varies, start, to) for row, varies in rows):
                return example, start
    return None


def _is_representative(row: Tensor, varies: Tensor, start: int, to: int) -> bool:
    """Return whether a part of a row is representative of the whole row.

    Args:
        row: (N,) or (N, D).
        varies: Whether each token differs from the one before, (N - 1,).
        start: Start of the part.
        to: Length of the part.
    """
    if row.dim() == 1 and bool(((row == 0) | (row == 1)).all()):
        features = [row == 0, row == 1]  # a mask or token types: both values
        parts = [where[start : start + to] for where in features]
    else:
        features, parts = [varies], [varies[start : start + to - 1]]
    return all(
        4 * int(part.sum()) >= len(part) or int(part.sum()) == int(where.sum())
        for where, part in zip(features, parts, strict=True)
    )


def with_extra_example(x: Any, batch: int) -> Any:
    """Return a tensor over the batch with its first example appended; other values unchanged."""
    if isinstance(x, Tensor) and x.dim() and len(x) == batch:
        return torch.cat([x, x[:1]])
    return x


def copied(x: Any) -> Any:
    """Return copies of tensors, also in tuples, lists and dictionaries, that a model may write into.

    Copies of expanded tensors are expanded too, since the full size may be far larger.

    Example:
        >>> x = torch.zeros(2)
        >>> y, (z,) = copied((x, [x]))
        >>> y is x or z is x
        False
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            return x.detach().clone()
        once = x.detach()[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())]
        return once.clone().expand(x.shape)
    if type(x) in (tuple, list):
        return type(x)(copied(part) for part in x)
    return {key: copied(part) for key, part in x.items()} if type(x) is dict else x


def without_inference_mode(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return inference tensors as copies that can be saved for a backward pass, and other values unchanged."""
    return tuple(x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in tensors)
