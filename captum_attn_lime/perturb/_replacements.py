"""Named replacements for removed features of rows, sequences and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from captum_attn_lime._util.captum import as_tuple
from captum_attn_lime.adapters import Adapter, Encoding, ImageAdapter, ImageEncoding, SequenceAdapter, TabularAdapter
from captum_attn_lime.errors import InputError


def replacement_values(
    adapter: Adapter, encoding: Encoding, example: int, removal: Any, n_draws: int, seed: int
) -> tuple[Tensor, ...]:
    """Return the values that replace removed cells of one example, each (1, ...), or (n_draws, ...) for draws.

    Args:
        adapter: The adapter.
        encoding: The encoding.
        example: Index of the example in the encoding.
        removal: The name, or for pictures a number, a colour or a picture.
        n_draws: Number of training examples to draw.
        seed: Seed of the draws.

    Raises:
        InputError: This input does not support the removal, or the removal needs training data.
    """
    if isinstance(adapter, ImageAdapter) and isinstance(encoding, ImageEncoding):
        segments, image = encoding.segments[example], encoding.images[example]
        return as_tuple(adapter.encode(image, features=segments, baselines=removal).baselines)
    known = isinstance(removal, str) and removal in ("mean", "marginal")
    if not known or not isinstance(adapter, (TabularAdapter, SequenceAdapter)):
        raise InputError(
            f"{type(adapter).__name__} does not support removal={removal!r}; pass 'baseline', or for rows and "
            "sequences 'mean' or 'marginal'."
        )
    if adapter.training_data is None:
        raise InputError(f"removal={removal!r} needs training data; pass training_data= to the adapter.")
    if removal == "mean":
        return as_tuple(adapter.encode(adapter.training_data[:1], baselines="mean").baselines)
    if not isinstance(n_draws, int) or n_draws < 1:
        raise InputError(f"n_draws must be a positive number of draws, but is {n_draws!r}.")
    n = len(adapter.training_data)
    rows = np.random.default_rng(seed).choice(n, size=min(n_draws, n), replace=False)
    return adapter.tensors(adapter.training_data[rows])
