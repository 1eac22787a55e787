"""Tables as arrays: checked rows in the user's column order, and columns by name or index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.adapters._outputs import Array
from captum_attn_lime.errors import InputError


def as_table(raw: Any, names: Sequence[str] | None = None) -> Array:
    """Return a row or rows as (n, columns) float64, in the order of ``names``.

    Args:
        raw: Numbers as a sequence, array, tensor, pandas Series or DataFrame; one row or several.
        names: Names of the columns. A labelled Series or DataFrame is reordered accordingly.

    Raises:
        InputError: Wrong number or names of columns, or a value that is not a finite number.

    Example:
        >>> as_table([1, 2]).tolist()
        [[1.0, 2.0]]
    """
    values = as_numbers(raw, names)
    table = values[None] if values.ndim == 1 else values
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(f"expected a row (columns,) or rows (n, columns), but the shape is {values.shape}.")
    if names is not None and table.shape[1] != len(names):
        raise InputError(f"expected rows of {len(names)} columns ({listed(names)}), but got {table.shape[1]}.")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        name = names[column] if names else str(column)
        raise InputError(
            f"column {name!r} of row {row} is {table[row, column]}; fill in or drop missing values before explaining."
        )
    return table


def listed(names: Sequence[str]) -> str:
    """Return names for an error message, at most eight.

    Example:
        >>> listed("abcdefghij")
        'a, b, c, d, e, f, g, h, ...'
    """
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def table_names(table: Any) -> tuple[str, ...] | None:
    """Return the column names of a DataFrame, None for anything else."""
    columns = getattr(table, "columns", None)
    return None if columns is None else tuple(str(c) for c in columns)


def column_indices(
    chosen: Sequence[int | str], names: Sequence[str] | None, *, argument: str = "categorical_features"
) -> tuple[int, ...]:
    """Return the sorted indices of columns given by index or name.

    Raises:
        InputError: There is no such column.
    """
    out = set()
    for column in chosen:
        if isinstance(column, str):
            if not names or column not in names:
                raise InputError(f"{argument} names {column!r}, but the columns are {list(names or [])}.")
            out.add(list(names).index(column))
        elif isinstance(column, (int, np.integer)) and column >= 0 and (names is None or column < len(names)):
            out.add(int(column))
        else:
            count = "" if names is None else f"; there are {len(names)} columns"
            raise InputError(f"{argument} must hold column indices from 0 or names, got {column!r}{count}.")
    return tuple(sorted(out))


def column_features(chosen: Any, names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the feature of each column, and the features' names.

    Args:
        chosen: ``"column"``, or groups of columns, each one feature.
        names: Names of the columns.

    Raises:
        InputError: Groups overlap, or a group is empty or has an unknown column.

    Example:
        >>> column_features([["b", "c"]], ["a", "b", "c"])
        ([0, 1, 1], ('a', 'b + c'))
    """
    if isinstance(chosen, str) and chosen == "column":
        return list(range(len(names))), tuple(names)
    if not isinstance(chosen, (list, tuple)) or any(isinstance(group, str) or not len(group) for group in chosen):
        raise InputError(f"features must be 'column' or a list of groups of columns, but is {chosen!r}.")
    groups = [column_indices(group, names, argument="features") for group in chosen]
    if len({column for group in groups for column in group}) < sum(len(group) for group in chosen):
        raise InputError(f"features names a column twice: {chosen!r}; a column belongs to one feature.")
    group_of = {column: group for group in groups for column in group}
    ordered = list(dict.fromkeys(group_of.get(column, (column,)) for column in range(len(names))))
    number = {column: k for k, group in enumerate(ordered) for column in group}
    return [number[c] for c in range(len(names))], tuple(" + ".join(names[c] for c in group) for group in ordered)


