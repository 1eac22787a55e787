"""Partition of an attention map into blocks, so that nothing of size Q·K is stored.

A block is a few query rows of a few examples. If the log-sum-exp of the rows is known, a block need not contain whole
rows, and keys are split too. The map chooses its blocks (`AttentionMap._blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Approximate size of a block's weights, which are read several times and should stay in the cache. Measured for
# 2,048 tokens with 12 heads and 32 examples of 128 tokens: within a few percent of the best from 2 to 8 MiB.
BLOCK_BYTES = 2**22
# With fewer rows or keys, the overhead of calls exceeds the gain from the cache.
_MIN_QUERIES, _MIN_KEYS = 64, 256

EVERYTHING = slice(None)


class Block(NamedTuple):
    """A part of a map.

    Attributes:
        examples: Slice of the batch.
        queries: Row indices, (q,).
        keys: Slice of the keys; the rows' weights on other keys are zero, or in other blocks.
    """

    examples: slice
    queries: Tensor
    keys: slice


def whole_rows(queries: Tensor, shape: tuple[int, int, int, int], n_heads: int, size: int) -> Iterator[Block]:
    """Return blocks of whole rows of all examples.

    Args:
        queries: The rows to compute, (q,).
        shape: The map's (B, H, Q, K).
        n_heads: Number of heads to compute.
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
        queries: The rows to compute, (q,), ascending.
        shape: The map's (B, H, Q, K).
        n_heads: Number of heads to compute.
        size: Bytes of one weight.
        key_range: Returns for given rows the range (start, stop) of the keys that they may attend to.
        whole_rows: Whether a block contains all keys of the range, and the keys of its rows' tokens.
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
    """Return some examples of a tensor; a tensor that all examples share is returned unchanged."""
    return x if len(x) == 1 else x[examples]


def rows_of(index: Tensor) -> slice | Tensor:
    """Return an ascending index as a slice if it has no gaps, since slicing copies nothing.

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
