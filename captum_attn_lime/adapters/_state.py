"""How a model is asked otherwise than it is, and left as it was: eval mode, its own changes of mode, process flags.

A model is not altered for the length of a block: a stand-in that only this thread's block sees is asked in its place.
The encoder fast path and cuDNN belong to the process, so calls in several threads share one change: the first one in
makes it, the last one out undoes it.
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

from captum_attn_lime.adapters._twins import eval_twin, modules_of

_MODES = (bool, str)  # what a mode is made of
_PLAIN = frozenset({bool, str, int, float, type(None), tuple, list, torch.dtype, torch.device, torch.Size})
_EVERY_MODULES = frozenset(vars(nn.Module()))
_lock = threading.RLock()
_fast_path: dict[str, Any] = {"users": 0, "was": True}
_cudnn: dict[str, Any] = {"users": 0, "was": True}
_writing_nothing: WeakSet[nn.Module] = WeakSet()  # models that write into no buffer of theirs
_stand_ins: ContextVar[tuple[tuple[nn.Module, nn.Module], ...]] = ContextVar("stand_ins", default=())


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Run a block without ``nn.TransformerEncoder``'s fast path.

    The fast path runs only where no gradient is wanted and writes zeros at padded positions. With it, perturbation
    methods and gradient methods would explain different functions.

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


def asked(model: nn.Module) -> nn.Module:
    """Return what is to run in the place of a model: in a block that wants it otherwise than it is, its stand-in."""
    return next((stand_in for own, stand_in in reversed(_stand_ins.get()) if own is model), model)


@contextmanager
def standing_in(model: nn.Module, stand_in: nn.Module) -> Iterator[nn.Module]:
    """Run a block in which :func:`asked` gives a stand-in for a model; to other threads the model stays as it is."""
    token = _stand_ins.set((*_stand_ins.get(), (model, stand_in)))
    try:
        yield stand_in
    finally:
        _stand_ins.reset(token)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run a block in which the model is asked in eval mode, and return what :func:`asked` gives for it there.

    The model itself keeps its training flags, which whoever else runs it at the same time relies on: where a part of it
    is in training mode, a twin answers, with the same weights and hooks. A compiled model in training mode is then
    asked as it was before it was compiled.

    Raises:
        InputError: A part in training mode can have no twin (TorchScript, a ``forward`` replaced by a function).

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model) as asked_model:
        ...     [m.training for m in asked_model], [m.training for m in model]
        ([False, False], [True, False])
    """
    with standing_in(model, eval_twin(asked(model))) as stand_in:
        yield stand_in


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Run a block, then undo what the model changed of itself in it: a flag, a mode, a part, what its buffers hold.

    BigBird turns to full attention at the first short input, and stays so. Modes may lie in a dictionary or an object
    that a part holds, as in its configuration. Numbers and tensors that a model keeps for
    others to read (how often it ran, its last weights) are left, unless they belong to a part that changed its mode.
    A model that was once seen to write into no buffer is taken to write into none.
    """
    modules = [m for m in modules_of(model) if not isinstance(m, torch.jit.ScriptModule)]
    before = [(m, dict(vars(m)), dict(m._modules), dict(m._buffers)) for m in modules]
    settings = _settings_of([attributes for _, attributes, _, _ in before])
    held = [] if model in _writing_nothing else _buffers_of(modules)
    try:
        yield
    finally:
        for table, modes in settings:
            if _differ(table, modes):
                table.update(modes)
        written = [(m, name, x, copy) for m, name, x, version, copy in held if x._version != version]
        if held and not written:
            _writing_nothing.add(model)
        for module, attributes, parts, buffers in before:
            own = vars(module)
            if (
                any(value.__class__ in _MODES and own.get(name) is not value for name, value in attributes.items())
                or _differ(module._modules, parts)
                or _differ(module._buffers, buffers)
            ):
                own.update(attributes)
                module._modules.update(parts)
                module._buffers.update(buffers)
        for module, name, buffer, copy in written:
            if module._buffers[name] is buffer:  # what was written may still be wanted for a backward pass
                module._buffers[name] = copy


@contextmanager
def _switched_off(flag: dict[str, Any], get: Callable[[], bool], put: Callable[[bool], None]) -> Iterator[None]:
    """Run a block with a flag of the process off; the last user of several puts it back."""
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


def _settings_of(tables: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dictionaries, and those of objects, that are among attributes of modules, each with its modes."""
    found: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for table in tables:
        for name, value in table.items():
            if value.__class__ in _PLAIN or name in _EVERY_MODULES or isinstance(value, (Tensor, nn.Module, type)):
                continue
            own = value if type(value) is dict else getattr(value, "__dict__", None)
            if type(own) is dict and id(own) not in found and not callable(value):
                found[id(own)] = (own, {k: v for k, v in own.items() if v.__class__ in _MODES})
    return list(found.values())


def _buffers_of(modules: list[nn.Module]) -> list[tuple[nn.Module, str, Tensor, int, Tensor]]:
    """Return the buffers of modules, each with its version and a copy."""
    named = [(m, name, x) for m in modules for name, x in m._buffers.items() if x is not None and not x.is_inference()]
    return [(m, name, x, x._version, x.detach().clone()) for m, name, x in named]


def _differ(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return any(now.get(name) is not value for name, value in before.items())
