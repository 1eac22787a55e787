"""Trying a model out: in eval mode, without gradients, and it and the random numbers left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._state import evaluating, modes_kept


@contextmanager
def trial(model: nn.Module) -> Iterator[nn.Module]:
    """Run a block that tries a model out and leaves no trace, and return what is to be run in it.

    Example:
        >>> before = torch.get_rng_state()
        >>> with trial(nn.Dropout()) as own:
        ...     drawn = torch.rand(3)
        >>> own.training, torch.equal(before, torch.get_rng_state())
        (False, True)
    """
    with evaluating(model) as own, without_drawing(), torch.no_grad(), modes_kept(own):
        yield own
