"""Raw attention: the weights with which the explained tokens attend to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.methods._base import FusesHeads, Method, Needs


@dataclass(frozen=True, kw_only=True, repr=False)
class Raw(FusesHeads, Method):
    """The head-fused attention of the queries, averaged over the layers; by default of the last layer.

    Args:
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        heads: Which heads, in every layer; all by default.

    Example:
        >>> from captum_attn_lime.attention import DenseMap
        >>> Raw()([DenseMap(torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]]))], torch.tensor([[1.0, 0.0]]))
        tensor([[0.2500, 0.7500]])
    """

    last_layer_only = True

    @property
    def needs(self) -> Needs:
        """Weights fused over heads."""
        return Needs(**self.fusion)

    def __call__(self, stack: Sequence[AttentionMap], query: Tensor) -> Tensor:
        """Return the scores, (B, K), for a query (B, Q), or (B, R, K) for several, (B, R, Q)."""
        return torch.stack([layer.vecmat(query, **self.fusion) for layer in stack]).mean(dim=0)
