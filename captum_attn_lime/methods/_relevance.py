"""Relevance: attention gated by its gradient and followed through all layers, for one class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_attn_lime.attention import AttentionMap, HeadFusion
from captum_attn_lime.methods._checks import require_products


def relevance(
    maps: Sequence[AttentionMap],
    query: Tensor,
    *,
    heads: int | Sequence[int] | None = None,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
) -> Tensor:
    """Return how relevant each input token is to the queries for the explained class, (B, K).

    Relevance is queryᵀ (I + Ā_L) … (I + Ā_1) with Ā = E_h[(∂y/∂A ⊙ A)⁺]: what the class gains from each weight. Rows do
    not sum to one, and the identity leaves each query's own token at least its share of the query. As for rollout only
    the product with a vector is formed; gradients of weights are rebuilt in blocks, and nothing N x N is kept.

    Args:
        maps: Self-attention layers in forward order, with values and gradients of their outputs.
        query: Weight of each output token, (B, N), or several such vectors, (B, R, N).
        heads: Heads to fuse; all by default.
        head_fusion: How heads are fused; the paper's is the mean.
        residual: Not used; the rule adds the identity.

    Raises:
        AttentionKindError: A map is not self-attention, or the maps are not over the same tokens.
        SelectionError: A map has no values or no gradient.

    Reference:
        Chefer, Gur and Wolf, Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers, ICCV 2021, equations 5 and 6.

    Example:
        >>> import torch
        >>> from captum_attn_lime.attention import DenseMap
        >>> layer = DenseMap(torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]]), kind="self")
        >>> layer.value = torch.tensor([[[[1.0], [-1.0]]]])
        >>> layer.output_gradient = torch.tensor([[[[1.0], [0.0]]]])
        >>> relevance([layer], torch.tensor([[1.0, 0.0]]))
        tensor([[1.2500, 0.0000]])
    """
    require_products(maps, "relevance")
    r = query
    for attention in reversed(maps):
        r = r.to(attention.dtype)
        r = r + attention.gated_vecmat(r, heads=heads, head_fusion=head_fusion)
    return r


def relevance_of_top(
    attention: AttentionMap,
    own: Tensor,
    *,
    heads: int | Sequence[int] | None = None,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
) -> Tensor:
    """Return the relevance that a last layer of one query passes on, (B, N); ``own`` is what its residual passes on."""
    one = own.new_ones(attention.shape[0], 1)
    return own.to(attention.dtype) + attention.gated_vecmat(one, heads=heads, head_fusion=head_fusion)
