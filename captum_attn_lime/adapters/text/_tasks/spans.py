"""Extractive question answering: a model's output as start and end logits of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_attn_lime.errors import ForwardError


def span_logits(output: Any, n: int, length: int, name: str) -> Tensor:
    """Return a model's output as (n, N, 2): start logits at ``[..., 0]``, end logits at ``[..., 1]``.

    Args:
        output: What the model returned: an object or dict with ``start_logits`` and ``end_logits``, a tuple that
            begins with both, or a tensor (n, N, 2).
        n: Number of examples.
        length: Number of tokens, N.
        name: The model's name, for the message.

    Raises:
        ForwardError: It holds no such tensors.

    Example:
        >>> span_logits((torch.zeros(1, 3), torch.ones(1, 3)), 1, 3, "Reader")[0, 2].tolist()
        [0.0, 1.0]
    """
    if isinstance(output, Tensor):
        if tuple(output.shape) == (n, length, 2):
            return output
        raise _mismatch(name, f"a tensor of shape {tuple(output.shape)}", n, length)
    if isinstance(output, dict):
        both = (output.get("start_logits"), output.get("end_logits"))
    elif isinstance(output, (tuple, list)):
        both = (output[0], output[1]) if len(output) > 1 else (None, None)
    else:
        both = (getattr(output, "start_logits", None), getattr(output, "end_logits", None))
    start, end = both
    if not isinstance(start, Tensor) or not isinstance(end, Tensor):
        raise _mismatch(name, f"{type(output).__name__} without start_logits and end_logits", n, length)
    if tuple(start.shape) != (n, length) or tuple(end.shape) != (n, length):
        raise _mismatch(name, f"start and end logits of shapes {tuple(start.shape)}, {tuple(end.shape)}", n, length)
    return torch.stack([start, end], dim=-1)


def _mismatch(name: str, what: str, n: int, length: int) -> ForwardError:
    return ForwardError(
        f"{name} returned {what} for {n} example(s) of {length} tokens; with task='spans' an adapter needs start and "
        f"end logits ({n}, {length}) each: .start_logits and .end_logits, a tuple of both, or a tensor "
        f"({n}, {length}, 2)."
    )
