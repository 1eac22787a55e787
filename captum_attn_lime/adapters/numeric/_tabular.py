"""`TabularAdapter`: a model over table rows as a Captum forward function and a lime classifier function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime.adapters._encoding import Encoding, counted
from captum_attn_lime.adapters._outputs import Array, Outputs
from captum_attn_lime.adapters.numeric._base import NumericAdapter, Task
from captum_attn_lime.adapters.numeric._categories import as_ids
from captum_attn_lime.adapters.numeric._columns import (
    as_table,
    column_features,
    table_names,
)
from captum_attn_lime.adapters.numeric._table_forward import Place, ProbeRows, TableForward, decide, table_forwards
from captum_attn_lime.errors import InputError

_PASS = "pass adapter.encode(rows).inputs"


@dataclass(frozen=True, eq=False, repr=False)
class TabularEncoding(Encoding):
    """Rows as tensors, with their columns as features.

    Attributes:
        rows: The rows in the user's column order, (B, columns) float64.
    """

    rows: Array

    def _examples(self) -> str:
        n, columns = self.rows.shape
        return f"{counted(n, 'row')} of {counted(columns, 'column')}"


class TabularAdapter(NumericAdapter):
    """A model over table rows, ready for Captum and for lime.

    The model is called as ``model(x)`` with all columns as numbers, with numeric and categorical columns apart as
    ``model(x_num, x_cat)`` or ``model(x_cat, x_num)``, or with a dictionary. A missing kind of column is None, or
    (n, 0) if the model needs a tensor. The signature of ``forward`` decides: two parameters without default, or one
    with the default None and "cat" or "categories" in its name, mean separate columns, and their names tell the order.
    If they do not, the model runs on three rows: the categories are what it looks up.

    The adapter itself always takes the numeric columns first.

    Args:
        model: The model. It returns (n, classes) or (n,), a tuple that begins with it, or ``.logits``.
        training_data: Rows (n, columns) as array or DataFrame. They define the names, the possible categories and the
            baselines; LIME draws from them.
        categorical_features: Indices or names of the columns that hold categories, as integers from 0.
        feature_names: Names of the columns; by default those of the DataFrame, or "0", "1", ...
        class_names: Names of the classes, or of a regression's outputs.
        task: ``"classification"``, ``"multi_label"`` for labels that do not exclude each other, or ``"regression"``.
        outputs: What a classifier returns: ``"logits"``, ``"probabilities"`` (it ends in softmax or sigmoid), or
            ``"auto"`` to find out.
        batch_size: Greatest number of rows that :meth:`predict_proba` runs at once.
        forward_names: Where ``forward`` takes the "numeric" and the "categorical" columns, if the adapter cannot find
            out: names of parameters, positions from 0, or keys of its dictionary, as in
            ``{"numeric": "b", "categorical": "a"}`` or ``{"categorical": 0, "numeric": 1}``.

    Raises:
        ForwardError: The adapter cannot find out how the model takes its columns, or the model needs more than columns.

    Example:
        >>> adapter = TabularAdapter(nn.Linear(2, 3), feature_names=["age", "income"])
        >>> x = adapter.encode([[30, 2.5]])
        >>> x.feature_names, adapter(x.inputs).shape, adapter.predict_proba([30, 2.5]).shape
        ((('age', 'income'),), torch.Size([1, 3]), (1, 3))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        training_data: Any = None,
        categorical_features: Sequence[int | str] = (),
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        task: Task = "classification",
        outputs: Outputs = "auto",
        batch_size: int = 1024,
        forward_names: Mapping[str, Place] | None = None,
    ) -> None:
        super().__init__(
            model,
            training_data=training_data,
            categorical_features=categorical_features,
            feature_names=feature_names,
            class_names=class_names,
            task=task,
            outputs=outputs,
            batch_size=batch_size,
        )
        self._ways = table_forwards(model, forward_names)
        self._way: TableForward | None = None
        if self.feature_names is not None:
            self._decided(len(self.feature_names))

    def _names_in(self, training_data: Any) -> tuple[str, ...] | None:
        return table_names(training_data)

    def _training_examples(self, training_data: Any, names: tuple[str, ...] | None) -> Array:
        return as_table(training_data, names)

    def encode(
        self,
        rows: Any,
        *,
        features: Literal["column"] | Sequence[Sequence[int | str]] = "column",
        baselines: Any = None,
    ) -> TabularEncoding:
        """Return a row or rows as tensors with their columns as features.

        Args:
            rows: One row or several: sequence, array, tensor, pandas Series or DataFrame.
            features: ``"column"``, or groups of columns, by index or name, that are one feature each, such as
                ``[["latitude", "longitude"]]``; columns outside groups are single features. Features are in the order
                of their first columns.
            baselines: ``"mean"``, the training data's means (the most frequent category of categorical columns);
                ``"zero"``; or an array that broadcasts to the rows, such as (columns,). By default the mean if there is
                training data, else zero.

        Raises:
            InputError: Wrong columns, a value that is not a finite number, an unknown category, or features or
                baselines that do not fit.
        """
        table = self.arrays(rows)
        columns = self.feature_names or tuple(str(i) for i in range(table.shape[1]))
        feature_of, names = column_features(features, columns)
        ids = np.broadcast_to(np.array(feature_of, dtype=np.float64), table.shape)
        mask = tuple(t.to(torch.int64) for t in self._split(ids, torch.float64))
        return TabularEncoding(
            inputs=_one_or_all(self.tensors(table)),
            forward_args=(),
            baselines=_one_or_all(self.tensors(self._baselines(baselines, table.shape))),
            feature_mask=_one_or_all(mask),
            feature_names=(names,) * len(table),
            rows=table,
        )

    def arrays(self, raw: Any) -> Array:
        """Return rows in any form that :meth:`encode` accepts as (n, columns) float64 in the user's column order.

        Raises:
            InputError: Wrong columns, a value that is not a finite number, or an unknown category.
        """
        table = as_table(raw, self.feature_names)
        if self.categorical_features and max(self.categorical_features) >= table.shape[1]:
            raise InputError(
                f"categorical_features names column {max(self.categorical_features)}, "
                f"but the rows have {table.shape[1]} columns."
            )
        self._check_categories(table)
        return table

    def tensors(self, table: Array) -> tuple[Tensor, ...]:
        """Return rows (n, columns) as arguments of :meth:`forward`.

        One tensor with all columns; or, for a model that takes them apart, the numeric columns (n, numeric) in the
        model's dtype and the categorical ones (n, categorical) int64, without empty kinds.
        """
        return self._split(table, self._dtype)

    def rows_of(self, tensors: Sequence[Tensor]) -> Array:
        """Return rows, (n, columns) float64 in the user's column order, from tensors: the inverse of :meth:`tensors`.

        Args:
            tensors: One tensor (n, columns), or the numeric (n, numeric) and the categorical (n, categorical) columns.

        Raises:
            InputError: Wrong number or shapes of tensors.
        """
        groups = self.column_groups(sum(t.shape[-1] for t in tensors))
        if len(groups) != len(tensors) or any(t.dim() != 2 for t in tensors):
            raise InputError(
                f"expected {len(groups)} tensor(s) (n, columns), not {[tuple(t.shape) for t in tensors]}; {_PASS}."
            )
        if any(t.shape[1] != len(group) for t, group in zip(tensors, groups, strict=True)):
            raise InputError(
                f"expected {[len(g) for g in groups]} columns per tensor, got {[t.shape[1] for t in tensors]}."
            )
        out = np.empty((len(tensors[0]), sum(len(g) for g in groups)))
        for tensor, group in zip(tensors, groups, strict=True):
            out[:, list(group)] = tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
        return out

    def column_groups(self, n_columns: int) -> tuple[tuple[int, ...], ...]:
        """Return the columns in each tensor of :meth:`tensors`, in order."""
        if not self._decided(n_columns).is_split:
            return (tuple(range(n_columns)),)
        numeric = tuple(c for c in range(n_columns) if c not in self.categorical_features)
        return tuple(group for group in (numeric, self.categorical_features) if group)

    def _split(self, table: Array, dtype: torch.dtype) -> tuple[Tensor, ...]:
        is_split = self._decided(table.shape[1]).is_split
        out = []
        for group in self.column_groups(table.shape[1]):
            is_categories = is_split and group == self.categorical_features
            part = torch.from_numpy(np.ascontiguousarray(table[:, list(group)]))
            out.append(part.to(device=self.device, dtype=torch.int64 if is_categories else dtype))
        return tuple(out)

    def _decided(self, n_columns: int) -> TableForward:
        """Return how the model takes its columns; cached after the first call."""
        if self._way is None:
            table = np.tile(np.zeros(n_columns) if self._training is None else self._training[0], (3, 1))
            numeric = [c for c in range(n_columns) if c not in self.categorical_features]
            categorical = list(self.categorical_features)
            table[:2, numeric], table[2, numeric] = 0.0, 1.0
            table[1] = self._with_other_categories(table[1])
            whole = torch.from_numpy(table).to(device=self.device, dtype=self._dtype)
            rows = ProbeRows(
                whole,
                whole[:, numeric] if numeric else None,
                whole[:, categorical].to(torch.int64) if categorical else None,
            )
            self._way = decide(self.model, self._ways, rows)
        return self._way

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        name = type(self.model).__name__
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        if any(t.dim() != 2 for t in tensors):
            raise InputError(f"a TabularAdapter runs on rows (n, columns), but got shapes {shapes}; {_PASS}.")
        n_columns = sum(t.shape[1] for t in tensors)
        way = self._decided(n_columns if self.feature_names is None else len(self.feature_names))
        if not way.is_split:
            if len(tensors) != 1:
                raise InputError(f"{name} takes one tensor of rows, but got {len(tensors)}.")
            return self._run_numbers(tensors[0])
        wanted = [len(group) for group in self.column_groups(n_columns)]
        if [t.shape[1] for t in tensors] != wanted:
            raise InputError(
                f"{name} takes the numeric and the categorical columns as two tensors, here of {wanted} columns, but "
                f"got {shapes}; {_PASS}."
            )
        numeric, categorical = tensors[0], tensors[-1]
        if not self.categorical_features:
            return way.call(self._active_model, numeric, None)
        return way.call(self._active_model, numeric if len(tensors) == 2 else None, as_ids(categorical, name))


def _one_or_all(tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tensors[0] if len(tensors) == 1 else tensors
