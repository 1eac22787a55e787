"""The states of the random number generators that a model may use, and how to restore them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class RandomState:
    """A snapshot of the random number generators that a model may use.

    Attributes:
        torch: State of torch's CPU generator.
        cuda: States of torch's CUDA generators; None if CUDA is not initialised.
        numpy: State of NumPy's global generator.
        python: State of Python's global generator.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(1)
        >>> state.restore()
        >>> bool(torch.rand(1) == first)
        True
    """

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self.numpy, self.python = np.random.get_state(), random.getstate()  # noqa: NPY002

    def restore(self) -> None:
        """Restore the generators to this state."""
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


@contextmanager
def without_drawing() -> Iterator[None]:
    """Restore the random number generators at the end of the block."""
    state = RandomState()
    try:
        yield
    finally:
        state.restore()
