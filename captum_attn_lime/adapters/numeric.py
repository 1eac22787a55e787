"""What adapters over numbers share: the task, batches of examples, probabilities and predictions for lime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._progress import progress
from captum_attn_lime.adapters.base import Adapter, Array
from captum_attn_lime.adapters.outputs import Outputs
from captum_attn_lime.adapters.state import evaluating
from captum_attn_lime.errors import ForwardError, InputError

Task = Literal["classification", "multi_label", "regression"]


class NumericAdapter(Adapter):
    """A model over arrays of numbers, batch first.

    Subclasses write :meth:`arrays` (raw input, checked) and :meth:`tensors` (arrays as the model's tensors).

    Args:
        model: The wrapped model.
        class_names: Names of the classes.
        task: What the outputs are: logits of classes that exclude each other (``"classification"``), of labels that do
            not (``"multi_label"``: each has a probability of its own), or one number an example (``"regression"``).
        outputs: Whether a classifier puts out ``"logits"`` or ``"probabilities"``; found out by default.
        batch_rows: Greatest number of examples that run at once.
    """

    #: What one example is called.
    example = "row"

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str] | None,
        task: Task = "classification",
        outputs: Outputs = "auto",
        batch_rows: int,
    ) -> None:
        if task not in get_args(Task):
            raise InputError(f"task must be 'classification', 'multi_label' or 'regression', but is {task!r}.")
        if (outputs == "predictions") != (task == "regression") and outputs != "auto":
            raise InputError(f"outputs={outputs!r} does not go with task={task!r}; predictions are of a regression.")
        super().__init__(model, class_names=class_names, outputs="predictions" if task == "regression" else outputs)
        if not isinstance(batch_rows, int) or batch_rows < 1:
            raise InputError(f"batch_rows must be a positive number of rows, but is {batch_rows!r}.")
        self.task = task
        self.batch_rows = batch_rows

    def arrays(self, raw: Any) -> Array:
        """Return raw input as (n, ...) float64, checked."""
        raise NotImplementedError

    def tensors(self, array: Array) -> tuple[Tensor, ...]:
        """Return examples (n, ...) as the tensors that :meth:`forward` takes, on the model's device."""
        raise NotImplementedError

    def outputs(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the model's outputs, (n, columns) float64, in eval mode and without gradients."""
        array = self.arrays(raw)
        found = []
        with evaluating(self.model), torch.no_grad(), progress(len(array), show_progress, f"{self.example}s") as tick:
            for start in range(0, len(array), self.batch_rows):
                found.append(self._run(*self.tensors(array[start : start + self.batch_rows])))
                tick(len(found[-1]))
        return np.concatenate(found)

    def predict_proba(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return class probabilities, (n, classes) float64: lime's ``predict_fn`` for classification."""
        if self.task == "regression":
            raise InputError("predict_proba is for classification and this adapter's task is regression; use predict.")
        return super().predict_proba(raw, show_progress=show_progress)

    def predict(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the prediction for each example, (n,) float64: lime's ``predict_fn`` for regression.

        Raises:
            InputError: The adapter's task is not regression.
            ForwardError: The model returns more than one number an example.
        """
        if self.task != "regression":
            raise InputError(f"predict is for regression and this adapter's task is {self.task}; use predict_proba.")
        out = self.logits(raw, show_progress=show_progress)
        if out.shape[1] != 1:
            raise ForwardError(f"regression needs one number a {self.example}, but the model returned {out.shape[1]}.")
        return out[:, 0]

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        return self.tensors(self.arrays(raw)[:1])

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the model's numbers."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def _problem_type(self) -> Any:
        return "multi_label_classification" if self.task == "multi_label" else super()._problem_type
