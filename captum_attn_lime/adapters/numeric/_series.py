"""Sequences as arrays: checked series over time steps, and the flat cells that lime uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime.adapters._outputs import Array
from captum_attn_lime.adapters.numeric._columns import as_numbers, as_table, listed, table_names
from captum_attn_lime.errors import InputError

SeriesFeatures = Literal["cell", "step", "series"]


def as_sequences(raw: Any, names: Sequence[str] | None = None, n_steps: int | None = None) -> Array:
    """Return a sequence or sequences as (n, steps, series) float64.

    Args:
        raw: Numbers as nested sequences, array or tensor, (steps, series) or (n, steps, series); a DataFrame with one
            row per step, or a list of DataFrames.
        names: Names of the series. The columns of DataFrames are reordered accordingly.
        n_steps: Number of steps, if known.

    Raises:
        InputError: Wrong number of dimensions, series or steps, or a value that is not a finite number.

    Example:
        >>> as_sequences([[1, 2], [3, 4], [5, 6]]).shape
        (1, 3, 2)
    """
    if _are_tables(raw):
        names = names or series_names(raw)
        raw = [as_table(one, names) for one in raw]
        if len({len(one) for one in raw}) > 1:
            raise InputError(
                f"the sequences have {sorted({len(one) for one in raw})} steps; bring them to one length, or encode "
                "them one by one."
            )
    values = as_numbers(raw, names)
    found = values[None] if values.ndim == 2 else values
    if found.ndim != 3 or 0 in found.shape:
        raise InputError(
            f"expected a sequence (steps, series) or sequences (n, steps, series), but the shape is {values.shape}."
        )
    if names is not None and found.shape[2] != len(names):
        raise InputError(
            f"expected {len(names)} series ({listed(names)}) in the last dimension, but the shape is {values.shape}."
        )
    if n_steps is not None and found.shape[1] != n_steps:
        raise InputError(
            f"expected {n_steps} steps as in the training data, but the shape is {values.shape}; cut or pad the "
            "sequence to that length."
        )
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row, step, series = (int(i) for i in bad[0])
        name = names[series] if names else str(series)
        raise InputError(
            f"series {name!r} at step {step} of sequence {row} is {found[row, step, series]}; fill in missing values "
            "before explaining."
        )
    return found


def series_names(raw: Any) -> tuple[str, ...] | None:
    """Return the column names of a DataFrame or of a list of them; None for anything else."""
    return table_names(raw[0] if _are_tables(raw) else raw)


def cells_of(sequences: NDArray[Any]) -> NDArray[Any]:
    """Return sequences (n, steps, series) as rows of cells (n, series * steps), one series after the other.

    The order is that of lime's ``RecurrentTabularExplainer``: step t of series f is cell f * steps + t.

    Example:
        >>> cells_of(np.array([[[1, 2], [3, 4], [5, 6]]])).tolist()
        [[1, 3, 5, 2, 4, 6]]
    """
    return np.ascontiguousarray(sequences.transpose(0, 2, 1)).reshape(len(sequences), -1)


def sequences_of(cells: NDArray[Any], n_steps: int) -> NDArray[Any]:
    """Return rows of cells (n, series * steps) as sequences (n, steps, series), the inverse of :func:`cells_of`.

    Example:
        >>> sequences_of(np.array([[1, 3, 5, 2, 4, 6]]), 3).tolist()
        [[[1, 2], [3, 4], [5, 6]]]
    """
    return np.ascontiguousarray(cells.reshape(len(cells), -1, n_steps).transpose(0, 2, 1))


def cells_of_series(series: Sequence[int], n_steps: int) -> tuple[int, ...]:
    """Return the cells of these series, by which lime identifies categorical ones.

    Example:
        >>> cells_of_series([0, 2], 3)
        (0, 1, 2, 6, 7, 8)
    """
    return tuple(f * n_steps + t for f in series for t in range(n_steps))


def cell_names(names: Sequence[str], n_steps: int) -> tuple[str, ...]:
    """Return the names of the cells in order: "u_t-2" is series "u" two steps before the last, "u_t-0" at the last.

    Example:
        >>> cell_names(["u", "v"], 2)
        ('u_t-1', 'u_t-0', 'v_t-1', 'v_t-0')
    """
    return tuple(f"{name}_{step}" for name in names for step in step_names(n_steps))


def step_names(n_steps: int) -> tuple[str, ...]:
    """Return the names of the steps, counted back from the last one.

    Example:
        >>> step_names(3)
        ('t-2', 't-1', 't-0')
    """
    return tuple(f"t-{n_steps - 1 - t}" for t in range(n_steps))


def features_of(
    features: SeriesFeatures, n_steps: int, names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the feature id of each cell, (steps, series), and the features' names.

    Example:
        >>> features_of("cell", 2, ["u", "v"])[0].tolist(), features_of("step", 2, ["u", "v"])[0].tolist()
        ([[0, 2], [1, 3]], [[0, 0], [1, 1]])
    """
    steps, series = np.indices((n_steps, len(names)))
    if features == "cell":
        return series * n_steps + steps, cell_names(names, n_steps)
    if features == "step":
        return steps, step_names(n_steps)
    if features == "series":
        return series, tuple(names)
    raise InputError(f"features must be 'cell', 'step' or 'series', but is {features!r}.")


def _are_tables(raw: Any) -> bool:
    return isinstance(raw, (list, tuple)) and bool(raw) and all(hasattr(one, "columns") for one in raw)
