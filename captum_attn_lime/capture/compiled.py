"""Running compiled code uncompiled for the time of a capture: what torch.compile wraps cannot be watched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from captum_attn_lime.errors import UnreadableAttentionError

# The compiler's stance is one for the whole process, so captures in several threads share one change of it.
_lock = threading.Lock()
_state: dict[str, Any] = {"users": 0, "change": None}


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Run a block with torch.compile's wrappers calling the functions they were given.

    Nothing is recompiled or forgotten: after the block the compiled code runs as before. flex_attention, which compiles
    itself, runs uncompiled too, and can then be seen.
    """
    if "torch._dynamo" not in sys.modules:
        yield  # nothing has been compiled, and importing the compiler takes seconds
        return
    with _lock:
        if _state["users"] == 0:
            try:
                _state["change"] = torch.compiler.set_stance("force_eager")
            except RuntimeError as error:
                raise UnreadableAttentionError(
                    "a capture was begun inside compiled code; begin it outside the function that torch.compile wraps."
                ) from error
        _state["users"] += 1
    try:
        yield
    finally:
        with _lock:
            _state["users"] -= 1
            if _state["users"] == 0:
                _state["change"].__exit__(None, None, None)
