"""Products with an attention map by the fused CPU kernel, in memory that grows with the tokens only.

With s_ij the scores and lse_i the log-sum-exp of row i,

    (rᵀA)_j = Σ_i r_i exp(s_ij - lse_i) = exp(logsumexp_i(s_ij + log r_i - lse_i)).

The right side is itself the log-sum-exp that a fused attention call returns when queries and keys change places and
log r_i - lse_i is added to the scores. So two passes of the kernel, or one where lse is known, give the product; blocks
of query rows (`blocks.py`) give the same numbers wherever this does not apply.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Stands in for log 0: it must come to nothing next to any score, and stay finite.
_NOTHING = -1e30
# Greatest relative error that rounding the scores may leave in a weight: scores up to about 80 in float32.
_ROUNDING = 1e-5


class FusedScores(NamedTuple):
    """What the kernel needs of an attention call.

    Attributes:
        query: (B, H, Q, d).
        key: (B, H, K, d), a head for each query head.
        scale: Factor on the scores.
        bias: Added to the scores per key, (B, 1 or H, 1, K) in the query's dtype, -inf where a key is masked; or None.
        is_causal: Query i sees keys 0 to i only.
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Tensor | None
    is_causal: bool


def readable(
    query: Tensor, key: Tensor, masks: tuple[Tensor, ...], scale: float, is_causal: bool
) -> FusedScores | None:
    """Return the call in the kernel's terms; None where the kernel cannot be given it in linear memory."""
    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if kernel is None or query.device.type != "cpu" or query.dtype not in (torch.float32, torch.float64):
        return None
    if (is_causal and query.shape[2] != key.shape[2]) or query.shape[0] != key.shape[0]:
        return None
    bias = None
    for mask in masks:
        same_for_all = _same_for_all_queries(mask)
        if same_for_all is None:
            return None
        part = same_for_all.to(query.dtype)
        if mask.dtype == torch.bool:
            part = torch.zeros_like(part).masked_fill(~same_for_all, -torch.inf)
        bias = part if bias is None else bias + part
    # The kernel itself does not look: it takes the last dimension for contiguous.
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    # Heads that share a key get it each: O(K), where fewer heads of queries than of keys would end the process.
    groups = query.shape[1] // key.shape[1]
    return FusedScores(query, key.repeat_interleave(groups, dim=1) if groups > 1 else key, scale, bias, is_causal)


def row_log_sums(call: FusedScores) -> Tensor | None:
    """Return the log-sum-exp of each row's scores, (B, H, Q).

    None where a row has no key to speak of, or where scores are so large that the kernel's two roundings of the same
    score differ visibly.
    """
    mask = None
    if call.bias is not None:
        batch, heads = call.query.shape[:2]
        mask = call.bias.expand(batch, heads, 1, -1).contiguous().expand(-1, -1, call.query.shape[2], -1)
    sums = _kernel(call.query, call.key, call.key, mask, call.is_causal, call.scale)
    if not float(sums.abs().max()) * torch.finfo(sums.dtype).eps < _ROUNDING:
        return None
    if call.bias is not None and bool((call.bias == -torch.inf).all(dim=-1).any()):
        return None  # the kernel's sum of no key at all is 0, as if it were 1
    return sums


def vecmat(call: FusedScores, sums: Tensor, r: Tensor) -> Tensor:
    """Return rᵀA with the mean over heads, (B, K), for r (B, Q) that is nowhere negative and each row's log-sum."""
    logs = torch.where(r > 0, r.log(), _NOTHING)[:, None] - sums  # (B, H, Q)
    query, key = call.query, call.key
    if call.is_causal:
        # Causality holds for the exchanged sequences when both are read backwards.
        query, key, logs = query.flip(2), key.flip(2), logs.flip(2)
    # One row of memory, shown to the kernel as all K rows; a strided one would be written out in full.
    bias = logs.clamp(min=_NOTHING)[:, :, None].contiguous().expand(-1, -1, key.shape[2], -1)
    columns = _kernel(key, query, query, bias, call.is_causal, call.scale)  # (B, H, K)
    if call.is_causal:
        columns = columns.flip(2)
    if call.bias is not None:
        columns = columns + call.bias.squeeze(-2)
    return columns.exp().mean(dim=1)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    """Return the log-sum-exp of each row of scores, (B, H, Q)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    sums: Tensor = kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[1]
    return sums


def _same_for_all_queries(mask: Tensor) -> Tensor | None:
    """Return the mask's one row (..., 1, K) where all queries have the same; None where they differ."""
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    first = mask[..., :1, :]
    if mask.shape[-2] == 1 or mask.stride(-2) == 0 or bool((mask == first).all()):
        return first
    return None
