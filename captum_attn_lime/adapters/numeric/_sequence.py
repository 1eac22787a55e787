"""`SequenceAdapter`: a model over time steps as a Captum forward function and a lime classifier function."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime.adapters._encoding import Encoding, counted
from captum_attn_lime.adapters._outputs import Array, Outputs, named_tensor
from captum_attn_lime.adapters._state import cudnn_off
from captum_attn_lime.adapters.numeric._base import NumericAdapter, Task
from captum_attn_lime.adapters.numeric._series import (
    SeriesFeatures,
    as_sequences,
    cells_of,
    features_of,
    series_names,
)
from captum_attn_lime.errors import ForwardError, InputError


@dataclass(frozen=True, eq=False, repr=False)
class SequenceEncoding(Encoding):
    """Sequences as one tensor, with their cells, steps or series as features.

    Attributes:
        sequences: The sequences, (B, steps, series) float64.
    """

    sequences: Array

    def _examples(self) -> str:
        n, steps, series = self.sequences.shape
        return f"{counted(n, 'sequence')} of {steps} x {series}"

    @property
    def rows(self) -> Array:
        """The sequences as lime's rows of cells, (B, series * steps): step t of series f is cell f * steps + t."""
        return cells_of(self.sequences)


class SequenceAdapter(NumericAdapter):
    """A model over sequences of numbers, ready for Captum and for lime: a recurrent network, a transformer over steps.

    The model is called as ``model(x)`` with x (n, steps, series) and gives one prediction a sequence. Categorical
    series stand in x as numbers, which the model itself turns into ids.

    For gradients the model's recurrent layers run without cuDNN, whose backward pass works in training mode alone.

    Args:
        model: The model. It returns (n, classes) or (n,), a tuple that begins with it, or ``.logits``.
        training_data: Sequences (n, steps, series). Gives the number of steps, the categories that may occur and the
            baselines; LIME draws from it.
        categorical_features: Indices or names of the series that hold categories, as integers from 0.
        feature_names: Names of the series; by default those of DataFrames, or "0", "1", ...
        class_names: Names of the classes, or of several predicted numbers.
        task: ``"classification"``, ``"multi_label"`` for labels that do not exclude each other, or ``"regression"``
            for a model whose outputs are the predicted numbers, named by ``class_names``.
        outputs: Whether a classifier puts out ``"logits"`` or ``"probabilities"`` (it ends in softmax or sigmoid); by
            default that is found out.
        batch_size: Greatest number of sequences that :meth:`predict_proba` runs at once.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
        >>> adapter = SequenceAdapter(model, feature_names=["u", "v"])
        >>> x = adapter.encode([[1, 2], [3, 4], [5, 6]])
        >>> x.feature_names[0]
        ('u_t-2', 'u_t-1', 'u_t-0', 'v_t-2', 'v_t-1', 'v_t-0')
        >>> adapter(x.inputs).shape, adapter.predict_proba(np.zeros((4, 3, 2))).shape
        (torch.Size([1, 2]), (4, 2))
    """

    example = "sequence"

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
    ) -> None:
        super().__init__(model, class_names=class_names, task=task, outputs=outputs, batch_size=batch_size)
        _check_takes_one(model)
        names = series_names(training_data) if feature_names is None else tuple(str(n) for n in feature_names)
        training = training_sequences(training_data, names) if training_data is not None else None
        self._learn(training, names, categorical_features)
        self._is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())

    def encode(self, sequences: Any, *, features: SeriesFeatures = "cell", baselines: Any = None) -> SequenceEncoding:
        """Return a sequence or sequences as a tensor (B, steps, series) with its features.

        Args:
            sequences: (steps, series) or (n, steps, series): nested lists, array, tensor, DataFrame with one row per
                step or a list of such.
            features: What one feature is: ``"cell"`` (one step of one series, lime's features), ``"step"`` or
                ``"series"``.
            baselines: What stands for "nothing known": ``"mean"``, the training data's mean in each cell (of categories
                the most frequent one); ``"zero"``; or an array that broadcasts to the sequences, such as (series,) or
                (steps, series). By default the mean where there is training data, and else zero.

        Raises:
            InputError: Wrong shape, a value that is not a finite number, a category that cannot occur, or features or
                baselines that do not fit.
        """
        array = self.arrays(sequences)
        n, n_steps, n_series = array.shape
        names = self.feature_names or tuple(str(i) for i in range(n_series))
        ids, feature_names = features_of(features, n_steps, names)
        mask = torch.from_numpy(ids).to(device=self.device, dtype=torch.int64)
        return SequenceEncoding(
            inputs=self.tensors(array)[0],
            forward_args=(),
            baselines=self.tensors(self._baselines(baselines, array.shape))[0],
            feature_mask=mask.expand(array.shape).contiguous(),
            feature_names=(feature_names,) * n,
            sequences=array,
        )

    def arrays(self, raw: Any) -> Array:
        """Return a sequence or sequences as (n, steps, series) float64, checked.

        Args:
            raw: (steps, series) or (n, steps, series), in any form that :meth:`encode` accepts.

        Raises:
            InputError: Wrong shape, a value that is not a finite number, or a category that cannot occur.
        """
        n_series = None if self.feature_names is None else len(self.feature_names)
        n_steps = None if self._training is None else self._training.shape[1]
        array = as_sequences(raw, self.feature_names, n_series, n_steps)
        if self.categorical_features and max(self.categorical_features) >= array.shape[2]:
            raise InputError(
                f"categorical_features names series {max(self.categorical_features)}, but the sequences have "
                f"{array.shape[2]}."
            )
        self._check_categories(array)
        return array

    def tensors(self, array: Array) -> tuple[Tensor, ...]:
        """Return sequences (n, steps, series) as one tensor in the model's dtype, on its device."""
        tensor = torch.from_numpy(np.array(array, order="C"))  # lime's arrays are transposed views
        return (tensor.to(device=self.device, dtype=self._dtype),)

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        if len(tensors) != 1 or tensors[0].dim() != 3:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise InputError(
                f"a SequenceAdapter runs on one tensor (n, steps, series), but got {shapes}; take it from "
                "adapter.encode(sequences).inputs."
            )
        needs_native = self._is_recurrent and torch.is_grad_enabled() and not self._asked.training
        with cudnn_off() if needs_native else nullcontext():
            return self._run_numbers(tensors[0])

    def _read(self, output: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        try:
            return super()._read(output, tensors)
        except ForwardError as error:
            raise ForwardError(f"{error}{_advice(output, tensors[0], self.model)}") from None


def training_sequences(raw: Any, names: Sequence[str] | None) -> Array:
    """Return training sequences as (n, steps, series) float64, checked."""
    sequences = as_sequences(raw, names, None if names is None else len(names))
    if len(sequences) < 2:
        raise InputError(
            f"training_data must hold several sequences, (n, steps, series), but one of shape {sequences.shape[1:]} "
            "came."
        )
    return sequences


def _check_takes_one(model: nn.Module) -> None:
    required = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise ForwardError(
            f"{type(model).__name__}.forward needs {', '.join(required)}, and a SequenceAdapter gives sequences alone; "
            "wrap the model in a module that takes those and fills in the rest."
        )


def _advice(output: Any, x: Tensor, model: nn.Module) -> str:
    """Return what to do about an output that is not one prediction for each sequence."""
    found = named_tensor(output, "logits")
    if not isinstance(found, Tensor):
        return ""
    n, n_steps = x.shape[:2]
    transposed = [name for name, m in model.named_modules() if getattr(m, "batch_first", True) is False]
    if len(found) == n_steps != n and transposed:
        return (
            f" {transposed[0] or 'The model'!r} was made with batch_first=False, while the sequences come batch first: "
            "transpose them in the model, or make it with batch_first=True."
        )
    if found.dim() == 3 and tuple(found.shape[:2]) == (n, n_steps):
        return (
            " It predicts at each step: wrap it in a module whose forward returns the step to explain, such as "
            "`self.model(x)[:, -1]`."
        )
    return ""
