"""Raw attention: the weights with which the explained tokens read the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_attn_lime.attention import AttentionMap, HeadFusion


def raw(
    maps: Sequence[AttentionMap],
    query: Tensor,
    *,
    heads: int | Sequence[int] | None = None,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
) -> Tensor:
    """Return the head-fused attention of the queries, averaged over the given layers, (B, K).

    Args:
        maps: Layers in forward order.
        query: Weight of each output token, (B, Q), or several such vectors, (B, R, Q).
        heads: Heads to fuse; all by default.
        head_fusion: How heads are fused.
        residual: Not used; raw attention leaves the residual stream out.

    Example:
        >>> from captum_attn_lime.attention import DenseMap
        >>> raw([DenseMap(torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]]))], torch.tensor([[1.0, 0.0]]))
        tensor([[0.2500, 0.7500]])
    """
    return torch.stack([m.vecmat(query, heads=heads, head_fusion=head_fusion) for m in maps]).mean(dim=0)
