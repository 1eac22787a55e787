"""A fingerprint of a model: facts found by probing it hold while this stays the same."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from captum_attn_lime.adapters._shallow_copy import modules_of

# Settings of a configuration that decide how padding is treated.
_SETTINGS = ("pad_token_id", "_attn_implementation")


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return a model's current modules, their flags and modes, and the identity of their weights.

    Addresses and torch's version counters identify weights, so a step of an optimiser and loaded weights are noticed
    without reading values. Numeric attributes are ignored, because models keep counters and caches there.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = fingerprint(model)
        >>> fingerprint(model) == before, nn.init.zeros_(model.weight) is None, fingerprint(model) == before
        (True, False, False)
    """
    found: list[Any] = []
    for module in modules_of(model):
        attributes = vars(module)
        found.append(type(module))
        found += [value for value in attributes.values() if value.__class__ in (bool, str)]
        for x in (*module._parameters.values(), *module._buffers.values()):
            if x is not None and not (x.is_meta or x.is_inference() or is_lazy(x)):
                found += (x.data_ptr(), x._version)
        if "config" in attributes:
            found += [getattr(attributes["config"], name, None) for name in _SETTINGS]
    return tuple(found)
