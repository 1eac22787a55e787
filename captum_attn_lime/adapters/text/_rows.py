"""Rows of tokens as padded tensors, and in batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_attn_lime.adapters.text._batch_effects import Side
from captum_attn_lime.adapters.text._special_tokens import AnyRow
from captum_attn_lime.adapters.text._tokenize import PlainIds

Ints = NDArray[np.int64]
# If some rows have at least _LONG tokens, all are padded to multiples of _MULTIPLE.
_LONG, _MULTIPLE = 64, 8


class TokenRows(Protocol):
    """Rows of tokens that become arrays a few at a time, so that thousands of long rows need little memory.

    Attributes:
        lengths: Number of tokens of each row, (n,).
        longest: Number of tokens of the longest possible row.
    """

    lengths: Ints
    longest: int

    def cells(self, rows: Sequence[int]) -> tuple[Ints, Ints | None]:
        """Return the concatenated token ids of some rows, and their token types, if any."""
        ...


class ListedRows:
    """Rows of tokens from a list.

    Args:
        rows: The tokens of each text.
    """

    def __init__(self, rows: Sequence[AnyRow]) -> None:
        self._rows = rows
        self.lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        self.longest = int(self.lengths.max())

    def cells(self, rows: Sequence[int]) -> tuple[Ints, Ints | None]:
        """Return the concatenated token ids of some rows, and their token types."""
        some = [self._rows[k] for k in rows]
        ids = chain.from_iterable(row.ids for row in some)
        types = chain.from_iterable(row.types or (0,) * len(row.ids) for row in some)
        return np.fromiter(ids, dtype=np.int64), np.fromiter(types, dtype=np.int64)


def tensors_of(
    adapter: Any, rows: TokenRows, chosen: Sequence[int], width: int, side: Side
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the ids of some rows, padded to (n, width), and their further arguments.

    A row without tokens becomes the adapter's token for an empty text.
    """
    ids, types, lengths = _filled(adapter, rows, chosen)
    filled = np.arange(width) < lengths[:, None]
    filled = filled[:, ::-1] if side == "left" else filled

    def table(values: Any, fill: int) -> Tensor:
        out = np.full(filled.shape, fill, dtype=np.int64)
        out[filled] = values
        return torch.from_numpy(out).to(adapter.device)

    values = {"attention_mask": 1, "token_type_ids": 0 if types is None else types}
    return table(ids, adapter.pad_id), tuple(table(values[name], 0) for name in adapter.argument_names)


def batches(lengths: Sequence[int], budget: int, *, exact: bool, most: int | None = None) -> list[list[int]]:
    """Return the indices of all rows in batches, shortest first.

    Args:
        lengths: Number of tokens of each row.
        budget: Greatest number of tokens of a batch, padding included; a longer row runs alone.
        exact: Whether a batch may hold one length only.
        most: Greatest number of rows of a batch.

    Example:
        >>> batches([3, 1, 2, 1], 4, exact=False), batches([3, 1, 2, 1], 4, exact=True)
        ([[1, 3], [2], [0]], [[1, 3], [2], [0]])
        >>> batches([3, 1, 2, 1], 6, exact=False)
        [[1, 3, 2], [0]]
    """
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = out[-1] if out else []
        fits = bool(last) and (len(last) + 1) * lengths[i] <= budget and (most is None or len(last) < most)
        if fits and (not exact or lengths[last[-1]] == lengths[i]):
            last.append(i)
        else:
            out.append([i])
    return out


def _filled(adapter: Any, rows: TokenRows, chosen: Sequence[int]) -> tuple[Ints, Ints | None, Ints]:
    """Return the concatenated ids and types of some rows, and their lengths, with empty rows filled."""
    ids, types = rows.cells(chosen)
    lengths = rows.lengths[list(chosen)]
    empty = np.cumsum(lengths)[lengths == 0]
    if len(empty):
        ids = np.insert(ids, empty, adapter.empty_id)
        types = None if types is None else np.insert(types, empty, 0)
    return ids, types, np.maximum(lengths, 1)


def row_of(adapter: Any, rows: TokenRows, k: int) -> PlainIds:
    """Return one row."""
    ids, types, _ = _filled(adapter, rows, [k])
    return PlainIds(tuple(ids.tolist()), None if types is None else tuple(types.tolist()))


def rounded(lengths: Ints, longest: int) -> Ints:
    """Return the number of tokens that each row is padded to, at most that of the longest possible row.

    Batches of many different shapes fragment memory; a little padding keeps the shapes of long texts few.
    """
    return lengths if longest < _LONG else np.minimum(-(-lengths // _MULTIPLE) * _MULTIPLE, longest)
