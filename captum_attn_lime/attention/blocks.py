"""Products with an attention map in blocks of query rows, so that nothing of size Q·K is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from captum_attn_lime.attention.fusion import HeadFusion, fuse_heads

Rows = Callable[[Tensor, list[int]], Tensor]

# A block's weights stay near this size: they are read several times, so they should not fall out of the caches.
BLOCK_BYTES = 4 * 2**20


def vecmat(
    rows: Rows, shape: tuple[int, int, int, int], r: Tensor, heads: list[int], head_fusion: HeadFusion
) -> Tensor:
    """Return rᵀA, (B, K), where ``rows`` computes chosen rows of A and ``r`` is (B, Q)."""
    out = r.new_zeros(shape[0], shape[3])
    needed = (r != 0).any(dim=0).nonzero().flatten()
    for queries in _blocks(needed, shape, len(heads), r.element_size()):
        weights = rows(queries, heads)  # (B, h, q, K)
        if head_fusion == "mean":
            # The mean over heads commutes with the product: no fused copy is made.
            per_head = torch.einsum("bq,bhqk->bk", r[:, queries], weights)
            out += per_head / len(heads)
        else:
            out += torch.einsum("bq,bqk->bk", r[:, queries], fuse_heads(weights, head_fusion))
    return out


def row_sums(
    rows: Rows,
    shape: tuple[int, int, int, int],
    heads: list[int],
    head_fusion: HeadFusion,
    device: torch.device,
) -> Tensor:
    """Return the sums of the fused rows, (B, Q)."""
    everything = torch.arange(shape[2], device=device)
    parts = [
        fuse_heads(rows(queries, heads), head_fusion).sum(dim=-1)
        for queries in _blocks(everything, shape, len(heads), 4)
    ]
    return torch.cat(parts, dim=1)


def _blocks(queries: Tensor, shape: tuple[int, int, int, int], n_heads: int, element_size: int) -> Iterator[Tensor]:
    per_row = max(1, shape[0] * n_heads * shape[3] * element_size)
    step = max(1, BLOCK_BYTES // per_row)
    for start in range(0, len(queries), step):
        yield queries[start : start + step]
