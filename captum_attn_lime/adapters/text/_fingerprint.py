"""A fingerprint of a model: what was found out about it holds as long as this stays the same."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from captum_attn_lime.adapters._shallow_copy import modules_of

# Settings of a configuration that decide how padding is treated.
_SETTINGS = ("pad_token_id", "_attn_implementation")


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return what a model is made of now: its parts, their flags and modes, and which weights they hold.

    Weights count by where they lie and by torch's version counter, so that a step of an optimiser and loaded weights
    are seen without reading them. Numbers among the attributes do not count: models keep counters and caches there.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = fingerprint(model)
        >>> fingerprint(model) == before, nn.init.zeros_(model.weight) is None, fingerprint(model) == before
        (True, False, False)
    """
    found: list[Any] = []
    for module in modules_of(model):
        own = vars(module)
        found.append(type(module))
        found += [value for value in own.values() if value.__class__ in (bool, str)]
        for x in (*module._parameters.values(), *module._buffers.values()):
            if x is not None and not (x.is_meta or x.is_inference() or is_lazy(x)):
                found += (x.data_ptr(), x._version)
        if "config" in own:
            found += [getattr(own["config"], name, None) for name in _SETTINGS]
    return tuple(found)
