"""Attention rollout: attention propagated through all layers, with the residual connections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.errors import InputError
from captum_attn_lime.methods._base import FusesHeads, LayerMethod, Needs


@dataclass(frozen=True, kw_only=True, repr=False)
class Rollout(FusesHeads, LayerMethod):
    """The attention of the queries to each input token through all layers.

    Rollout is queryᵀ Â_L … Â_1 with Â = (1 - residual)·A + residual·I, A fused over heads. Only the product with a
    vector is computed, from the last layer to the first, without an N x N matrix. The mean of softmax rows already sums
    to one; rows fused by max or min do not, and Â is then divided by its row sums.

    Args:
        residual: Share of the residual connection, 0 to 1; 0 ignores it, 0.5 is the paper's.
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        heads: Which heads, in every layer; all by default.

    Reference:
        Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, equation 1 and section 3.

    Example:
        >>> import torch
        >>> from captum_attn_lime.attention import DenseMap
        >>> layer = DenseMap(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), kind="self")
        >>> Rollout()([layer, layer], torch.tensor([[1.0, 0.0]]))
        tensor([[0.2500, 0.7500]])
    """

    residual: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.residual, (int, float)) or not 0 <= self.residual <= 1:
            raise InputError(f"residual must be between 0 and 1, but is {self.residual!r}.")

    @property
    def needs(self) -> Needs:
        """Weights fused over heads."""
        return Needs(**self.fusion)

    def step(self, layer: AttentionMap, r: Tensor) -> Tensor:
        """Return rᵀÂ."""
        return layer.residual_vecmat(r, residual=self.residual, **self.fusion)