def names_of_categories(
    given: Mapping[int | str, Sequence[str]] | None,
    categorical: Sequence[int],
    names: Sequence[str],
    table: Array,
) -> dict[int, tuple[str, ...]]:
    """Return the names of the categories of each column; category k has the k-th name.

    Args:
        given: The names, by index or name of the column.
        categorical: Indices of the categorical columns.
        names: Names of all columns.
        table: Rows (n, columns) that hold the categories that occur.

    Raises:
        InputError: A column is unknown, not categorical or given twice, or has categories without a name.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"categorical_names must be a dict of names by column, but is {type(given).__name__}.")
    out: dict[int, tuple[str, ...]] = {}
    for column, categories in (given or {}).items():
        (index,) = column_indices([column], names, argument="categorical_names")
        name = names[index]
        if index not in categorical:
            raise InputError(f"categorical_names names {name!r}, which is not one of categorical_features.")
        if index in out:
            raise InputError(f"categorical_names gives the column {name!r} twice, by its name and by its index.")
        if isinstance(categories, (str, Mapping)) or not hasattr(categories, "__iter__"):
            raise InputError(f"categorical_names must give {name!r} a list of names, but gives {categories!r}.")
        out[index] = tuple(str(category) for category in categories)
        most = int(table[:, index].max())
        if most >= len(out[index]):
            raise InputError(
                f"categorical_names gives {len(out[index])} names for the categories of {name!r}, which go up to "
                f"{most}; give {most + 1} names, one for each category from 0."
            )
    return out


def check_categories(
    table: Array, categorical: Sequence[int], names: Sequence[str] | None, known: dict[int, Array]
) -> None:
    """Raise unless categorical columns hold integers from 0 that occur in the training data.

    Args:
        table: Rows, (n, columns).
        categorical: Indices of the categorical columns.
        names: Names of all columns, if there are any.
        known: Sorted values of each categorical column in the training data; empty without training data.

    Raises:
        InputError: A value is not an integer from 0, or does not occur there.
    """
    for column in categorical:
        values = table[:, column]
        name = names[column] if names else str(column)
        wrong = values[(values != np.round(values)) | (values < 0)]
        if len(wrong):
            raise InputError(f"categorical column {name!r} has the value {wrong[0]:g}; categories are integers from 0.")
        if column in known and not np.isin(values, known[column]).all():
            value = values[~np.isin(values, known[column])][0]
            seen = ", ".join(f"{v:g}" for v in known[column][:10])
            more = ", ..." if len(known[column]) > 10 else ""
            raise InputError(
                f"categorical column {name!r} has the value {value:g}, which the training data has not: "
                f"it has {seen}{more}."
            )


def typical_example(examples: Array, categorical: Sequence[int]) -> Array:
    """Return the mean of examples (n, ..., columns), or the most frequent value in categorical columns, (..., columns).

    Example:
        >>> typical_example(np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 0.0]]), [1]).tolist()
        [3.0, 2.0]
    """
    cells = examples.reshape(len(examples), -1)
    found = cells.mean(axis=0)
    for cell in range(len(found)):
        if cell % examples.shape[-1] in categorical:
            values, counts = np.unique(cells[:, cell], return_counts=True)
            found[cell] = values[counts.argmax()]
    return np.asarray(found.reshape(examples.shape[1:]), dtype=np.float64)


def as_numbers(raw: Any, names: Sequence[str] | None = None) -> Array:
    """Return numbers in any form as float64 in the same shape; labelled ones in the order of the names."""
    if isinstance(raw, Tensor):
        raw = raw.detach().to(device="cpu", dtype=torch.float64).numpy()  # numpy has no bfloat16
    elif hasattr(raw, "to_numpy"):
        raw = _ordered(raw, names).to_numpy()
    try:
        return np.array(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected rows of numbers, but {type(raw).__name__} cannot be converted to numbers ({error}); encode "
            "categories as integers."
        ) from error


def _ordered(raw: Any, names: Sequence[str] | None) -> Any:
    """Return a DataFrame or Series with its columns in the order of the names."""
    labels = list(raw.columns) if hasattr(raw, "columns") else list(raw.index)
    is_series = not hasattr(raw, "columns")
    unlabelled = labels == list(range(len(labels)))
    if names is None or unlabelled:
        return raw
    by_name = {str(label): label for label in labels}
    if set(by_name) != set(names):
        missing = [n for n in names if n not in by_name]
        extra = [n for n in by_name if n not in set(names)]
        raise InputError(
            f"the {'Series' if is_series else 'DataFrame'} and the adapter have different columns: missing {missing}, "
            f"unknown {extra}."
        )
    order = [by_name[n] for n in names]
    return raw[order] if not is_series else raw.loc[order]
