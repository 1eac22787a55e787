"""Which module is running: a stack of module paths, kept by hooks that are gone when the capture ends."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ModuleStack:
    """The paths of the modules being run, outermost first, in the thread that made the stack."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._paths: list[str] = []
        self.batch: int | None = None  # dimension 0 of the first tensor that entered a module

    @property
    def current(self) -> str:
        """The path of the innermost module, or an empty string."""
        return self._paths[-1] if self._paths else ""

    @contextmanager
    def watching(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Hook every submodule for the time of the block."""
        handles = []
        seen: set[int] = set()
        try:
            for root_name, root in modules.items():
                for path, module in root.named_modules():
                    if id(module) in seen:
                        continue
                    seen.add(id(module))
                    full = ".".join(part for part in (root_name, path) if part)
                    handles.append(module.register_forward_pre_hook(self._enter(full), with_kwargs=True))
                    # always_call: the stack must shrink also when a forward raises.
                    handles.append(module.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() != self._thread:
                return
            if self.batch is None:
                self.batch = next((len(x) for x in (*args, *kwargs.values()) if _has_batch(x)), None)
            self._paths.append(path)

        return enter

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == self._thread and self._paths:
            self._paths.pop()


def find_modules(forward_func: Any) -> dict[str, nn.Module]:
    """Return the modules a forward function runs, as far as it shows them: itself, its owner, or what it closes over.

    A module's key is the prefix of its submodules' paths: empty where there is one module only.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> find_modules(lambda x: layer(x).relu())
        {'': Linear(in_features=2, out_features=2, bias=True)}
    """
    if isinstance(forward_func, nn.Module):
        return {"": forward_func}
    owner = getattr(forward_func, "__self__", None)
    if isinstance(owner, nn.Module):
        return {"": owner}
    inner = getattr(forward_func, "func", None)  # functools.partial
    if inner is not None:
        return find_modules(inner)
    if not inspect.isfunction(forward_func):
        reached = dict(getattr(forward_func, "__dict__", {}))
    else:
        closure = inspect.getclosurevars(forward_func)
        reached = {**closure.globals, **closure.nonlocals}
    modules = {name: value for name, value in reached.items() if isinstance(value, nn.Module)}
    return {"": next(iter(modules.values()))} if len(modules) == 1 else modules


def _has_batch(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and x.layout == torch.strided
