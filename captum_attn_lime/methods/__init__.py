"""The attention methods, one frozen class per file, and the table of their names.

A method computes scores (B, K) from a stack of layers in forward order and a query (B, Q), the weights of the output
tokens to explain: ``Rollout(residual=0.3)(maps, query)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_attn_lime.errors import InputError
from captum_attn_lime.methods._base import LayerMethod, Method, Needs, StackMethod
from captum_attn_lime.methods._checks import require_one_stack, require_tokens
from captum_attn_lime.methods._raw import Raw
from captum_attn_lime.methods._relevance import Relevance
from captum_attn_lime.methods._rollout import Rollout

METHODS: dict[str, type[Method]] = {"raw": Raw, "relevance": Relevance, "rollout": Rollout}


def get_method(method: str | Callable[..., Tensor] | Method) -> Method:
    """Return the method for a name (with its defaults), a function over the stack, or a method (unchanged).

    Raises:
        InputError: The name is unknown, or ``method`` is not a method.

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
    problem: Any = f"{method.__name__} is a class" if isinstance(method, type) else f"method {method!r} is not known"
    raise InputError(
        f"{problem}; pass one of {', '.join(sorted(METHODS))}, an object such as Rollout(residual=0.3), or a function "
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
    "require_one_stack",
    "require_tokens",
]
