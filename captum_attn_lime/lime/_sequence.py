"""`LimeSequence`: the official recurrent LIME over the cells of sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.adapters import SequenceAdapter, SequenceEncoding
from captum_attn_lime.adapters.numeric._columns import check_categories, column_indices, names_of_categories
from captum_attn_lime.adapters.numeric._sequence import training_sequences
from captum_attn_lime.adapters.numeric._series import (
    as_sequences,
    cell_names,
    cells_of,
    cells_of_series,
    sequences_of,
    series_names,
)
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array, check_callable
from captum_attn_lime.lime._rows import Semantics, needs_training_data
from captum_attn_lime.lime._tabular import LimeTabular


class LimeSequence(LimeTabular):
    r"""The ``RecurrentTabularExplainer`` of the official lime package as a Captum attribution.

    Its features are the cells: the value of one series at one step. Like lime's class, it is :class:`LimeTabular` over
    sequences as flat rows of cells: step t of series f is column f * steps + t, named ``"f_t-k"`` where k steps follow.
    Perturbed sequences are drawn cell by cell from the training data's distribution, so there are no baselines. A
    cell's number means the same as a column's in :class:`LimeTabular`:

    - ``"contrast"`` (lime's default): a value in the cell's quartile against a value in another.
    - ``"gradient"``: the slope of the local linear model.
    - ``"times_input"``: the slope times the distance from the cell's mean (compare Integrated Gradients from the mean).

    Cells of categorical series always give the contrast of their category against others. As in :class:`LimeTabular`,
    bins that hold a single value are drawn as that value.

    lime draws cells independently: perturbed sequences do not have the temporal correlations of real ones.

    Args:
        forward_func: A ``SequenceAdapter``; for :meth:`attribute` any function of a tensor (B, steps, series).
        training_data: Sequences (n, steps, series); by default the adapter's.
        semantics: The meaning of the numbers, as above.
        categorical_features: Indices or names of the categorical series (lime needs the indices of their cells); by
            default the adapter's. For a function of an integer tensor all are.
        feature_names: Names of the series; by default the adapter's.
        categorical_names: For a categorical series, by index or name, the names of its categories, for explanations.
        class_names: Names of the classes in explanations; by default the adapter's.
        discretizer: ``"quartile"``, ``"decile"``, ``"entropy"`` (needs ``training_labels``) or a ``BaseDiscretizer`` of
            lime over rows of cells; for ``"contrast"`` only.
        training_labels: Labels of the training sequences, for ``"entropy"`` only.
        sample_around_instance: Whether numeric cells are drawn around the sequence, not around their means; not for
            ``"contrast"``.
        kernel_width: Width of lime's kernel; 0.75 times the root of the number of cells by default.
        distance_metric: Distance between rows of cells, one of scikit-learn's.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Seed of each call's random numbers, so that equal calls return equal results.

    Example:
        >>> sequences = np.random.RandomState(0).normal(size=(200, 3, 1))
        >>> lime = LimeSequence(lambda x: 2 * x[:, 0, 0] - x[:, 2, 0], sequences, semantics="gradient")
        >>> (lime.attribute(torch.full((1, 3, 1), 0.5)).squeeze() * 10).round().int().tolist()
        [20, 0, -10]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        training_data: Any = None,
        *,
        semantics: Semantics = "contrast",
        categorical_features: Sequence[int | str] | None = None,
        feature_names: Sequence[str] | None = None,
        categorical_names: Mapping[int | str, Sequence[str]] | None = None,
        class_names: Sequence[str] | None = None,
        discretizer: Any = "quartile",
        training_labels: Any = None,
        sample_around_instance: bool = False,
        kernel_width: float | None = None,
        distance_metric: str = "euclidean",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        check_callable(forward_func)
        adapter = forward_func if isinstance(forward_func, SequenceAdapter) else None
        names = feature_names
        if names is None:
            names = series_names(training_data) if adapter is None else adapter.feature_names
        sequences = _training(training_data, adapter, names)
        self.n_steps, n_series = sequences.shape[1:]
        self.series_names = tuple(str(n) for n in (range(n_series) if names is None else names))
        if categorical_features is None:
            categorical_features = () if adapter is None else adapter.categorical_features
        categorical = column_indices(categorical_features, self.series_names)
        names_by_series = names_of_categories(
            categorical_names, categorical, self.series_names, sequences.reshape(-1, n_series)
        )
        super().__init__(
            forward_func,
            cells_of(sequences),
            semantics=semantics,
            categorical_features=cells_of_series(categorical, self.n_steps),
            feature_names=cell_names(self.series_names, self.n_steps),
            categorical_names={
                cell: names for f, names in names_by_series.items() for cell in cells_of_series([f], self.n_steps)
            },
            class_names=class_names if class_names is not None or adapter is None else adapter.class_names,
            discretizer=discretizer,
            training_labels=training_labels,
            sample_around_instance=sample_around_instance,
            kernel_width=kernel_width,
            distance_metric=distance_metric,
            model_regressor=model_regressor,
            seed=seed,
        )
        check_categories(self._training, self.categorical_features, self.feature_names, {})
        self._known = {cell: np.unique(self._training[:, cell]) for cell in self.categorical_features}

    def _encoded(self, row: Any) -> Array:
        adapter = self.forward_func
        if not isinstance(adapter, SequenceAdapter):
            raise InputError(
                f"explain needs a SequenceAdapter, but forward_func is {type(adapter).__name__}; make LimeSequence "
                "with a SequenceAdapter around the model."
            )
        cells = self._checked(adapter.arrays(row.sequences if isinstance(row, SequenceEncoding) else row))
        if len(cells) != 1:
            raise InputError(f"explain needs one sequence, but got {len(cells)}; call it for each.")
        return cells

    def _examples(self, rows: Array) -> Array:
        return np.asarray(sequences_of(rows, self.n_steps))

    def _groups(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
        shape = (self.n_steps, len(self.series_names))
        if len(tensors) != 1 or tensors[0].dim() != 3 or tuple(tensors[0].shape[1:]) != shape:
            given = ", ".join(str(tuple(x.shape)) for x in tensors)
            raise InputError(
                f"the training data has {shape[0]} steps of {shape[1]} series, but the inputs have shape {given}; pass "
                f"one tensor (B, {shape[0]}, {shape[1]}), and further arguments as additional_forward_args."
            )
        return (tuple(range(len(self.feature_names))),)

    def _rows(self, tensors: tuple[Tensor, ...], groups: Sequence[Sequence[int]]) -> Array:
        return self._checked(tensors[0])

    def _cells(self, rows: Tensor, group: Sequence[int]) -> Tensor:
        return torch.from_numpy(sequences_of(rows.numpy(), self.n_steps))

    def _checked(self, sequences: Any) -> Array:
        """Return sequences as rows of cells, with finite numbers and categories of the training data."""
        arrays = as_sequences(sequences, self.series_names, self.n_steps)
        cells: Array = cells_of(arrays)
        check_categories(cells, self.categorical_features, self.feature_names, self._known)
        return cells


def _training(given: Any, adapter: SequenceAdapter | None, names: Sequence[str] | None) -> Array:
    """Return the checked training sequences."""
    if given is not None:
        sequences = training_sequences(given, names)
        return sequences if adapter is None else adapter.arrays(sequences)
    if adapter is None or adapter.training_data is None:
        raise needs_training_data()
    return adapter.training_data
