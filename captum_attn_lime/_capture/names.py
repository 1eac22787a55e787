"""The module that is running: a stack of module paths, maintained by hooks that are removed after the capture."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

# Attributes in which wrappers hold the wrapped module; module paths omit them.
_WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# Called for each module that has run with the module, its arguments, its output (None after an exception), and whether
# other modules ran inside it.
Left = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any, bool], Any]
Start = Callable[[tuple[Any, ...], dict[str, Any]], None]
_CALL = nn.Module._call_impl.__code__


class ModuleStack:
    """The paths of the running modules, outermost first, in the thread that created the stack.

    Args:
        batch: Number of examples; by default the size of dimension 0 of the first tensor passed to a module.
    """

    def __init__(self, batch: int | None = None) -> None:
        self._thread = threading.get_ident()
        self._paths: list[str] = []
        self._entered_others: list[bool] = []
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[Any] = []
        self._hooked: dict[int, nn.Module] = {}
        self._hooks: list[Callable[..., Any]] = []
        self._by_frames: dict[int, str] | None = None
        self.batch = batch
        self.has_run = False  # whether a module ran in this thread
        self.has_run_elsewhere = False  # whether a module ran in another thread
        self.on_start: Start | None = None
        self.on_enter: Callable[[nn.Module], None] | None = None
        self.on_leave: Left | None = None

    @property
    def is_watching(self) -> bool:
        """Whether any modules are hooked."""
        return bool(self._modules)

    @property
    def current(self) -> str:
        """The path of the innermost module, or an empty string."""
        if self._by_frames is not None:
            return _running(self._by_frames) or ""
        return self._paths[-1] if self._paths else ""

    def begin(self, modules: dict[str, nn.Module], on_start: Start | None = None) -> None:
        """Hook the modules until :meth:`end`.

        Args:
            modules: The modules, by the prefixes of their paths. Their submodules are hooked too: immediately, or, with
                ``on_start``, when :meth:`watch_all` is called.
            on_start: Called with the arguments of the first module that runs; it may call :meth:`watch_all`.
        """
        self._modules = modules
        if on_start is None:
            self.watch_all()
        else:
            self.on_start = on_start
            for name, root in modules.items():
                self._hook(name, root)

    def end(self) -> None:
        """Remove the hooks and release the callbacks; further calls do nothing."""
        for handle in self._handles:
            handle.remove()
        if len(self._handles) < 2 * len(self._hooked):
            self._remove_unknown()
        self.on_start = self.on_enter = self.on_leave = None
        for known in (self._handles, self._hooked, self._hooks):
            known.clear()

    def _remove_unknown(self) -> None:
        """Remove the hooks whose handles were lost to an interrupt."""
        for module in self._hooked.values():
            before = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
            behind = (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called)
            for tables in (before, behind):
                for key in [key for key, hook in list(tables[0].items()) if hook in self._hooks]:
                    for table in tables:
                        table.pop(key, None)

    def watch_all(self) -> None:
        """Hook every submodule that is not hooked yet."""
        for root_name, root in self._modules.items():
            for path, module in _named_modules(root):
                self._hook(".".join(part for part in (root_name, path) if part), module)

    def watch_from_here(self) -> None:
        """Hook every submodule while some are already running; the names of these come from the call frames."""
        self._by_frames = {
            id(module): ".".join(part for part in (root_name, path) if part)
            for root_name, root in reversed(self._modules.items())
            for path, module in reversed(list(_named_modules(root)))
        }
        self.has_run |= _running(self._by_frames) is not None
        self.watch_all()

    def _hook(self, path: str, module: nn.Module) -> None:
        if id(module) in self._hooked or isinstance(module, torch.jit.ScriptModule):
            return  # scripted modules do not support hooks
        enter, leave = self._enter(path), self._leave
        self._hooks += [enter, leave]
        self._hooked[id(module)] = module
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        # always_call: the stack must also shrink if a forward raises.
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))

    def _enter(self, path: str) -> Callable[..., None]:
        # torch omits the keyword arguments if another thread has just removed its hooks from the module.
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if threading.get_ident() != self._thread:
                self.has_run_elsewhere = True
                return
            self.has_run = True
            kwargs = kwargs or {}
            if self.batch is None:
                with torch._C.DisableTorchFunction():  # this is not an operation of the model
                    self.batch = next((len(x) for x in (*args, *kwargs.values()) if _has_batch(x)), None)
            if self._entered_others:
                self._entered_others[-1] = True
            self._paths.append(path)
            self._entered_others.append(False)
            if self.on_start is not None:
                start, self.on_start = self.on_start, None
                start(args, kwargs)
            if self.on_enter is not None:
                self.on_enter(module)

        return enter

    def _leave(self, module: nn.Module, args: tuple[Any, ...], *given: Any) -> Any:
        if threading.get_ident() != self._thread or not self._paths:
            return None
        kwargs, output = given if len(given) == 2 else ({}, given[0])
        try:
            return (
                None if self.on_leave is None else self.on_leave(module, args, kwargs, output, self._entered_others[-1])
            )
        finally:
            self._paths.pop()
            self._entered_others.pop()


def _running(paths: dict[int, str]) -> str | None:
    """Return the path of the innermost running module according to the call frames; None if there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _CALL and (path := paths.get(id(frame.f_locals["self"]))) is not None:
            return path
        frame = frame.f_back
    return None


