"""The model inside a wrapper (compiled, data-parallel, averaged, LoRA, ...), and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from captum_attn_lime.adapters._state import active_model

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def parameters_of(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the parameters of a model's ``forward``."""
    return dict(inspect.signature(model.forward).parameters)


def wrapper_chain(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and what it wraps, from the outermost module to the innermost.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> [type(m).__name__ for m in wrapper_chain(nn.DataParallel(layer))]
        ['DataParallel', 'Linear']
    """
    seen: list[nn.Module] = []
    found: nn.Module | None = model
    while found is not None and all(found is not m for m in seen):
        seen.append(found)
        yield found
        found = _inner(found)


def innermost(model: nn.Module) -> nn.Module:
    """Return the innermost model of a wrapper; the model itself if it wraps nothing."""
    *_, last = wrapper_chain(model)
    return last


def only_forwards(model: nn.Module) -> bool:
    """Return whether the model's ``forward`` has only ``*args`` and ``**kwargs``, which it can only pass on."""
    return all(p.kind in _VARIADIC for p in parameters_of(model).values())


def configured(model: nn.Module) -> nn.Module | None:
    """Return the outermost module that has a HuggingFace configuration, or None.

    It is the model itself, one in a wrapper, or an encoder inside the user's module.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "get_text_config") or hasattr(config, "pad_token_id"):
            return module
    return None


def configuration(model: nn.Module, name: str, default: Any = None) -> Any:
    """Return an entry of the first configuration that has it, of a model or of what it wraps."""
    for module in wrapper_chain(model):
        config = getattr(module, "config", None)
        if hasattr(config, name):
            return getattr(config, name)
    return default


def text_config(model: nn.Module) -> Any:
    """Return the text part of the HuggingFace configuration of a model or of one inside, or None."""
    holder = configured(active_model(model))
    config = getattr(holder, "config", None)
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else config


def wrapped(model: nn.Module) -> nn.Module | None:
    """Return the module in a wrapper of a known kind, or None."""
    if isinstance(model, torch.jit.ScriptModule):
        return None
    if isinstance(model, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
        inner: nn.Module = model.module
        return inner
    for name in ("_orig_mod", "_checkpoint_wrapped_module"):  # torch.compile, activation checkpoints
        if model._modules.get(name) is not None:
            return model._modules[name]
    for found in _by_convention(model):
        if isinstance(found, nn.Module) and found is not model:
            return found
    return None


def _inner(model: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper passes its arguments to, or None."""
    found = wrapped(model)
    if found is not None or isinstance(model, torch.jit.ScriptModule):
        return found
    if any(p.kind in _VARIADIC for p in parameters_of(model).values()) and not _is_huggingface(model):
        children = [m for m in model.children() if next(m.parameters(), None) is not None]
        return children[0] if len(children) == 1 else None
    return None


def _by_convention(model: nn.Module) -> Iterator[Any]:
    """Yield the model inside wrappers of other libraries."""
    get = getattr(type(model), "get_base_model", None)  # peft
    if callable(get):
        yield get(model)
    if any(c.__name__ == "CrossEncoder" for c in type(model).__mro__):  # sentence-transformers
        yield getattr(model, "model", None)


def _is_huggingface(model: nn.Module) -> bool:
    """Return whether the model's ``forward`` is from transformers, where ``**kwargs`` are options."""
    return str(getattr(type(model).forward, "__module__", "")).startswith("transformers.")
