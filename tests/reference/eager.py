"""The attention weights of a model's own eager code: every softmax it calls, recomputed in numpy float64.

It replaces the softmax functions for the time of a block, looks at what goes in, and has nothing in common with the
capture it checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Recorded(list[np.ndarray]):
    """The weights of each softmax, in call order.

    Attributes:
        rounds: Whether any of them is computed in less than float64 by the model.
    """

    rounds = False


@contextmanager
def recorded_weights(min_dim: int = 3) -> Iterator[Recorded]:
    """Return the softmax, in float64, of the scores that go into each softmax over tensors of min_dim or more."""
    seen = Recorded()
    places = [(torch, "softmax"), (F, "softmax"), (Tensor, "softmax")]
    originals = [getattr(owner, name) for owner, name in places]
    depth = 0

    def watched(original: Any) -> Any:
        def softmax(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            scores = args[0] if args else kwargs["input"]
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if depth == 0 and scores.dim() >= min_dim:
                seen.append(_softmax(scores.detach().double().numpy(), dim))
                seen.rounds |= (kwargs.get("dtype") or scores.dtype) != torch.float64
                if scores.dtype == torch.float64 and kwargs.get("dtype") is not None:
                    # Many models round to float32 here, and with that the scores of all layers above.
                    kwargs = {**kwargs, "dtype": None}
            depth += 1  # F.softmax calls Tensor.softmax
            try:
                return original(*args, **kwargs)
            finally:
                depth -= 1

        return softmax

    try:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, watched(original))
        yield seen
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def _softmax(scores: np.ndarray, dim: int) -> np.ndarray:
    top = scores.max(axis=dim, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis=dim, keepdims=True)
    return powers / np.where(total == 0, 1.0, total)
