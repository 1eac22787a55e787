"""`register_attention`: registers the weights of attention that a capture cannot see."""

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
    """The registered attention of one module.

    Attributes:
        weights: Function of the module, its arguments and its output that returns the attention weights (B, H, Q, K).
        kind: Kind of the attention.
    """

    weights: WeightsOf
    kind: AttentionKind


_registrations: WeakKeyDictionary[nn.Module, Registration] = WeakKeyDictionary()


class RegisteredAttention:
    """Handle of a registration, which ends with :meth:`remove` or at the end of its ``with`` block."""

    def __init__(self, module: nn.Module, registration: Registration, before: Registration | None) -> None:
        self._module, self._registration, self._before = module, registration, before

    def remove(self) -> None:
        """Remove the registration, and restore the previous one."""
        if _registrations.get(self._module) is not self._registration:
            return  # registered again since
        if self._before is None:
            del _registrations[self._module]
        else:
            _registrations[self._module] = self._before

    def __enter__(self) -> RegisteredAttention:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def register_attention(module: nn.Module, weights: WeightsOf, *, kind: AttentionKind = "self") -> RegisteredAttention:
    """Register the attention weights of a module whose attention cannot be captured.

    Captures then call ``weights`` each time the module has run, and ignore the operations inside the module. The output
    of the module (the first tensor, if it returns several) must have one row per query: (B, Q, ...) or (Q, B, ...). The
    module is not changed.

    Args:
        module: The module that computes the attention, as an object: ``model.get_submodule("encoder.attention")``.
        weights: Function ``(module, args, kwargs, output) -> Tensor`` that returns the weights (B, H, Q, K). It may
            recompute them from the arguments, or return what the module stored. An attribution also runs the model with
            other batch sizes, so B must be that of the arguments.
        kind: ``"self"`` if queries and keys are the same tokens, otherwise ``"cross"``.

    Returns:
        A handle: call ``.remove()``, or use it in a ``with`` statement.

    Raises:
        InputError: ``module`` is not a module, ``weights`` is not a function, or ``kind`` is invalid.

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
            f"register_attention needs a module and a function of (module, args, kwargs, output), but got "
            f"{type(module).__name__} and {type(weights).__name__}."
        )
    if kind not in ("self", "cross"):
        raise InputError(f"kind must be 'self' or 'cross', but is {kind!r}.")
    registration, before = Registration(weights, kind), _registrations.get(module)
    _registrations[module] = registration
    return RegisteredAttention(module, registration, before)


def registration_of(module: nn.Module) -> Registration | None:
    """Return the registration of a module; None if it has none."""
    return _registrations.get(module)


def registered_modules() -> list[nn.Module]:
    """Return all registered modules."""
    # keyrefs() is a copy; iteration would fail if another thread registers a module.
    return [module for ref in _registrations.keyrefs() if (module := ref()) is not None]


def registered_map(
    registration: Registration, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[DenseMap, Tensor, Callable[[Tensor], Tensor]]:
    """Return the map of the registered weights, the module's output, and a function from that to (B, 1, Q, ...).

    Raises:
        UnreadableAttentionError: The function returned no weights, or the output does not have one row per query.
    """
    weights = registration.weights(module, args, kwargs, output)
    if not isinstance(weights, Tensor) or weights.dim() != 4 or not weights.is_floating_point():
        returned = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise UnreadableAttentionError(
            f"the function registered for {name!r} returned {returned}, but weights (B, H, Q, K) are needed."
        )
    if not bool(torch.isfinite(weights).all()):
        raise UnreadableAttentionError(f"the function registered for {name!r} returned weights that are not finite.")
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    batch, queries = weights.shape[0], weights.shape[2]
    lead = tuple(first.shape[:2]) if isinstance(first, Tensor) else ()
    if not isinstance(first, Tensor) or lead not in ((batch, queries), (queries, batch)):
        returned = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise UnreadableAttentionError(
            f"the module {name!r}, whose attention was registered with B = {batch} and Q = {queries}, returned "
            f"{returned}, but one row per query, (B, Q, ...) or (Q, B, ...), is needed."
        )
    swap = lead != (batch, queries)

    def rows(x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if swap else x
        return x.flatten(2).unsqueeze(1)  # (B, 1, Q, ...)

    return DenseMap(torch.as_tensor(weights), name=name, kind=registration.kind), first, rows
