"""Products with an attention map in blocks, so that nothing of size Q·K is held.

A block is a few query rows of a few examples; where the log-sum-exp of the rows is known beforehand, a block need not
hold whole rows, and keys are cut too. Which blocks there are is the map's choice (`AttentionMap._blocks`); what is done
with each is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from captum_attn_lime.attention._fusion import HeadFusion, fuse_heads

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


Weights = Callable[[Block], Tensor]  # the weights of a block and of the chosen heads, (b, h, q, k)


class Gate(NamedTuple):
    """What rebuilds the gradient of the weights block by block: dA = dO Vᵀ.

    Attributes:
        gradient: Gradient of the output, (B, h, Q, d).
        value: (B, h, K, d).
    """

    gradient: Tensor
    value: Tensor

    def __call__(self, weights: Tensor, block: Block) -> Tensor:
        """Return the positive part of weights times their gradients, (A ⊙ dA)⁺."""
        examples, queries, keys = block
        gradient = self.gradient[examples][:, :, rows_of(queries)].to(weights.dtype)  # (b, h, q, d)
        value = examples_of(self.value, examples)[:, :, keys].to(weights.dtype)  # (b, h, k, d)
        return (gradient @ value.transpose(-1, -2)).mul_(weights).relu_()


def product(
    weights: Weights,
    blocks: Iterable[Block],
    r: Tensor,
    n_keys: int,
    head_fusion: HeadFusion,
    gate: Gate | None = None,
) -> Tensor:
    """Return rᵀA, (B, R, K), for r (B, R, Q)."""
    out = r.new_zeros(*r.shape[:2], n_keys)
    for block in blocks:
        part = weights(block)
        if gate is not None:
            part = gate(part, block)
        chosen = r[block.examples][:, :, rows_of(block.queries)]  # (b, R, q)
        out[block.examples, :, block.keys] += _fused_product(chosen, part, head_fusion)
    return out


def _fused_product(r: Tensor, weights: Tensor, head_fusion: HeadFusion) -> Tensor:
    b, h, q, k = weights.shape
    if head_fusion == "mean" and r.shape[1] == 1:
        # The mean over heads commutes with the product: no fused copy is made.
        by_head = (r / h).unsqueeze(2).expand(b, 1, h, q).reshape(b, 1, h * q)
        return by_head @ weights.reshape(b, h * q, k)
    return r @ fuse_heads(weights, head_fusion)


def normalised_product(
    weights: Weights, blocks: Iterable[Block], r: Tensor, n_keys: int, head_fusion: HeadFusion, residual: float
) -> Tensor:
    """Return rᵀÂ, (B, R, N), with Â the rows of (1 - residual)·A + residual·I divided by their sums.

    The blocks must hold whole rows.
    """
    out = r * residual if residual == 1 else torch.zeros_like(r)
    if residual == 1:
        return out
    for block in blocks:
        fused = fuse_heads(weights(block), head_fusion)  # (b, q, k)
        sums = (1 - residual) * fused.sum(dim=-1) + residual  # (b, q)
        rows = rows_of(block.queries)
        # A row of zeros passes nothing on, and nothing is divided by zero.
        scaled = r[block.examples][:, :, rows] / sums.masked_fill(sums == 0, 1.0).unsqueeze(1)
        out[block.examples, :, block.keys] += (1 - residual) * (scaled @ fused)
        out[block.examples, :, rows] += residual * scaled
    return out


def row_sums(
    weights: Weights, blocks: Iterable[Block], shape: tuple[int, int], head_fusion: HeadFusion, like: Tensor
) -> Tensor:
    """Return the sums of the fused rows, (B, Q)."""
    out = like.new_zeros(shape)
    for block in blocks:
        out[block.examples, rows_of(block.queries)] += fuse_heads(weights(block), head_fusion).sum(dim=-1)
    return out


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
    cut_keys: bool = True,
) -> Iterator[Block]:
    """Return blocks of rows and keys of some examples.

    Args:
        queries: The rows that are needed, (q,), ascending.
        shape: The map's (B, H, Q, K).
        n_heads: How many heads are computed.
        size: Bytes of one weight.
        key_range: Returns for some rows the first key that one of them may attend to, and the one behind the last.
        cut_keys: Whether rows may be cut; else a block holds all keys of the range.
    """
    batch, _, _, keys = shape
    cells = max(1, BLOCK_BYTES // (n_heads * size))  # of one example and all heads
    width = min(keys, max(_MIN_KEYS, cells // min(_MIN_QUERIES, max(1, len(queries))))) if cut_keys else keys
    height = min(max(1, len(queries)), max(1, cells // width))
    examples = max(1, cells // (height * width))
    for rows in torch.split(queries, height) if len(queries) > 0 else ():
        low, high = key_range(rows)
        if not cut_keys:
            high = max(high, low + 1)  # rows without any key are rows still
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
