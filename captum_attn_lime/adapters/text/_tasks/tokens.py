"""Token classification: a model's output as one row of classes for each token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_attn_lime.adapters._outputs import named_tensor
from captum_attn_lime.errors import ForwardError


def token_logits(output: Any, n: int, length: int, name: str) -> Tensor:
    """Return a model's output as (n, N, classes): ``.logits``, the first of a tuple, or the tensor itself.

    Args:
        output: What the model returned.
        n: Number of examples.
        length: Number of tokens, N.
        name: The model's name, for the message.

    Raises:
        ForwardError: It holds no tensor, or one of another shape.
    """
    found = named_tensor(output, "logits")
    if isinstance(found, Tensor) and found.dim() == 3 and tuple(found.shape[:2]) == (n, length):
        return found
    what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{type(output).__name__} without logits"
    raise ForwardError(
        f"{name} returned {what} for {n} example(s) of {length} tokens; with task='tokens' an adapter needs "
        f"({n}, {length}, classes): a tensor, an object with .logits, or a tuple that begins with them."
    )
