"""Products with an attention map computed by fused attention kernels, in memory linear in the tokens.

With s_ij the scores and lse_i the log-sum-exp of row i,

    (rᵀA)_j = Σ_i r_i exp(s_ij - lse_i) = exp(logsumexp_i(s_ij + log r_i - lse_i)).

The right side is the log-sum-exp that a fused attention call returns if queries and keys are exchanged and
log r_i - lse_i is added to the scores. The forward pass has computed lse already; if it was stored, one pass of the
kernel gives the product. With values V in that call and -lse as bias, its output is AᵀV divided by the column sums, and
its log-sum-exp is their logarithm, so one pass also gives the products with several vectors of any sign.

If the kernels do not apply, products are computed in blocks (`_blocks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attn_lime.attention import native
from captum_attn_lime.attention._masks import MASKED, NEVER, as_key_bias

# Replaces log 0: finite, and negligible next to any score.
_NOTHING = -1e30
# Largest relative error of a weight from rounding a score by half a unit in the last place: scores up to about 160 in
# float32.
_ROUNDING = 1e-5


class FusedScores(NamedTuple):
    """The arguments of the kernel for an attention call.

    Attributes:
        query: (B, H, Q, d).
        key: (B, H, K, d), one head per query head.
        scale: Factor on the scores.
        bias: Added to the scores per key, (B, 1 or H, 1, K) in the dtype of the log-sums, -inf if a key is masked;
            or None.
        is_causal: Query i sees keys 0 to i only.
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Tensor | None
    is_causal: bool

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the kernel accumulates; at least float32."""
        return torch.promote_types(self.query.dtype, torch.float32)


def readable(query: Tensor, key: Tensor, masks: Sequence[Tensor], scale: float, is_causal: bool) -> FusedScores | None:
    """Return the call as arguments of the kernel; None if the kernel does not support it in linear memory."""
    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if kernel is None or query.device.type != "cpu" or query.shape[0] != key.shape[0]:
        return None
    dtype = torch.promote_types(query.dtype, torch.float32)
    found = as_key_bias(masks, is_causal, query.shape[2], dtype)
    if found is None or (found.is_causal and query.shape[2] != key.shape[2]):
        return None
    bias = found.bias
    if bias is not None and bias.shape[-1] != key.shape[2]:
        bias = bias.expand(*bias.shape[:-1], key.shape[2])
    # The kernel assumes that the last dimension is contiguous, without a check.
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    # One key per query head, in O(K): exchanged, a call with fewer query heads than key heads would crash the process.
    groups = query.shape[1] // key.shape[1]
    return FusedScores(query, key.repeat_interleave(groups, dim=1) if groups > 1 else key, scale, bias, found.is_causal)


def row_log_sums(call: FusedScores) -> Tensor:
    """Return the log-sum-exp of each row's scores, (B, H, Q); 0 for a row without a key."""
    mask = None
    if call.bias is not None:
        batch, heads = call.query.shape[:2]
        mask = call.bias.expand(batch, heads, 1, -1).contiguous().expand(-1, -1, call.query.shape[2], -1)
    return _kernel(call.query, call.key, call.key, mask, call.is_causal, call.scale)[1]


def is_exact(sums: Tensor, r: Tensor) -> bool:
    """Return whether log-sums determine the weights of the rows that r (B, R, Q) needs.

    They do not if scores are so large that rounding differs visibly between two computations of a score, or if all keys
    of a row are masked by the smallest finite number: the row is then even, which its log-sum does not show.
    """
    needed = (r != 0).any(dim=1, keepdim=True)  # (B, 1, Q)
    largest = torch.where(needed, sums, 0.0).abs().max()
    return bool(largest * torch.finfo(sums.dtype).eps / 2 < _ROUNDING)


def vecmat(call: FusedScores, sums: Tensor, r: Tensor) -> Tensor:
    """Return rᵀA with the mean over heads, (B, K), for non-negative r (B, Q) and the rows' log-sums."""
    logs = torch.where(r > 0, r.log(), _NOTHING)[:, None] - sums  # (B, H, Q)
    logs = torch.where((r > 0)[:, None], logs, _NOTHING).clamp_(min=_NOTHING)
    if native.is_enabled() and call.query.dtype == torch.float32:
        bias = None if call.bias is None else call.bias.squeeze(-2)
        return native.column_sums(
            call.query, call.key, logs.contiguous(), bias, scale=call.scale, is_causal=call.is_causal
        )
    columns = _exchanged(call, logs, None)[1]  # (B, H, K)
    if call.bias is not None:
        columns = columns + call.bias.squeeze(-2)
    return columns.exp().mean(dim=1)


