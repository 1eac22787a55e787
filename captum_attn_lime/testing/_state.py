"""The state that an attribution must leave unchanged, and temporary changes that a check makes to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._util.random import RandomState

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def snapshot(modules: list[nn.Module], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return a snapshot of the state that must not change, by readable names.

    Args:
        modules: The model's modules.
        tensors: The caller's tensors, by name.
    """
    out: dict[str, Any] = {"grad mode": torch.is_grad_enabled(), "default dtype": torch.get_default_dtype()}
    out["deterministic algorithms"] = torch.are_deterministic_algorithms_enabled()
    for name, tensor in tensors.items():
        out[name] = tensor.detach().clone()
    for i, module in enumerate(modules):
        title = f"{type(module).__name__} (module {i})"
        for name, held in (*module._parameters.items(), *module._buffers.items()):
            if held is not None:
                out[f"{name} of {title}"] = held.detach().clone()
                out[f"the gradient of {name} of {title}"] = None if held.grad is None else held.grad.clone()
                out[f"requires_grad of {name} of {title}"] = held.requires_grad
        for name, value in _settings(module):
            out[f"{name} of {title}"] = value
        out[f"the names of the attributes of {title}"] = sorted(vars(module))
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        out[f"the hooks of {title}"] = [list(each) for each in hooks]
        out[f"the parts of {title}"] = [id(part) for part in module._modules.values()]  # alive as long as this is
    return out


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for holder, prefix in ((module, ""), (getattr(module, "config", None), "config.")):
        for name, value in getattr(holder, "__dict__", {}).items():
            if isinstance(value, _PLAIN):
                yield prefix + name, value


def difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the name of the first entry that changed; None if nothing did."""
    for name, value in before.items():
        now = after.get(name)
        if isinstance(value, Tensor):
            same = isinstance(now, Tensor) and now.shape == value.shape and now.dtype == value.dtype
            if not same or not isinstance(now, Tensor) or not torch.equal(_bits(value), _bits(now)):
                return name
        elif not isinstance(now, type(value)) or now != value:
            return name
    return None


def _bits(x: Tensor) -> Tensor:
    """Return a tensor's bytes, so that NaN equals NaN."""
    return x.contiguous().flatten().view(torch.uint8) if x.numel() and x.layout == torch.strided else x


def has_drawn(state: RandomState) -> bool:
    """Return whether random numbers were drawn since ``state``."""
    now = RandomState()
    numpy = zip(state.numpy, now.numpy, strict=True)
    same = state.python == now.python and all(np.array_equal(a, b) for a, b in numpy)
    return not same or not torch.equal(state.torch, now.torch)


@contextmanager
def other_weights(modules: list[nn.Module], *, past_autograd: bool) -> Iterator[None]:
    """Run a block with other parameters and buffers, changed in place and restored bit for bit.

    Args:
        modules: The model's modules.
        past_autograd: Whether to change them through ``.data``, which autograd's version counters miss.
    """
    tensors = {id(t): t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
    chosen = [t for t in tensors.values() if t.is_floating_point() and bool(t.isfinite().all())]
    kept = [t.detach().clone() for t in chosen]
    generator = torch.Generator().manual_seed(1)

    def write(into: Tensor, value: Tensor) -> None:
        if past_autograd:
            into.data.copy_(value)
        else:
            into.copy_(value)

    with torch.no_grad():
        for tensor, before in zip(chosen, kept, strict=True):
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            write(tensor, before * (0.7 + 0.6 * noise) + 0.02 * noise)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(chosen, kept, strict=True):
                write(tensor, before)


@contextmanager
def other_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Run a block in the other mode: training mode if all modules are in eval mode, otherwise eval mode."""
    flags = [module.training for module in modules]
    training = not any(flags)
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


@contextmanager
def failing(module: nn.Module, *, at: int, error: type[Exception]) -> Iterator[None]:
    """Run a block in which a module raises an error in its ``at``-th call."""
    calls = [0]

    def fail(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise error

    handle = module.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def other_options(used: Any, options: dict[str, Any], make: Callable[[], Any]) -> Iterator[Any]:
    """Run a block with other options set on a used object; yield a fresh object with the same options."""
    before = {name: getattr(used, name) for name in options}
    fresh = make()
    for name, value in options.items():
        setattr(used, name, value)
        setattr(fresh, name, value)
    try:
        yield fresh
    finally:
        for name, value in before.items():
            setattr(used, name, value)
