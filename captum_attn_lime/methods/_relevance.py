"""Relevance: attention gated by its gradient and propagated through all layers, for one class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.methods._base import FusesHeads, LayerMethod, Needs


@dataclass(frozen=True, kw_only=True, repr=False)
class Relevance(FusesHeads, LayerMethod):
    """The relevance of each input token to the queries for the explained class.

    Relevance is queryᵀ (I + Ā_L) … (I + Ā_1) with Ā = E_h[(∂y/∂A ⊙ A)⁺]: the positive contribution of each weight to
    the class. Rows do not sum to one, and the identity leaves the token of each query at least its share of the query.
    Like rollout, it computes only the product with a vector; gradients of weights are recomputed in blocks, and no
    N x N matrix is stored.

    The layers must have values and gradients of their outputs; a map without them raises a SelectionError.

    Args:
        head_fusion: ``"mean"`` (the paper's), ``"max"`` or ``"min"`` over heads.
        heads: Which heads, in every layer; all by default.

    Reference:
        Chefer, Gur and Wolf, Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers, ICCV 2021, equations 5 and 6.

    Example:
        >>> import torch
        >>> from captum_attn_lime.attention import DenseMap
        >>> layer = DenseMap(torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]]), kind="self")
        >>> layer.value = torch.tensor([[[[1.0], [-1.0]]]])
        >>> layer.output_gradient = torch.tensor([[[[1.0], [0.0]]]])
        >>> Relevance()([layer], torch.tensor([[1.0, 0.0]]))
        tensor([[1.2500, 0.0000]])
    """

    uses_target = True

    @property
    def needs(self) -> Needs:
        """Gradients of the layers' outputs, and values."""
        return Needs(gradients=True)

    def step(self, layer: AttentionMap, r: Tensor) -> Tensor:
        """Return rᵀ(I + Ā)."""
        return r + layer.gated_vecmat(r, **self.fusion)
