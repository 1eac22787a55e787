"""Shared state changed for the length of a block and put back after it: the encoder fast path, cuDNN, training flags.

Both belong to the process or to a model, not to one call, so calls in several threads share one change: the first
one in makes it, the last one out undoes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_lock = threading.RLock()
_fast_path: dict[str, Any] = {"users": 0, "was": True}
_cudnn: dict[str, Any] = {"users": 0, "was": True}
_evaluating: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in eval mode, then give every submodule the training flag it had.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [m.training for m in model]
        [False, False]
        >>> [m.training for m in model]
        [True, False]
    """
    with _lock:
        state = _evaluating.setdefault(model, {"users": 0, "training": []})
        if state["users"] == 0:
            state["training"] = [m for m in model.modules() if m.training]
            for module in state["training"]:
                module.training = False
        state["users"] += 1
    try:
        yield
    finally:
        with _lock:
            state["users"] -= 1
            if state["users"] == 0:
                for module in state["training"]:
                    module.training = True
                _evaluating.pop(model, None)


@contextmanager
def padding_id(model: nn.Module, value: int) -> Iterator[None]:
    """Lend a model's configuration a padding id for a block.

    Causal HuggingFace classifiers look for the last token that is not padding and refuse batches without that id.
    """
    config = text_config(model)
    if not hasattr(config, "pad_token_id"):
        yield
        return
    with _lock:  # Held for the whole block: two calls may lend different ids.
        own = config.pad_token_id
        config.pad_token_id = value
        try:
            yield
        finally:
            config.pad_token_id = own


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


def text_config(model: nn.Module) -> Any:
    """Return the model's HuggingFace configuration (its text part), or None."""
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else config
