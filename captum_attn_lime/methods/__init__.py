"""The attention methods: one frozen object per file with its options, and the table that names them.

A method takes a stack of layers in forward order and a query (B, Q), which weighs the output tokens to explain, to
scores (B, K): ``Rollout(residual=0.3)(maps, query)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_attn_lime.errors import InputError
from captum_attn_lime.methods._base import LayerMethod, Method, Needs, StackMethod
from captum_attn_lime.methods._raw import Raw
from captum_attn_lime.methods._relevance import Relevance
from captum_attn_lime.methods._rollout import Rollout

METHODS: dict[str, type[Method]] = {"raw": Raw, "relevance": Relevance, "rollout": Rollout}


def get_method(method: str | Callable[..., Tensor] | Method) -> Method:
    """Return the method of a name, with its defaults; a method as it is; a function over the stack as a method.

    Raises:
        InputError: There is no method of the name, or what came is no method.

    Example:
        >>> get_method("rollout")
        Rollout()
        >>> get_method(Rollout(residual=0.3))
        Rollout(residual=0.3)
    """
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    if isinstance(method, Method):
        return method
    if callable(method) and not isinstance(method, type):
        return StackMethod(method)
    came: Any = f"{method.__name__} is a class" if isinstance(method, type) else f"method {method!r} is not known"
    raise InputError(
        f"{came}; pass one of {', '.join(sorted(METHODS))}, an object such as Rollout(residual=0.3), or a function "
        "(stack, query) -> scores."
    )


__all__ = [
    "METHODS",
    "LayerMethod",
    "Method",
    "Needs",
    "Raw",
    "Relevance",
    "Rollout",
    "StackMethod",
    "get_method",
]
