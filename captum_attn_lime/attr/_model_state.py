"""`ModelState`: a snapshot of a forward function's model, to detect changes and to restore it."""

from __future__ import annotations

import ctypes
import operator
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._capture.registered import registered_modules, registration_of

_SIMPLE = frozenset(
    {bool, int, float, complex, str, bytes, NoneType, torch.dtype, torch.device, torch.Size, slice, range}
)
_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})
# Containers with more elements are data, not settings; objects are searched to this depth.
_MANY, _DEEP = 256, 4
# Models up to `_WHOLE` bytes are compared completely. In larger ones tensors up to `_SMALL` bytes are, and samples of
# all others; writes that autograd counts are always detected.
_WHOLE, _SMALL = 2**20, 2**12
_PIECES, _PIECE = 3, 64
# Buffers with more elements are restored only if the model is in training mode.
_LARGE = 2**16
_PLAIN_TENSORS = (nn.Parameter, Tensor)
# Attributes of every module; hooks and submodules among them are compared separately.
_EVERY_MODULES = frozenset(nn.Module().__dict__) - {"training"}
_LIBRARIES = frozenset({"torch", "numpy", "math", "builtins"})


class ModelState:
    """The state of a forward function's model: tensors, submodules, flags and plain attributes.

    Two states are equal if nothing was changed in between. Modules and tensors are found in the function, its closure,
    its globals, the object of a bound method and the arguments of a partial. The state does not keep the model alive.

    Writes that bypass autograd's version counter (``p.data``, NumPy) are detected from the contents, in large models
    from samples of them.

    Args:
        forward_func: A module, or any function that runs one.

    Attributes:
        is_opaque: Whether no module and no tensor was found, so changes cannot be detected.
        has_moving_norm: Whether a batch norm is in training mode.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = ModelState(layer)
        >>> before == ModelState(layer)
        True
        >>> layer.bias.data[0] = 7.0
        >>> before == ModelState(layer)
        False
    """

    def __init__(self, forward_func: Any) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            found = _Found(forward_func)
            self._facts, self._content = found.facts, found.content()
        self.has_moving_norm = found.has_moving_norm
        self.is_opaque = not found.modules and not found.tensors
        self._owners, self._dicts = found.owners, found.dicts
        self._held = self._held_now()

    def _held_now(self) -> list[Any]:
        """Return the current contents of the dictionaries."""
        return _Held(self._dicts).facts if self._dicts else []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelState):
            return NotImplemented
        mine, theirs = (self._facts, self._content, self._held), (other._facts, other._content, other._held)
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]

    @contextmanager
    def left_as_found(self) -> Iterator[None]:
        """Restore the model's buffers and its modules' attributes after a block.

        Batch norm in training mode updates its buffers in every pass, and some models permanently switch to another
        implementation after a short input. Training flags are not restored, since other threads may set them.
        """
        owners, self._owners = self._owners, []  # the model must not be kept alive after the block
        attributes = [(each, dict(each)) for owner in owners for each in _dicts_of(owner)]
        modules = [owner for owner in owners if isinstance(owner, nn.Module)]
        every = any(module.training for module in modules)
        buffers = [b for module in modules for b in module._buffers.values() if b is not None]
        kept = [(b, _version(b), b.detach().clone()) for b in buffers if every or b.numel() <= _LARGE]
        try:
            yield
        finally:
            for now, before in attributes:
                if len(now) != len(before) or not all(map(operator.is_, now.values(), before.values())):
                    now.update({k: v for k, v in before.items() if k != "training" and now.get(k, now) is not v})
            with torch.no_grad():
                for buffer, version, content in kept:
                    # Batch norm writes do not increment the version.
                    if (every or _version(buffer) != version) and not torch.equal(buffer, content):
                        buffer.copy_(content)
            self._held = self._held_now()  # counters that the model updates are not changes


