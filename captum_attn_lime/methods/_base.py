"""What a method is: what it needs of the forward pass, and how it goes from a stack of layers to scores."""

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
    """What a method needs of the forward pass beside the attention weights.

    Attributes:
        values: The values that the weights are multiplied with (``attention.value``).
        gradients: The gradient of what is explained with respect to the outputs of the attention calls
            (``attention.output_gradient``), and the values.
        head_fusion: Where the method reads weights fused over heads only: how. Of weights that the model computed
            itself nothing else is then kept, N² numbers in place of H·N².
        heads: Which heads are fused; all by default.
    """

    values: bool = False
    gradients: bool = False
    head_fusion: HeadFusion | None = None
    heads: int | Sequence[int] | None = None


class Method(ABC):
    """What `AttentionAttribution` asks of a method; derive from `LayerMethod`, or wrap a function in `StackMethod`.

    Attributes:
        uses_target: Whether its scores depend on the class.
        signed: Whether its scores may be negative.
        last_layer_only: Whether it reads the last layer where no layers are asked for, rather than all of them.
    """

    uses_target: bool = False
    signed: bool = False
    last_layer_only: bool = False

    @property
    def needs(self) -> Needs:
        """What it needs of the forward pass; by default the weights of each head alone."""
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
    """A method made of a function over the stack of layers.

    Args:
        function: Takes the maps in forward order and the weights of the output tokens to explain, (B, Q) or (B, R, Q),
            to scores (B, K) or (B, R, K).
        needs: What it needs of the forward pass.
        uses_target: Whether its scores depend on the class; they do where it needs gradients.
        signed: Whether its scores may be negative.
        last_layer_only: Whether it reads the last layer where no layers are asked for, rather than all of them.

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
    """A method that goes through the layers one by one, from the last one down: rᵀ M_L … M_1.

    A subclass says what one layer does, in :meth:`step`; as a frozen dataclass its options are its fields.

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
        """Return rᵀM of one layer: what the weights of its outputs become on its inputs.

        Args:
            layer: The layer's attention, square. Of a last layer that the model computes for one token only, every row
                is the one that was computed.
            r: Weight of each query, (B, N), or several such vectors, (B, R, N), of the layer's dtype and device.

        Returns:
            ``(B, K)``, or ``(B, R, K)``.
        """

    def __call__(self, stack: Sequence[AttentionMap], query: Tensor) -> Tensor:
        """Return the scores of a stack of self-attention layers, all over the same tokens.

        Args:
            stack: The layers in forward order.
            query: Weight of each output token to explain, (B, N), or several such vectors, (B, R, N).

        Returns:
            ``(B, N)``, or ``(B, R, N)``.

        Raises:
            AttentionKindError: A map is not self-attention, or the maps are not over the same tokens.
        """
        require_products(stack, type(self).__name__)
        r = query
        for layer in reversed(stack):
            r = self.step(layer, r.to(device=layer.device, dtype=layer.dtype))
        return r


@dataclass(frozen=True, kw_only=True, repr=False)
class FusesHeads:
    """The options of methods that fuse heads, checked; a short representation.

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
        """The options as the verbs of maps have them."""
        return {"head_fusion": self.head_fusion, "heads": self.heads}

    def __repr__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"
