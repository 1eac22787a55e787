"""Cutting an attention map into blocks, so that nothing of size Q·K is held.

A block is a few query rows of a few examples; where the log-sum-exp of the rows is known beforehand, a block need not
hold whole rows, and keys are cut too. Which blocks there are is the map's choice (`AttentionMap._blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A block's weights stay near this size: they are read several times, so they should not fall out of the caches.
# Measured at 2,048 tokens of 12 heads and at 32 examples of 128: within a few percent of the best from 2 to 8 MiB.
BLOCK_BYTES = 2**22
# Below this many rows or keys a block's products cost more in calls than they save in cache.
_MIN_QUERIES, _MIN_KEYS = 64, 256

EVERYTHING = slice(None)


class Block(NamedTuple):
    """A part of a map: which examples, query rows and keys.

    Attributes:
        examples: Slice of the batch.
        queries: Row indices, (q,).
        keys: Slice of the keys; beyond it the rows' weights are zero, or come in other blocks.
    """

    examples: slice
    queries: Tensor
    keys: slice


def whole_rows(queries: Tensor, shape: tuple[int, int, int, int], n_heads: int, size: int) -> Iterator[Block]:
    """Return blocks of whole rows of all examples.

    Args:
        queries: The rows that are needed, (q,).
        shape: The map's (B, H, Q, K).
        n_heads: How many heads are computed.
        size: Bytes of one weight.
    """
    per_row = max(1, shape[0] * n_heads * shape[3] * size)
    step = max(1, BLOCK_BYTES // per_row)
    for part in torch.split(queries, step) if len(queries) > 0 else ():
        yield Block(EVERYTHING, part, EVERYTHING)


def tiles(
    queries: Tensor,
    shape: tuple[int, int, int, int],
    n_heads: int,
    size: int,
    key_range: Callable[[Tensor], tuple[int, int]],
    *,
    whole_rows: bool = False,
) -> Iterator[Block]:
    """Return blocks of rows and keys of some examples.

    Args:
        queries: The rows that are needed, (q,), ascending.
        shape: The map's (B, H, Q, K).
        n_heads: How many heads are computed.
        size: Bytes of one weight.
        key_range: Returns for some rows the first key that one of them may attend to, and the one behind the last.
        whole_rows: Whether a block holds all keys of the range, and the keys of its rows' tokens.
    """
    batch, _, _, keys = shape
    cells = max(1, BLOCK_BYTES // (n_heads * size))  # of one example and all heads
    width = min(keys, max(_MIN_KEYS, cells // min(_MIN_QUERIES, max(1, len(queries))))) if not whole_rows else keys
    height = min(max(1, len(queries)), max(1, cells // width))
    examples = max(1, cells // (height * width))
    for rows in torch.split(queries, height) if len(queries) > 0 else ():
        low, high = key_range(rows)
        if whole_rows and keys > 0:
            low = min(low, int(rows[0]), keys - 1)
            high = min(keys, max(high, int(rows[-1]) + 1))
        for key in range(low, high, width):
            for example in range(0, batch, examples):
                yield Block(slice(example, example + examples), rows, slice(key, min(key + width, high)))


def examples_of(x: Tensor, examples: slice) -> Tensor:
    """Return some examples of a tensor; what all examples share stays shared."""
    return x if len(x) == 1 else x[examples]


def rows_of(index: Tensor) -> slice | Tensor:
    """Return an ascending index as a slice, where it has no gaps: taking a slice copies nothing.

    Example:
        >>> rows_of(torch.tensor([2, 3, 4]))
        slice(2, 5, None)
    """
    n = len(index)
    if n == 0:
        return slice(0, 0)
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == n and first <= last and (n < 3 or bool((index[1:] > index[:-1]).all())):
        return slice(first, last + 1)
    return index