class _Found:
    """Search for everything that is reachable from a forward function.

    Attributes:
        facts: Simple values, weak references, and properties of tensors, in order.
        modules: All modules.
        tensors: All tensors.
        owners: Modules and other objects whose attributes are among the facts.
        dicts: Dictionaries whose modules, but not other contents, are among the facts.
    """

    def __init__(self, forward_func: Any) -> None:
        self.facts: list[Any] = []
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self.owners: list[Any] = []
        self.dicts: list[dict[Any, Any]] = []
        self.has_moving_norm = False
        self._seen: set[int] = set()  # ids, valid during this search, when all objects are alive
        self._has_registered = bool(registered_modules())
        self._read: list[tuple[int, int]] = []  # addresses and sizes of contiguous tensors on the CPU
        self._elsewhere: list[Tensor] = []  # other tensors
        self._look(forward_func, _DEEP)

    def _look(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in _SIMPLE:
            self.facts.append(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif kind in _CONTAINERS:
            self._container(value, depth)
        elif isinstance(value, (tuple, frozenset)):
            for part in value if len(value) <= _MANY else ():
                self._look(part, depth)
        elif isinstance(value, np.ndarray):
            self.facts.append((value.shape, value.dtype.str, value.tobytes() if value.nbytes <= _SMALL else None))
        elif isinstance(value, np.generic):
            self.facts.append(value.item())
        elif depth <= 0 or isinstance(value, (type, ModuleType)):
            self.facts.append(kind)
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._object(value, depth - 1)

    def _container(self, value: Any, depth: int) -> None:
        """Search a container for modules, and record dictionaries; lists are usually logs, not settings."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, dict):
            self.dicts.append(value)
        for part in _parts(value):
            if type(part) not in _SIMPLE and not isinstance(part, Tensor):
                self._look(part, depth - 1)

    def _module(self, module: nn.Module) -> None:
        self.facts.append(weakref.ref(module))
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        self.modules.append(module)
        self.owners.append(module)
        self.has_moving_norm |= module.training and isinstance(module, nn.modules.batchnorm._BatchNorm)
        add = self.facts.append
        add(type(module))
        if self._has_registered:
            add(registration_of(module))
        if isinstance(module, torch.jit.ScriptModule):
            for tensor in (*module.parameters(), *module.buffers()):
                self._tensor(tensor)
            return
        held = module.__dict__
        self._hooks(held["_forward_pre_hooks"])
        self._hooks(held["_forward_hooks"])
        for name, value in held.items():
            if name in _EVERY_MODULES:
                continue
            if type(value) in _SIMPLE:
                add(value)
            else:
                self._look(value, 1)
        for tensor in (*held["_parameters"].values(), *held["_buffers"].values()):
            if tensor is not None:
                self._tensor(tensor)
        for part in held["_modules"].values():
            if part is not None:
                self._module(part)

    def _hooks(self, hooks: dict[int, Any]) -> None:
        """Record a module's hooks, but not the lists and dicts in which they collect results."""
        for key, hook in hooks.items():
            self.facts += (key, _reference(hook))
            self.facts += [held for held in _closed_over(hook) if type(held) in _SIMPLE]

    def _object(self, value: Any, depth: int) -> None:
        if isinstance(value, MethodType):
            self._look(value.__self__, depth + 1)
            self._look(value.__func__, depth + 1)
        elif isinstance(value, partial):
            for part in (value.func, value.args, value.keywords):
                self._look(part, depth + 1)
        elif isinstance(value, FunctionType):
            if (value.__module__ or "").split(".")[0] not in _LIBRARIES:
                self._function(value, depth)
        else:
            self.facts.append(type(value))
            held = getattr(value, "__dict__", None)
            if type(held) is not dict:
                held = {}
            else:
                self.owners.append(value)
            slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
            parts = [*held.values(), *(getattr(value, name, None) for name in slots)]
            for part in parts:
                # Deeper containers may be caches that grow with use.
                if depth > 0 or type(part) in _SIMPLE or isinstance(part, (nn.Module, Tensor)):
                    self._look(part, depth)

    def _function(self, function: FunctionType, depth: int) -> None:
        self.facts.append(weakref.ref(function))
        parts = [*_closed_over(function), function.__defaults__, function.__kwdefaults__]
        parts += [function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__]
        for part in parts:
            self._look(part, depth)

    def _tensor(self, tensor: Tensor) -> None:
        self.facts.append(weakref.ref(tensor))
        if id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        self.tensors.append(tensor)
        try:
            address = tensor.data_ptr()
            self.facts += (_version(tensor), address, tensor.shape, tensor.stride(), tensor.dtype)
        except (RuntimeError, NotImplementedError, ValueError):  # sparse, lazy, inside a torch.func transform
            return
        if address == 0 or type(tensor) not in _PLAIN_TENSORS:
            return
        if tensor.is_cpu and tensor.is_contiguous():
            self._read.append((address, tensor.nbytes))
        else:
            self._elsewhere.append(tensor)

    def content(self) -> bytes:
        """Return the contents of the tensors, or samples of them."""
        whole = sum(size for _, size in self._read) <= _WHOLE
        at = ctypes.string_at
        parts: list[bytes] = []
        for address, size in self._read:
            if whole or size <= _SMALL:
                parts.append(at(address, size))
            else:
                step = (size - _PIECE) // (_PIECES - 1)
                parts += [at(address + step * i, _PIECE) for i in range(_PIECES)]
        parts += [_sample(tensor) for tensor in self._elsewhere]
        return b"".join(parts)


class _Held(_Found):
    """Contents of dictionaries: simple values and tensors."""

    def __init__(self, dicts: list[dict[Any, Any]]) -> None:
        super().__init__(None)
        for value in dicts:
            self.facts += (len(value), *(key for key in value if type(key) in _SIMPLE))
            for part in _parts(value):
                if type(part) in _SIMPLE or isinstance(part, (Tensor, np.generic)):
                    self._look(part, 0)


def _parts(container: Any) -> list[Any]:
    """Return the elements of a container; none if it is so large that it must be data."""
    if len(container) > _MANY:
        return []
    return list(container.values() if isinstance(container, dict) else container)


def _sample(tensor: Tensor) -> bytes:
    """Return some elements of a tensor that is on another device or not contiguous."""
    tensor = tensor.detach()
    if tensor.nbytes > _SMALL:
        tensor = tensor[tuple(slice(None, None, max(1, size // 4)) for size in tensor.shape)]
    return bytes(tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())


def _version(tensor: Tensor) -> int | None:
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode
        return None


def _reference(thing: Any) -> Any:
    """Return a weak reference, or the type if the object does not support one."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return type(thing)


def _slots(kind: type) -> tuple[str, ...]:
    found = kind.__dict__.get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _closed_over(function: Any) -> list[Any]:
    """Return the contents of a function's closure."""
    out = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # not assigned yet
            out.append(cell.cell_contents)
    return out


def _names(code: CodeType) -> Iterator[str]:
    """Return the names of globals that a function, and functions within it, may use."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)


def _dicts_of(owner: Any) -> list[dict[str, Any]]:
    """Return the dictionaries of an owner's attributes; none for this package's adapters, which cache facts there."""
    held = owner.__dict__
    if type(owner).__module__.split(".")[0] == __package__.split(".")[0]:
        return []
    if not isinstance(owner, nn.Module) or isinstance(owner, torch.jit.ScriptModule):
        return [held]
    return [held, *(part for part in (held["_modules"], held["_buffers"], held["_parameters"]) if part)]
