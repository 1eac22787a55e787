"""`Method` and its base classes: what a method needs from the forward pass, and how it computes scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from captum_attn_lime.attention import AttentionMap, HeadFusion, check_head_fusion, check_heads
from captum_attn_lime.methods._checks import require_products


@dataclass(frozen=True)
class Needs:
    """What a method needs from the forward pass in addition to the attention weights.

    Attributes:
        values: The values that the weights multiply (``attention.value``).
        gradients: The gradient of the explained number with respect to the outputs of the attention calls
            (``attention.output_gradient``), and the values.
        head_fusion: How heads are fused, if the method reads fused weights only. Weights that the model computes
            itself are then stored fused: N² numbers instead of H·N².
        heads: The heads to fuse; all by default.
    """

    values: bool = False
    gradients: bool = False
    head_fusion: HeadFusion | None = None
    heads: int | Sequence[int] | None = None


class Method(ABC):
    """Base class of all methods; derive from `LayerMethod`, or wrap a function in `StackMethod`.

    Attributes:
        uses_target: Whether the scores depend on the class.
        signed: Whether the scores may be negative.
        last_layer_only: Whether the default is the last layer, not all layers.
    """

    uses_target: bool = False
    signed: bool = False
    last_layer_only: bool = False

    @property
    def needs(self) -> Needs:
        """What the method needs from the forward pass; by default only the weights of each head."""
        return Needs()

    @abstractmethod
    def __call__(self, stack: Sequence[AttentionMap], query: Tensor) -> Tensor:
        """Return the scores of a stack of layers in forward order.

        Args:
            stack: The layers.
            query: Weight of each output token to explain, (B, Q), or several such vectors, (B, R, Q).

        Returns:
            ``(B, K)``, or ``(B, R, K)``.
        """


@dataclass(frozen=True, repr=False)
class StackMethod(Method):
    """A method that wraps a function over the stack of layers.

    Args:
        function: Computes scores (B, K) or (B, R, K) from the maps in forward order and the weights of the output
            tokens to explain, (B, Q) or (B, R, Q).
        needs: What it needs from the forward pass.
        uses_target: Whether the scores depend on the class; always True if it needs gradients.
        signed: Whether the scores may be negative.
        last_layer_only: Whether the default is the last layer, not all layers.

    Example:
        >>> import torch
        >>> from captum_attn_lime.attention import DenseMap
        >>> first_layer = StackMethod(lambda stack, query: stack[0].vecmat(query))
        >>> first_layer([DenseMap(torch.tensor([[[[0.25, 0.75]]]]))], torch.ones(1, 1))
        tensor([[0.2500, 0.7500]])
    """

    function: Callable[[Sequence[AttentionMap], Tensor], Tensor]
    needs: Needs = Needs()
    uses_target: bool = False
    signed: bool = False
    last_layer_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "uses_target", self.uses_target or self.needs.gradients)

    def __call__(self, stack: Sequence[AttentionMap], query: Tensor) -> Tensor:
        """Return the scores, (B, K)."""
        return self.function(stack, query)

    def __repr__(self) -> str:
        return f"StackMethod({getattr(self.function, '__name__', repr(self.function))})"


class LayerMethod(Method):
    """A method that multiplies the layers one by one, from the last to the first: rᵀ M_L … M_1.

    A subclass implements one layer in :meth:`step`; make it a frozen dataclass with its options as fields.

    Example:
        >>> import torch
        >>> from captum_attn_lime.attention import DenseMap
        >>> class Plain(LayerMethod):
        ...     def step(self, layer, r):
        ...         return layer.vecmat(r)
        >>> layer = DenseMap(torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]]), kind="self")
        >>> Plain()([layer, layer], torch.tensor([[1.0, 0.0]]))
        tensor([[0.2500, 0.7500]])
    """

    @abstractmethod
    def step(self, layer: AttentionMap, r: Tensor) -> Tensor:
        """Return rᵀM of one layer: the weights of its outputs propagated to its inputs.

        Args:
            layer: The layer's attention, square. If the model computes its last layer for one token only, every row
                equals the computed row.
            r: Weight of each query, (B, N), or several such vectors, (B, R, N), in the layer's dtype and device.

        Returns:
            ``(B, K)``, or ``(B, R, K)``.
        """

    def __call__(self, stack: Sequence[AttentionMap], query: Tensor) -> Tensor:
        """Return the scores (B, N) or (B, R, N) of a stack of self-attention layers over the same tokens.

        Raises:
            AttentionKindError: A map is not self-attention, or the maps have different tokens.
        """
        require_products(stack, type(self).__name__)
        r = query
        for layer in reversed(stack):
            r = self.step(layer, r.to(device=layer.device, dtype=layer.dtype))
        return r


@dataclass(frozen=True, kw_only=True, repr=False)
class FusesHeads:
    """The validated options of methods that fuse heads, and a short repr.

    Args:
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        heads: Which heads, in every layer; all by default.
    """

    head_fusion: HeadFusion = "mean"
    heads: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_head_fusion(self.head_fusion)
        object.__setattr__(self, "heads", check_heads(self.heads))

    @property
    def fusion(self) -> dict[str, Any]:
        """The options as keyword arguments of the products of `AttentionMap`."""
        return {"head_fusion": self.head_fusion, "heads": self.heads}

    def __repr__(self) -> str:
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed)})"