def _named_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module's submodules with their paths, which omit wrappers (DataParallel, compiled, ...)."""
    wrappers = {path for path, module in root.named_modules() if unwrapped(module) is not module}
    for path, module in root.named_modules():
        parts = path.split(".")
        kept = [part for i, part in enumerate(parts) if not (part in _WRAPPED and ".".join(parts[:i]) in wrappers)]
        yield ".".join(kept), module


def path_of(module: nn.Module, roots: dict[str, nn.Module]) -> str | None:
    """Return the path of a module in a capture; None if it is in none of the roots.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> path_of(model[1], {"": model}), path_of(nn.Linear(2, 2), {"": model})
        ('1', None)
    """
    for root_name, root in roots.items():
        for path, part in _named_modules(root):
            if part is module:
                return ".".join(name for name in (root_name, path) if name)
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a wrapper (DataParallel, DistributedDataParallel, compiled, checkpointed).

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(layer)) is layer, unwrapped(layer) is layer
        (True, True)
    """
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: nn.Module = module.module
        return inner
    if isinstance(module, torch.jit.ScriptModule):
        return module
    for name in _WRAPPED[1:]:
        held = module._modules.get(name)
        if held is not None and len(module._modules) == 1:
            return held
    return module


def find_modules(forward_func: Any) -> dict[str, nn.Module]:
    """Return the modules that can be found in a forward function: itself, its owner, or its closure.

    A module's key is the prefix of its submodules' paths, which is empty if there is only one module.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> find_modules(lambda x: layer(x).relu())
        {'': Linear(in_features=2, out_features=2, bias=True)}
    """
    modules: dict[str, nn.Module] = {}
    _reach(forward_func, "", modules, depth=4)
    distinct = list({id(m): m for m in modules.values()}.values())
    return {"": distinct[0]} if len(distinct) == 1 else modules


def _reach(thing: Any, name: str, found: dict[str, nn.Module], *, depth: int) -> None:
    """Collect the modules held by a callable, or by functions that it calls."""
    if isinstance(thing, nn.Module):
        found.setdefault(name, thing)
        return
    if depth == 0 or (not callable(thing) and name == ""):
        return
    holder = getattr(thing, "__self__", None)  # a bound method's object
    inner = getattr(thing, "func", None)  # functools.partial's function
    if holder is not None and not inspect.ismodule(holder):
        reached = {name: holder} if isinstance(holder, nn.Module) else dict(getattr(holder, "__dict__", {}))
    elif inner is not None:
        reached = {"": inner, **dict(enumerate(thing.args)), **thing.keywords}
    elif inspect.isfunction(thing):
        closure = inspect.getclosurevars(thing)
        reached = {**closure.globals, **closure.nonlocals}
    else:
        reached = dict(getattr(thing, "__dict__", {}))
    for key, value in reached.items():
        if isinstance(value, nn.Module) or inspect.isfunction(value) or inspect.ismethod(value):
            _reach(value, str(key), found, depth=depth - 1)
        elif isinstance(value, (list, tuple, dict)):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            for name_in, part in parts:
                if isinstance(part, nn.Module):
                    found.setdefault(f"{key}.{name_in}", part)


def _has_batch(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and x.layout == torch.strided
