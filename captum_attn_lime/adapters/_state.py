"""Running a model in eval mode or with process flags off, without leaving a trace.

The model itself is never altered: within a block, a copy that only this thread sees runs instead. The encoder fast path
and cuDNN belong to the process, so threads share one change: the first one in makes it, the last one out undoes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._shallow_copy import eval_copy, modules_of

_MODES = (bool, str)  # types of attributes that count as modes
_PLAIN = frozenset({bool, str, int, float, type(None), tuple, list, torch.dtype, torch.device, torch.Size})
_EVERY_MODULES = frozenset(vars(nn.Module()))
_lock = threading.RLock()
_fast_path: dict[str, Any] = {"users": 0, "was": True}
_cudnn: dict[str, Any] = {"users": 0, "was": True}
_read_only: WeakSet[nn.Module] = WeakSet()  # models that do not write into their buffers
_replacements: ContextVar[tuple[tuple[nn.Module, nn.Module], ...]] = ContextVar("replacements", default=())


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Run a block without ``nn.TransformerEncoder``'s fast path.

    The fast path runs only without gradients and writes zeros at padded positions. With it, perturbation methods and
    gradient methods would explain different functions.

    Example:
        >>> with fast_path_off():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    with _switched_off(_fast_path, torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled):
        yield


@contextmanager
def cudnn_off() -> Iterator[None]:
    """Run a block without cuDNN, whose recurrent layers have no backward pass in eval mode.

    Example:
        >>> with cudnn_off():
        ...     torch.backends.cudnn.enabled
        False
    """
    with _switched_off(_cudnn, lambda: torch.backends.cudnn.enabled, _set_cudnn):
        yield


def active_model(model: nn.Module) -> nn.Module:
    """Return the module to run: the model, or the copy that replaces it in the current block."""
    return next((copy for replaced, copy in reversed(_replacements.get()) if replaced is model), model)


@contextmanager
def substituted(model: nn.Module, replacement: nn.Module) -> Iterator[nn.Module]:
    """Run a block in which :func:`active_model` returns a replacement; other threads still get the model."""
    token = _replacements.set((*_replacements.get(), (model, replacement)))
    try:
        yield replacement
    finally:
        _replacements.reset(token)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run a block in which the model runs in eval mode, and yield what :func:`active_model` returns for it there.

    The model keeps its training flags, because other threads may be running it. If a part of it is in training mode, a
    copy with the same weights and hooks runs instead. The copy of a compiled model is not compiled.

    Raises:
        InputError: A part in training mode cannot be copied (TorchScript, a ``forward`` replaced by a function).

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model) as copy:
        ...     [m.training for m in copy], [m.training for m in model]
        ([False, False], [True, False])
    """
    with substituted(model, eval_copy(active_model(model))) as replacement:
        yield replacement


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Run a block, then undo what the model changed about itself: flags, modes, submodules and buffers.

    BigBird, for example, switches to full attention at the first short input for good. Modes may also live in a
    dictionary or an object that a module holds, such as its configuration. Numbers and tensors that a model keeps for
    others to read (a call count, its last weights) stay, unless they belong to a module that changed its mode. A model
    that once left its buffers unchanged is assumed never to write into them.
    """
    modules = [m for m in modules_of(model) if not isinstance(m, torch.jit.ScriptModule)]
    before = [(m, dict(vars(m)), dict(m._modules), dict(m._buffers)) for m in modules]
    settings = _settings_of([attributes for _, attributes, _, _ in before])
    held = [] if model in _read_only else _buffers_of(modules)
    try:
        yield
    finally:
        for table, modes in settings:
            if _differ(table, modes):
                table.update(modes)
        written = [(m, name, x, copy) for m, name, x, version, copy in held if x._version != version]
        if held and not written:
            _read_only.add(model)
        for module, attributes, parts, buffers in before:
            now = vars(module)
            if (
                any(value.__class__ in _MODES and now.get(name) is not value for name, value in attributes.items())
                or _differ(module._modules, parts)
                or _differ(module._buffers, buffers)
            ):
                now.update(attributes)
                module._modules.update(parts)
                module._buffers.update(buffers)
        for module, name, buffer, copy in written:
            if module._buffers[name] is buffer:  # replaced, not overwritten: a backward pass may need it
                module._buffers[name] = copy


@contextmanager
def probing(model: nn.Module) -> Iterator[nn.Module]:
    """Run a block that probes a model and leaves no trace: eval mode, no gradients, random numbers as before.

    Yields the model to run in the block.

    Example:
        >>> before = torch.get_rng_state()
        >>> with probing(nn.Dropout()) as probed:
        ...     drawn = torch.rand(3)
        >>> probed.training, torch.equal(before, torch.get_rng_state())
        (False, True)
    """
    with evaluating(model) as probed, without_drawing(), torch.no_grad(), modes_kept(probed):
        yield probed


@contextmanager
def _switched_off(flag: dict[str, Any], get: Callable[[], bool], put: Callable[[bool], None]) -> Iterator[None]:
    """Run a block with a process flag off; the last of several users restores it."""
    with _lock:
        if flag["users"] == 0:
            flag["was"] = get()
            put(False)
        flag["users"] += 1
    try:
        yield
    finally:
        with _lock:
            flag["users"] -= 1
            if flag["users"] == 0:
                put(bool(flag["was"]))


def _set_cudnn(enabled: bool) -> None:
    torch.backends.cudnn.enabled = enabled


def _settings_of(attributes: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dictionaries among attributes of modules, also those of objects, each with its modes."""
    found: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for owner in attributes:
        for name, value in owner.items():
            if value.__class__ in _PLAIN or name in _EVERY_MODULES or isinstance(value, (Tensor, nn.Module, type)):
                continue
            table = value if type(value) is dict else getattr(value, "__dict__", None)
            if type(table) is dict and id(table) not in found and not callable(value):
                found[id(table)] = (table, {k: v for k, v in table.items() if v.__class__ in _MODES})
    return list(found.values())


def _buffers_of(modules: list[nn.Module]) -> list[tuple[nn.Module, str, Tensor, int, Tensor]]:
    """Return the buffers of modules, each with its version and a copy."""
    named = [(m, name, x) for m in modules for name, x in m._buffers.items() if x is not None and not x.is_inference()]
    return [(m, name, x, x._version, x.detach().clone()) for m, name, x in named]


def _differ(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return any(now.get(name) is not value for name, value in before.items())
