"""The attention methods: one pure function over attention maps per file, and the table that names them.

A method is any function ``(maps, query, *, heads, head_fusion, residual) -> scores``, where ``maps`` is the chosen
stack of layers in forward order, ``query`` (B, Q) weighs the output tokens to explain, and ``scores`` is (B, K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from captum_attn_lime.errors import InputError
from captum_attn_lime.methods._raw import raw
from captum_attn_lime.methods._relevance import relevance, relevance_of_top
from captum_attn_lime.methods._rollout import rollout, rollout_of_top

MethodFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Method:
    """A method and what the caller has to know of it.

    Attributes:
        function: The function over maps.
        last_layer_only: Whether it reads the last layer where no layers are asked for, rather than all of them.
        uses_target: Whether its scores depend on the class. The maps then come with their values and the gradient of
            the target with respect to their outputs.
        fused_heads: Whether it reads maps through the head fusion it is called with alone, so that the heads of weights
            that the model computed itself need not be kept.
        of_top: Where a model computes its last layer for one query only: takes that layer's map, what its residual
            connection passes on, (B, N), and the options, and returns what both pass on to the layers below.
    """

    function: MethodFunction
    last_layer_only: bool = False
    uses_target: bool = False
    fused_heads: bool = False
    of_top: MethodFunction = rollout_of_top

    def __str__(self) -> str:
        return str(getattr(self.function, "__name__", self.function))


METHODS: dict[str, Method] = {
    "raw": Method(raw, last_layer_only=True, fused_heads=True),
    "relevance": Method(relevance, uses_target=True, of_top=relevance_of_top),
    "rollout": Method(rollout, fused_heads=True),
}


def get_method(method: str | MethodFunction | Method) -> Method:
    """Return the method of a name, or wrap a function with the methods' signature.

    Pass a `Method` for a function that needs gradients: ``Method(function, uses_target=True)``.

    Example:
        >>> get_method("raw").uses_target
        False
    """
    if isinstance(method, Method):
        return method
    if callable(method):
        return Method(method)
    if method not in METHODS:
        raise InputError(
            f"method {method!r} is not known; it is one of {', '.join(sorted(METHODS))}, or a function "
            "(maps, query, *, heads, head_fusion, residual) -> scores."
        )
    return METHODS[method]


__all__ = ["METHODS", "Method", "MethodFunction", "get_method", "raw", "relevance", "rollout"]
