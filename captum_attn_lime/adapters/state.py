"""Shared state changed for the length of a block and put back after it: the encoder fast path and training flags.

Both belong to the process or to a model, not to one call, so calls in several threads share one change: the first
one in makes it, the last one out undoes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_lock = threading.RLock()
_fast_path = {"users": 0, "was": True}
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
    with _lock:
        if _fast_path["users"] == 0:
            _fast_path["was"] = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _fast_path["users"] += 1
    try:
        yield
    finally:
        with _lock:
            _fast_path["users"] -= 1
            if _fast_path["users"] == 0:
                torch.backends.mha.set_fastpath_enabled(bool(_fast_path["was"]))


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


def text_config(model: nn.Module) -> Any:
    """Return the model's HuggingFace configuration (its text part), or None."""
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else config
