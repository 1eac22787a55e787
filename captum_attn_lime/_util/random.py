"""The random generators that a model may draw from: their states, and putting them back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class RandomState:
    """The states of the random generators that a model may draw from, at the time when this was made.

    Attributes:
        torch: Torch's, on the CPU.
        cuda: Torch's on other devices, where they are in use.
        numpy: NumPy's.
        python: Python's.

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
        """Put the generators back."""
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


@contextmanager
def without_drawing() -> Iterator[None]:
    """Run a block that draws from the random generators as if it did not."""
    state = RandomState()
    try:
        yield
    finally:
        state.restore()
