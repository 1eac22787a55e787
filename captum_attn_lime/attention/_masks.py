"""Attention masks in simpler forms: a bias per key, causality, and the range of keys that rows may attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A mask adds at most this to a masked score: -10,000 in old models, the dtype's minimum in new ones.
MASKED = -9_000.0
# All scores are larger, so that a key masked with less has a weight of exactly zero next to any unmasked key.
NEVER = -1e30
# Masks are compared in parts of this many elements.
_CELLS = 2**19


class KeyBias(NamedTuple):
    """Masks that reduce to a bias per key and causality.

    Attributes:
        bias: (B or 1, H or 1, 1, K), -inf where a key is masked; None if there is no mask.
        is_causal: Whether query i attends to keys 0 to i only.
    """

    bias: Tensor | None
    is_causal: bool


def as_key_bias(masks: Sequence[Tensor], is_causal: bool, n_queries: int, dtype: torch.dtype) -> KeyBias | None:
    """Return the masks as one bias per key and a causal flag; None if queries differ in any other way.

    Models pass the same mask in many forms: a padding mask repeated for all queries, or a causal mask merged with
    padding to (B, 1, N, N).

    Example:
        >>> causal = torch.ones(3, 3, dtype=torch.bool).tril()
        >>> as_key_bias([causal], False, 3, torch.float32)
        KeyBias(bias=tensor([[[[0., 0., 0.]]]]), is_causal=True)
    """
    bias, is_finite = None, False
    for mask in masks:
        full = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
        part = _same_for_all_queries(full)
        if part is None:
            part = _causal_with_keys(full, n_queries)
            if part is None:
                return None
            is_causal = True
            is_finite |= part.dtype != torch.bool and bool((full[..., 0, 1:] > -torch.inf).any())
        added = part.to(dtype)
        if part.dtype == torch.bool:
            added = torch.zeros_like(added).masked_fill(~part, -torch.inf)
        bias = added if bias is None else bias + added
    if is_finite and bias is not None and bool((bias[..., 0] == -torch.inf).any()):
        return None  # a finite mask still lets the first query attend to later keys, since its first key has -inf
    return KeyBias(bias, is_causal)


def _same_for_all_queries(mask: Tensor) -> Tensor | None:
    """Return the mask's row (..., 1, K) if it is the same for all queries; otherwise None."""
    first = mask[..., :1, :]
    if mask.shape[-2] == 1 or mask.stride(-2) == 0:
        return first
    if any(not bool((part == first).all()) for part in _parts(mask)):
        return None
    return first


def _causal_with_keys(mask: Tensor, n_queries: int) -> Tensor | None:
    """Return the row (..., 1, K) of a mask that is causal and otherwise equal for all queries; otherwise None."""
    n = mask.shape[-1]
    if mask.shape[-2] != n or n != n_queries:
        return None
    last = mask[..., -1:, :]  # the last query attends to every key that any query may attend to
    keys = torch.arange(n, device=mask.device)
    start = 0
    for part in _parts(mask):
        rows = keys[start : start + part.shape[-2], None]
        start += part.shape[-2]
        ahead = keys > rows  # (q, K)
        blocked = ~part if part.dtype == torch.bool else part < NEVER
        if not bool((blocked | ~ahead).all()) or not bool(((part == last) | ahead).all()):
            return None
    return last


def _parts(mask: Tensor) -> Sequence[Tensor]:
    """Return the mask in groups of rows, so that comparisons need little memory and can stop early."""
    per_row = max(1, mask.numel() // max(1, mask.shape[-2]))
    return torch.split(mask, max(1, _CELLS // per_row), dim=-2)


def key_range(masks: Sequence[Tensor], is_causal: bool, n_keys: int, rows: Tensor) -> tuple[int, int]:
    """Return the range of keys that any of the rows may attend to, as (start, stop).

    Sliding windows and causal masks exclude most keys for most rows.

    Example:
        >>> band = torch.ones(6, 6).tril().triu(-1).bool()
        >>> key_range([band], False, 6, torch.tensor([3, 4]))
        (2, 5)
    """
    low, high = 0, n_keys
    if is_causal:
        high = min(high, int(rows.max()) + 1)
    for mask in masks:
        if mask.dim() < 2 or mask.shape[-2] == 1:
            continue
        part = mask[..., rows, :]
        allowed = part if part.dtype == torch.bool else part > NEVER
        if part.dtype != torch.bool and not bool(allowed.any(dim=-1).all()):
            continue  # a row whose keys are all masked by the same number attends to all of them
        keys = allowed.expand(*allowed.shape[:-1], n_keys).reshape(-1, n_keys).any(dim=0).nonzero()
        if len(keys) == 0:
            return 0, 0
        low, high = max(low, int(keys[0])), min(high, int(keys[-1]) + 1)
    return low, max(low, high)


def part_of(mask: Tensor, examples: slice, heads: Tensor | None, queries: slice | Tensor, keys: slice) -> Tensor:
    """Return a part of a mask; broadcast dimensions (examples, heads, rows or keys) stay of size 1.

    Args:
        mask: Broadcastable to (B, H, Q, K).
        examples: Slice of the batch.
        heads: Head indices, (h,); None for all.
        queries: Rows.
        keys: Slice of the keys.
    """
    if mask.shape[-1] != 1:
        mask = mask[..., keys]
    if mask.dim() >= 2 and mask.shape[-2] != 1:
        mask = mask[..., queries, :]
    if heads is not None and mask.dim() >= 3 and mask.shape[-3] != 1:
        mask = mask[..., heads, :, :]
    if mask.dim() >= 4 and mask.shape[-4] != 1:
        mask = mask[examples]
    return mask


def self_allowed(masks: Sequence[Tensor], batch: int, n: int, device: torch.device) -> Tensor:
    """Return which tokens may attend to themselves, (B, N) of bool."""
    allowed = torch.ones(batch, n, dtype=torch.bool, device=device)
    for mask in masks:
        part = mask if mask.dtype == torch.bool else mask > MASKED
        full = part.expand(*part.shape[:-2], n, n) if part.dim() >= 2 else part.expand(n, n)
        diagonal = full.diagonal(dim1=-2, dim2=-1)  # (..., N)
        # (H, N) for a mask (H, Q, K) shared by all examples, or (B, H, N): any head counts.
        allowed = allowed & (diagonal.any(dim=-2) if diagonal.dim() >= 2 else diagonal)
    return allowed
