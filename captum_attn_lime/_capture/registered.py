"""`register_attention`: attention that a capture cannot see, told by the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from captum_attn_lime.attention import AttentionKind, DenseMap
from captum_attn_lime.errors import InputError, UnreadableAttentionError

# (module, args, kwargs, output) -> weights (B, H, Q, K)
WeightsOf = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor]


@dataclass(frozen=True)
class Registration:
    """What a user said of one module.

    Attributes:
        weights: Function of the module, its arguments and its output that returns the attention weights (B, H, Q, K).
        kind: Kind of the attention.
    """

    weights: WeightsOf
    kind: AttentionKind


_registrations: WeakKeyDictionary[nn.Module, Registration] = WeakKeyDictionary()


class RegisteredAttention:
    """A registration that ends with :meth:`remove`, or with the ``with`` block it was made for."""

    def __init__(self, module: nn.Module, said: Registration, before: Registration | None) -> None:
        self._module, self._said, self._before = module, said, before

    def remove(self) -> None:
        """Forget what was said of the module; what had been said before holds again."""
        if _registrations.get(self._module) is not self._said:
            return  # something else was said since
        if self._before is None:
            del _registrations[self._module]
        else:
            _registrations[self._module] = self._before

    def __enter__(self) -> RegisteredAttention:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def register_attention(module: nn.Module, weights: WeightsOf, *, kind: AttentionKind = "self") -> RegisteredAttention:
    """Tell where a module's attention weights are, for a module whose attention is not seen or cannot be read.

    Captures then take what ``weights`` returns each time the module has run, and look no further into the module. The
    output of the module (the first tensor, if it returns several) must have one row per query: (B, Q, ...) or
    (Q, B, ...). Nothing is changed on the module.

    Args:
        module: The module that computes the attention, as an object: ``model.get_submodule("encoder.attention")``.
        weights: Function ``(module, args, kwargs, output) -> Tensor`` that returns the weights (B, H, Q, K), rows are
            queries. It may recompute them from the arguments, or take what the module kept. An attribution runs the
            model on batches of other sizes as well, so B must be that of the arguments.
        kind: ``"self"`` where queries and keys are the same tokens, ``"cross"`` where they are not.

    Returns:
        A handle: call ``.remove()``, or use it in a ``with`` statement.

    Raises:
        InputError: Not a module, no function, or a kind of attention that has none.

    Example:
        >>> from captum_attn_lime import capture
        >>> class Averaging(nn.Module):
        ...     def forward(self, x):
        ...         return x.mean(dim=1, keepdim=True).expand_as(x)
        >>> layer = Averaging()
        >>> even = lambda module, args, kwargs, output: torch.full((len(output), 1, 3, 3), 1 / 3)
        >>> with register_attention(layer, even), capture(layer) as maps:
        ...     _ = layer(torch.zeros(1, 3, 8))
        >>> maps
        [DenseMap('', (B, H, Q, K)=(1, 1, 3, 3), self)]
    """
    if not isinstance(module, nn.Module) or not callable(weights):
        raise InputError(
            f"register_attention takes a module and a function of (module, args, kwargs, output), but got "
            f"{type(module).__name__} and {type(weights).__name__}."
        )
    if kind not in ("self", "cross"):
        raise InputError(f"kind must be 'self' or 'cross', but is {kind!r}.")
    said, before = Registration(weights, kind), _registrations.get(module)
    _registrations[module] = said
    return RegisteredAttention(module, said, before)


def registration(module: nn.Module) -> Registration | None:
    """Return what was said of a module."""
    return _registrations.get(module)


def registered_modules() -> list[nn.Module]:
    """Return all modules of which something was said."""
    # Not by iteration, which another thread that registers would break.
    return [module for ref in _registrations.keyrefs() if (module := ref()) is not None]


def told_map(
    said: Registration, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[DenseMap, Tensor, Callable[[Tensor], Tensor]]:
    """Return the map a user's function gives, the module's output tensor, and its way to (B, 1, Q, ...).

    Raises:
        UnreadableAttentionError: The function gave no weights, or the output has no row per query.
    """
    weights = said.weights(module, args, kwargs, output)
    if not isinstance(weights, Tensor) or weights.dim() != 4 or not weights.is_floating_point():
        came = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise UnreadableAttentionError(
            f"the function registered for {name!r} returned {came}; weights (B, H, Q, K) are needed."
        )
    if not bool(torch.isfinite(weights).all()):
        raise UnreadableAttentionError(f"the function registered for {name!r} returned weights that are not finite.")
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    batch, queries = weights.shape[0], weights.shape[2]
    lead = tuple(first.shape[:2]) if isinstance(first, Tensor) else ()
    if not isinstance(first, Tensor) or lead not in ((batch, queries), (queries, batch)):
        came = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise UnreadableAttentionError(
            f"the module {name!r}, whose attention was registered with B = {batch} and Q = {queries}, returned {came}; "
            "one row per query, (B, Q, ...) or (Q, B, ...), is needed."
        )
    swap = lead != (batch, queries)

    def rows(x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if swap else x
        return x.flatten(2).unsqueeze(1)  # (B, 1, Q, ...)

    return DenseMap(torch.as_tensor(weights), name=name, kind=said.kind), first, rows
