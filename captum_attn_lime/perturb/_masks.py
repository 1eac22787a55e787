"""Checks and de-duplicates masks, which say which features each copy of an example keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_attn_lime.errors import InputError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Masks = NDArray[np.bool_]  # (n, features), True where a feature is kept


def as_masks(kept: Any, n_features: int) -> Masks:
    """Return masks as a bool array (n, features).

    Args:
        kept: A NumPy array or a tensor of bool, or of 0 and 1.
        n_features: Number of features.

    Raises:
        InputError: They have another shape or other values.

    Example:
        >>> as_masks([[1, 0]], 2)
        array([[ True, False]])
    """
    given = kept.detach().cpu().numpy() if isinstance(kept, Tensor) else np.asarray(kept)
    if given.ndim != 2 or given.shape[1] != n_features:
        raise InputError(
            f"kept must have a row for each copy and a column for each feature, (n, {n_features}), but has shape "
            f"{given.shape}."
        )
    masks = given.astype(bool)
    if given.dtype != bool and not (given == masks).all():
        raise InputError("kept must be bool, or hold only 0 and 1.")
    return np.asarray(masks)


def distinct(masks: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the distinct rows, and for each row the number of the distinct row that it equals.

    Example:
        >>> first, where = distinct(np.array([[True, False], [False, False], [True, False]]))
        >>> sorted(first.tolist()), (first[where] == [0, 1, 0]).all()
        ([0, 1], np.True_)
    """
    packed = np.ascontiguousarray(np.packbits(masks, axis=1))
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, where = np.unique(rows, return_index=True, return_inverse=True)
    return first, where.reshape(-1)
