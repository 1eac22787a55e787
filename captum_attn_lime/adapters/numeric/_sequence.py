"""`SequenceAdapter`: a time series model as a Captum forward function and a lime classifier function."""

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
from captum_attn_lime.adapters._outputs import Array, named_tensor
from captum_attn_lime.adapters._shallow_copy import modules_of
from captum_attn_lime.adapters._state import cudnn_off
from captum_attn_lime.adapters.numeric._base import NumericAdapter
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
    """A time series model, ready for Captum and for lime: a recurrent network, or a transformer over steps.

    The model is called as ``model(x)`` with x (n, steps, series) and returns one prediction per sequence. Categorical
    series are numbers in x, which the model converts to ids.

    When gradients are needed, recurrent layers run without cuDNN, whose backward pass fails in eval mode.

    Args:
        model: The model. It returns (n, classes) or (n,), a tuple that begins with it, or ``.logits``.
        training_data: Sequences (n, steps, series). They define the number of steps, the possible categories and the
            baselines; LIME draws from them.
        categorical_features: Indices or names of the series that hold categories, as integers from 0.
        feature_names: Names of the series; by default those of DataFrames, or "0", "1", ...
        class_names, task, outputs: As in :class:`TabularAdapter`.
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

    def _check_model(self) -> None:
        _check_one_argument(self.model)

    def _names_in(self, training_data: Any) -> tuple[str, ...] | None:
        return series_names(training_data)

    def _training_examples(self, training_data: Any, names: tuple[str, ...] | None) -> Array:
        return training_sequences(training_data, names)

    def encode(self, sequences: Any, *, features: SeriesFeatures = "cell", baselines: Any = None) -> SequenceEncoding:
        """Return a sequence or sequences as a tensor (B, steps, series) with its features.

        Args:
            sequences: (steps, series) or (n, steps, series): nested lists, array, tensor, DataFrame with one row per
                step, or a list of DataFrames.
            features: What one feature is: ``"cell"`` (one step of one series, as in lime), ``"step"`` or ``"series"``.
            baselines: ``"mean"``, the training data's mean of each cell (the most frequent category of categorical
                series); ``"zero"``; or an array that broadcasts to the sequences, such as (series,) or (steps, series).
                By default the mean if there is training data, else zero.

        Raises:
            InputError: Wrong shape, a value that is not a finite number, an unknown category, or features or baselines
                that do not fit.
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
        """Return sequences in any form that :meth:`encode` accepts as (n, steps, series) float64.

        Raises:
            InputError: Wrong shape, a value that is not a finite number, or an unknown category.
        """
        n_steps = None if self._training is None else self._training.shape[1]
        array = as_sequences(raw, self.feature_names, n_steps)
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
                f"a SequenceAdapter runs on one tensor (n, steps, series), but got {shapes}; pass "
                "adapter.encode(sequences).inputs."
            )
        model = self._active_model
        needs_gradients = torch.is_grad_enabled() and not model.training
        is_recurrent = needs_gradients and any(isinstance(module, nn.RNNBase) for module in modules_of(model))
        with cudnn_off() if is_recurrent else nullcontext():
            return self._run_numbers(tensors[0])

    def _read(self, output: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        try:
            return super()._read(output, tensors)
        except ForwardError as error:
            raise ForwardError(f"{error}{_advice(output, tensors[0], self.model)}") from None


def training_sequences(raw: Any, names: Sequence[str] | None) -> Array:
    """Return training sequences as (n, steps, series) float64, checked."""
    sequences = as_sequences(raw, names)
    if len(sequences) < 2:
        raise InputError(
            f"training_data must hold several sequences (n, steps, series), but is one of shape {sequences.shape[1:]}."
        )
    return sequences


def _check_one_argument(model: nn.Module) -> None:
    required = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise ForwardError(
            f"{type(model).__name__}.forward needs {', '.join(required)}, but a SequenceAdapter passes only sequences; "
            "wrap the model in a module that takes them and supplies the rest."
        )


def _advice(output: Any, x: Tensor, model: nn.Module) -> str:
    """Return advice on an output that is not one prediction per sequence."""
    found = named_tensor(output, "logits")
    if not isinstance(found, Tensor):
        return ""
    n, n_steps = x.shape[:2]
    transposed = [name for name, m in model.named_modules() if getattr(m, "batch_first", True) is False]
    if len(found) == n_steps != n and transposed:
        return (
            f" {transposed[0] or 'The model'!r} was made with batch_first=False, but the sequences are batch first: "
            "transpose them in the model, or create it with batch_first=True."
        )
    if found.dim() == 3 and tuple(found.shape[:2]) == (n, n_steps):
        return (
            " It predicts at each step: wrap it in a module whose forward returns the step to explain, such as "
            "`self.model(x)[:, -1]`."
        )
    return ""