def matmat(call: FusedScores, sums: Tensor, r: Tensor) -> Tensor:
    """Return rᵀA with the mean over heads, (B, R, K), for r (B, R, Q) of any sign; R is at most the head size."""
    batch, heads, queries, size = call.query.shape
    n = r.shape[1]
    # Contiguous, as the kernel requires: without padding, F.pad returns the transposed tensor.
    by_query = F.pad(r.transpose(1, 2), (0, size - n)).contiguous()  # (B, Q, d)
    value = by_query[:, None].expand(batch, heads, queries, size)
    empty = (r == 0).all(dim=1)[:, None]  # (B, 1, Q): rows whose log-sum may be invalid
    output, columns = _exchanged(call, torch.where(empty, _NOTHING, -sums), value)
    if call.bias is not None:
        columns = columns + call.bias.squeeze(-2)
    return (output[..., :n] * columns.exp()[..., None]).mean(dim=1).transpose(1, 2)


def _exchanged(call: FusedScores, logs: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp of the call with queries and keys exchanged, (B, H, K, d) and (B, H, K).

    Args:
        call: The attention call.
        logs: Added to the scores of each of its queries, (B, H, Q).
        value: (B, H, Q, d); None (the queries are used) if only the log-sums are needed.
    """
    query, key = call.query, call.key
    if value is not None and query.dtype != call.dtype:
        query, key = query.to(call.dtype), key.to(call.dtype)  # one dtype; values must not be rounded
    value = query if value is None else value
    if call.is_causal:
        # The exchanged sequences are causal if both are reversed.
        query, key, value, logs = (x.flip(2) for x in (query, key, value, logs))
    # One row of memory, expanded to all K rows; the kernel would copy a non-contiguous one in full.
    bias = logs[:, :, None].contiguous().expand(-1, -1, key.shape[2], -1)
    output, columns = _kernel(key, query, value, bias, call.is_causal, call.scale)
    return (output.flip(2), columns.flip(2)) if call.is_causal else (output, columns)


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, Q, d) and the log-sum-exp of each row of scores, (B, H, Q)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, sums = kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
    return output, sums


def by_gradient(
    query: Tensor, key: Tensor, masks: Sequence[Tensor], scale: float, is_causal: bool, r: Tensor
) -> Tensor:
    """Return rᵀA with the mean over heads, (B, R, K), by a gradient of scaled_dot_product_attention.

    The derivative of A·V with respect to V with cotangent r is Aᵀr, for every kernel, device and mask. It costs a
    forward and a backward pass of the kernel, in float32 at least.

    Args:
        query: (B, H, Q, d).
        key: (B, Hk, K, d) where Hk divides H.
        masks: The masks of a `ScoreMap`.
        scale: Factor on the scores.
        is_causal: Query i sees keys 0 to i only.
        r: (B, R, Q) with R at most d.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // key.shape[1]
    query, key = (x.clone() if x.is_inference() else x for x in (query.to(dtype), key.to(dtype)))
    key = key.repeat_interleave(groups, dim=1) if groups > 1 else key
    shape, n = (*r.shape[:1], *key.shape[1:]), r.shape[1]
    mask = None
    for given in masks:
        part = given.reshape((1,) * (4 - given.dim()) + tuple(given.shape))
        added = torch.zeros_like(part, dtype=dtype).masked_fill(~part, -torch.inf) if part.dtype == torch.bool else part
        mask = added.to(dtype) if mask is None else mask + added
    if is_causal and mask is not None:
        ahead = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
        mask, is_causal = mask.masked_fill(ahead, -torch.inf), False
    if mask is not None:
        query, mask = _without_low_rows(query, mask)
    with torch.inference_mode(False), torch.enable_grad():
        value = torch.zeros(shape, dtype=dtype, device=query.device, requires_grad=True)
        output = F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, scale=scale)
        cotangent = F.pad(r.transpose(1, 2), (0, output.shape[-1] - n)).to(dtype)[:, None].expand_as(output)
        (found,) = torch.autograd.grad(output, value, cotangent)
    return found[..., :n].mean(dim=1).transpose(1, 2)


def _without_low_rows(query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return a query and mask with the same weights, in which no row is masked by large numbers everywhere.

    A backward pass uses the rows' log-sums, and those of such rows have lost the digits that distinguish keys. A number
    added to a whole row changes no weight, so it is subtracted; next to numbers of 1e30 scores are negligible.
    """
    top = mask.amax(dim=-1, keepdim=True)  # (..., Q or 1, 1)
    low = (top < MASKED) & (top != -torch.inf)
    if not bool(low.any()):
        return query, mask
    return query.masked_fill(low & (top < NEVER), 0.0), torch.where(low, mask - top, mask)
