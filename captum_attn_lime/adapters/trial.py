"""Trying a model out: in eval mode, without gradients, and its random numbers put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from captum_attn_lime.adapters.state import evaluating


@contextmanager
def trial(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a block that tries a model out and leaves no trace: training flags and random state are put back.

    Example:
        >>> before = torch.get_rng_state()
        >>> with trial(nn.Dropout(), torch.device("cpu")):
        ...     drawn = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    with evaluating(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
