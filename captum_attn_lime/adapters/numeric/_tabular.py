"""`TabularAdapter`: a model over feature rows as a Captum forward function and a lime classifier function."""

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
from captum_attn_lime.adapters.numeric._table_forward import Place, TableForward, TrialRows, decide, table_forwards
from captum_attn_lime.errors import InputError

_TAKE = "take them from adapter.encode(rows).inputs"


@dataclass(frozen=True, eq=False, repr=False)
class TabularEncoding(Encoding):
    """Rows as tensors, with their columns as features.

    Attributes:
        rows: The rows in the user's order of columns, (B, columns) float64.
    """

    rows: Array

    def _examples(self) -> str:
        n, columns = self.rows.shape
        return f"{counted(n, 'row')} of {counted(columns, 'column')}"


class TabularAdapter(NumericAdapter):
    """A model over table rows, ready for Captum and for lime.

    The model is called as ``model(x)`` with all columns as numbers, or with numeric and categorical columns apart, as
    ``model(x_num, x_cat)`` or ``model(x_cat, x_num)``; None, or else (n, 0), stands for a kind of column that there is
    not. Which of these is read off its forward: two parameters that have no default, or one of None and "cat" or
    "categories" in its name, make the second form, and their names say which comes first. Where they do not, the model
    is tried out on three rows: the categories are what it looks up. A forward of one dictionary gets one.

    Whatever the order of the model, the adapter itself takes the numeric columns first.

    Args:
        model: The model. It returns (n, classes) or (n,), a tuple that begins with it, or ``.logits``.
        training_data: Rows (n, columns) as array or DataFrame. Gives the names, the categories that may occur, and
            what stands for "nothing known"; LIME draws from it.
        categorical_features: Indices or names of the columns that hold categories, as integers from 0.
        feature_names: Names of the columns; by default those of the DataFrame, or "0", "1", ...
        class_names: Names of the classes, or of several predicted numbers.
        task: ``"classification"``, ``"multi_label"`` for labels that do not exclude each other, or ``"regression"``
            for a model whose outputs are the predicted numbers, named by ``class_names``.
        outputs: Whether a classifier puts out ``"logits"`` or ``"probabilities"`` (it ends in softmax or sigmoid); by
            default that is found out.
        batch_size: Greatest number of rows that :meth:`predict_proba` runs at once.
        forward_names: Where the model's forward takes the "numeric" and the "categorical" columns, if that cannot be
            found: the names of parameters, their positions from 0, or keys of the dictionary that it takes, as in
            ``{"numeric": "b", "categorical": "a"}`` or ``{"categorical": 0, "numeric": 1}``.

    Raises:
        ForwardError: How the model takes its columns cannot be found, or it needs more than columns.

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
        super().__init__(model, class_names=class_names, task=task, outputs=outputs, batch_size=batch_size)
        names = table_names(training_data) if feature_names is None else tuple(str(n) for n in feature_names)
        training = None if training_data is None else as_table(training_data, names, _count(names))
        self._learn(training, names, categorical_features)
        self._ways = table_forwards(model, forward_names)
        self._way: TableForward | None = None
        if self.feature_names is not None:
            self._decided(len(self.feature_names))

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
                ``[["latitude", "longitude"]]``; a column of no group is a feature of its own. The features come in
                the order of their first columns.
            baselines: What stands for "nothing known": ``"mean"``, the training data's means (of categories the most
                frequent one); ``"zero"``; or an array that broadcasts to the rows, such as (columns,). By default the
                mean where there is training data, and else zero.

        Raises:
            InputError: Wrong columns, a value that is not a finite number, a category that cannot occur, or features
                or baselines that do not fit.
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
        """Return rows as (n, columns) float64 in the user's order, checked.

        Args:
            raw: One row or several: sequence, array, tensor, pandas Series or DataFrame.

        Raises:
            InputError: Wrong columns, a value that is not a finite number, or a category that cannot occur.
        """
        table = as_table(raw, self.feature_names, _count(self.feature_names))
        if self.categorical_features and max(self.categorical_features) >= table.shape[1]:
            raise InputError(
                f"categorical_features names column {max(self.categorical_features)}, "
                f"but the rows have {table.shape[1]} columns."
            )
        self._check_categories(table)
        return table

    def tensors(self, table: Array) -> tuple[Tensor, ...]:
        """Return rows (n, columns) as the tensors that :meth:`forward` takes.

        One tensor (all columns), or for a model of two kinds of column the numeric ones (n, numeric) in the model's
        dtype and the categorical ones (n, categorical) int64, whichever there are.
        """
        return self._split(table, self._dtype)

    def rows_of(self, tensors: Sequence[Tensor]) -> Array:
        """Return the rows, (n, columns) float64 in the user's order, that tensors of :meth:`tensors` stand for.

        Args:
            tensors: One tensor (n, columns), or the numeric (n, numeric) and the categorical (n, categorical) columns.

        Raises:
            InputError: Other tensors than the model has.
        """
        groups = self.column_groups(sum(t.shape[-1] for t in tensors))
        if len(groups) != len(tensors) or any(t.dim() != 2 for t in tensors):
            raise InputError(
                f"expected {len(groups)} tensor(s) (n, columns), got shapes {[tuple(t.shape) for t in tensors]}; "
                "take them from adapter.encode(rows).inputs."
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
        """Return for each tensor of :meth:`tensors` the columns that it holds, in order."""
        if not self._decided(n_columns).takes_two:
            return (tuple(range(n_columns)),)
        numeric = tuple(c for c in range(n_columns) if c not in self.categorical_features)
        return tuple(group for group in (numeric, self.categorical_features) if group)

    def _split(self, table: Array, dtype: torch.dtype) -> tuple[Tensor, ...]:
        takes_two = self._decided(table.shape[1]).takes_two
        out = []
        for group in self.column_groups(table.shape[1]):
            is_categories = takes_two and group == self.categorical_features
            part = torch.from_numpy(np.ascontiguousarray(table[:, list(group)]))
            out.append(part.to(device=self.device, dtype=torch.int64 if is_categories else dtype))
        return tuple(out)

    def _decided(self, n_columns: int) -> TableForward:
        """Return how the model takes its columns, found out the first time."""
        if self._way is None:
            table = np.tile(np.zeros(n_columns) if self._training is None else self._training[0], (3, 1))
            numeric = [c for c in range(n_columns) if c not in self.categorical_features]
            categorical = list(self.categorical_features)
            table[:2, numeric], table[2, numeric] = 0.0, 1.0
            table[1] = self._with_other_categories(table[1])
            whole = torch.from_numpy(table).to(device=self.device, dtype=self._dtype)
            rows = TrialRows(
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
            raise InputError(
                f"a TabularAdapter runs on rows (n, columns), but tensors of shape {shapes} came; {_TAKE}."
            )
        n_columns = sum(t.shape[1] for t in tensors)
        way = self._decided(n_columns if self.feature_names is None else len(self.feature_names))
        if not way.takes_two:
            if len(tensors) != 1:
                raise InputError(f"{name} takes one tensor of rows, but {len(tensors)} came.")
            return self._run_numbers(tensors[0])
        wanted = [len(group) for group in self.column_groups(n_columns)]
        if [t.shape[1] for t in tensors] != wanted:
            raise InputError(
                f"{name} takes the numeric and the categorical columns as two tensors, here of {wanted} columns, but "
                f"{shapes} came; {_TAKE}."
            )
        numeric, categorical = tensors[0], tensors[-1]
        if not self.categorical_features:
            return way.call(self._asked, numeric, None)
        return way.call(self._asked, numeric if len(tensors) == 2 else None, as_ids(categorical, name))


def _count(names: Sequence[str] | None) -> int | None:
    return None if names is None else len(names)


def _one_or_all(tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tensors[0] if len(tensors) == 1 else tensors
