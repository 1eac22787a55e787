"""Attention rollout: attention followed through all layers, residual connections included."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_attn_lime.attention import AttentionMap, HeadFusion
from captum_attn_lime.methods._checks import require_products


def rollout(
    maps: Sequence[AttentionMap],
    query: Tensor,
    *,
    heads: int | Sequence[int] | None = None,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
) -> Tensor:
    """Return how much the queries draw from each input token through all layers, (B, K).

    Rollout is queryᵀ Â_L … Â_1 with Â = (1 - residual)·A + residual·I, A fused over heads. Only the product with a
    vector is formed, from the last layer down, so no N x N matrix is ever made. The mean of softmax rows already sums
    to one; rows fused by max or min do not, and Â is then divided by its row sums.

    Args:
        maps: Self-attention layers in forward order, all over the same tokens.
        query: Weight of each output token, (B, N), or several such vectors, (B, R, N).
        heads: Heads to fuse; all by default.
        head_fusion: How heads are fused.
        residual: Share of the residual connection; 0 leaves it out, 0.5 is the paper's.

    Raises:
        AttentionKindError: A map is not self-attention, or the maps are not over the same tokens.

    Reference:
        Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, equation 1 and section 3.

    Example:
        >>> import torch
        >>> from captum_attn_lime.attention import DenseMap
        >>> layer = DenseMap(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), kind="self")
        >>> rollout([layer, layer], torch.tensor([[1.0, 0.0]]))
        tensor([[0.2500, 0.7500]])
    """
    require_products(maps, "rollout")
    r = query
    for attention in reversed(maps):
        r = attention.residual_vecmat(r.to(attention.dtype), residual=residual, head_fusion=head_fusion, heads=heads)
    return r


def rollout_of_top(
    attention: AttentionMap,
    own: Tensor,
    *,
    heads: int | Sequence[int] | None = None,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
) -> Tensor:
    """Return what a last layer of one query draws from its tokens, (B, N); ``own`` is what its residual passes on."""
    one = own.new_ones(attention.shape[0], 1)
    attended = attention.vecmat(one, heads=heads, head_fusion=head_fusion)
    attended = attended / attention.row_sums(heads=heads, head_fusion=head_fusion)
    return (1 - residual) * attended + residual * own.to(attended)
