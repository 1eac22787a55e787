"""What adapters over numbers share: the task, batches of examples, probabilities and predictions for lime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters._base import Adapter
from captum_attn_lime.adapters._checks import check_count
from captum_attn_lime.adapters._outputs import Array, Outputs, without_nan
from captum_attn_lime.adapters._state import cudnn_off, evaluating
from captum_attn_lime.adapters._trial import trial
from captum_attn_lime.adapters.numeric._categories import another_category, check_whole, looked_up, with_no_value
from captum_attn_lime.adapters.numeric._columns import (
    as_numbers,
    check_categories,
    column_indices,
    typical_example,
)
from captum_attn_lime.errors import InputError, SelectionError

# Examples on which it is tried out whether a gradient reaches a column.
_TRIED = 32

Task = Literal["classification", "multi_label", "regression"]


class NumericAdapter(Adapter):
    """A model over arrays of numbers, batch first.

    Subclasses write :meth:`arrays` (raw input, checked) and :meth:`tensors` (arrays as the model's tensors).

    Args:
        model: The wrapped model.
        class_names: Names of the classes.
        task: What the outputs are: logits of classes that exclude each other (``"classification"``), of labels that do
            not (``"multi_label"``: each has a probability of its own), or numbers to predict (``"regression"``), whose
            names are then the ``class_names``.
        outputs: Whether a classifier puts out ``"logits"`` or ``"probabilities"``; found out by default.
        batch_size: Greatest number of examples that run at once.
    """

    #: What one example is called.
    example = "row"

    feature_names: tuple[str, ...] | None
    categorical_features: tuple[int, ...]
    _training: Array | None
    _known: dict[int, Array]  # for each categorical column the categories that the training data has, sorted

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str] | None,
        task: Task = "classification",
        outputs: Outputs = "auto",
        batch_size: int,
    ) -> None:
        if task not in get_args(Task):
            raise InputError(f"task must be 'classification', 'multi_label' or 'regression', but is {task!r}.")
        if (outputs == "predictions") != (task == "regression") and outputs != "auto":
            raise InputError(f"outputs={outputs!r} does not go with task={task!r}; predictions are of a regression.")
        super().__init__(model, class_names=class_names, outputs="predictions" if task == "regression" else outputs)
        check_count("batch_size", batch_size, f"{self.example}s")
        self.task = task
        self.batch_size = batch_size

    def _settings(self) -> list[str]:
        return [f"task={self.task!r}"]

    def _learn(
        self, training: Array | None, names: tuple[str, ...] | None, categorical_features: Sequence[int | str]
    ) -> None:
        """Keep training examples (n, ..., columns), the columns' names, and which categories occur."""
        if names is None and training is not None:
            names = tuple(str(i) for i in range(training.shape[-1]))
        self._training = training
        self.feature_names = names
        self.categorical_features = column_indices(categorical_features, names)
        self._known = {}
        if training is not None:
            self._check_categories(training)
            self._known = {c: np.unique(training[..., c]) for c in self.categorical_features}

    @property
    def training_data(self) -> Array | None:
        """The training examples, (n, columns) or (n, steps, series) float64, or None."""
        return self._training

    def arrays(self, raw: Any) -> Array:
        """Return raw input as (n, ...) float64, checked."""
        raise NotImplementedError

    def tensors(self, array: Array) -> tuple[Tensor, ...]:
        """Return examples (n, ...) as the tensors that :meth:`forward` takes, on the model's device."""
        raise NotImplementedError

    def outputs(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the model's outputs, (n, columns) float64, in eval mode and without gradients.

        Args:
            raw: One example or several, in any form that :meth:`encode` accepts.
            show_progress: Show a bar over the examples.

        Raises:
            InputError: Wrong shape, a value that is not a finite number, or a category that cannot occur.
            ForwardError: The model gives NaN.
        """
        array = self.arrays(raw)
        found = []
        with evaluating(self.model), torch.no_grad(), progress(len(array), show_progress, f"{self.example}s") as tick:
            for start in range(0, len(array), self.batch_size):
                found.append(self._run(*self.tensors(array[start : start + self.batch_size])))
                tick(len(found[-1]))
        return without_nan(np.concatenate(found), type(self.model).__name__, self.example)

    def _check_probabilities(self) -> None:
        if self.task == "regression":
            raise InputError("predict_proba is for classification and this adapter's task is regression; use predict.")
        super()._check_probabilities()

    def predict(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the predictions, float64: (n,), lime's ``predict_fn`` for regression, or (n, outputs) for several.

        Args:
            raw: One example or several, in any form that :meth:`encode` accepts.
            show_progress: Show a bar over the examples.

        Raises:
            InputError: The adapter's task is not regression.
        """
        if self.task != "regression":
            raise InputError(f"predict is for regression and this adapter's task is {self.task}; use predict_proba.")
        out = self.logits(raw, show_progress=show_progress)
        return out[:, 0] if out.shape[1] == 1 else out

    @property
    def embeddings(self) -> list[nn.Module]:
        """The layers that embed categories, in the order in which they are called, for Captum's layer methods.

        Gradients with respect to categories do not exist; with respect to what they are embedded as they do:
        ``LayerIntegratedGradients(adapter, adapter.embeddings)``.

        Raises:
            SelectionError: No layer embeds categories, or one embeds several columns in calls of its own, which Captum
                does not tell apart; or without training data the model cannot be run to find out.
        """
        array = self._examples()
        found: list[nn.Module] = []
        calls: list[nn.Module] = []

        def look(layer: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> None:
            calls.append(layer)
            came = args[0] if args and isinstance(args[0], Tensor) and len(args[0]) else torch.zeros(1)
            if layer not in found and len(came) % 2 == 0 and not torch.equal(*came.chunk(2)):
                found.append(layer)

        layers = [m for m in self.model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        handles = [layer.register_forward_pre_hook(partial(look, layer)) for layer in layers]
        try:
            with trial(self.model):
                self(*self.tensors(np.concatenate([array, self._with_other_categories(array)])))
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise SelectionError(
                f"none of the {len(layers)} nn.Embedding of {type(self.model).__name__} embeds one of the "
                f"{len(self.categorical_features)} categorical columns."
            )
        if any(calls.count(layer) > 1 for layer in found):
            raise SelectionError(
                f"an nn.Embedding of {type(self.model).__name__} is called several times in one run, for one column "
                "after the other, and Captum's layer methods would take the calls for one; use FeatureAblation, "
                "ShapleyValueSampling or LIME over the columns."
            )
        return found

    @property
    def embedding(self) -> nn.Module:
        """The layer that embeds the categories, where there is one for all.

        Raises:
            SelectionError: There is none, or there are several: :attr:`embeddings` are all of them.
        """
        found = self.embeddings
        if len(found) > 1:
            raise SelectionError(
                f"{type(self.model).__name__} embeds its categories by {len(found)} layers; use adapter.embeddings, "
                "which LayerIntegratedGradients takes as they are, or one of them."
            )
        return found[0]

    def _check_categories(self, array: Array) -> None:
        """Raise if categorical columns of examples (n, ..., columns) hold what is no category, or not a known one."""
        rows = array.reshape(-1, array.shape[-1])
        check_categories(rows, self.categorical_features, self.feature_names, self._known)

    def _baselines(self, chosen: Any, shape: tuple[int, ...]) -> Array:
        """Return what stands for "nothing known" in examples of a shape (n, ...), in that shape.

        Args:
            chosen: ``"mean"``, ``"zero"``, an array that broadcasts to the shape, or None for the mean where there is
                training data, and else zero.
            shape: The shape.

        Raises:
            InputError: There is no such baseline, it does not fit, or the mean was asked for without training data.
        """
        if chosen is None:
            chosen = "zero" if self._training is None else "mean"
        if isinstance(chosen, str):
            if chosen not in ("mean", "zero"):
                raise InputError(f"baselines must be 'mean', 'zero' or an array, but is {chosen!r}.")
            if chosen == "zero":
                return np.zeros(shape)
            if self._training is None:
                raise InputError(
                    f"baselines='mean' needs the training data; pass training_data= to the {type(self).__name__}, or "
                    "baselines='zero' or an array."
                )
            return np.broadcast_to(typical_example(self._training, self.categorical_features), shape)
        given = as_numbers(chosen, self.feature_names)
        if not np.isfinite(given).all():
            raise InputError("baselines holds values that are not finite numbers.")
        try:
            found = np.broadcast_to(given, shape)
        except ValueError:
            raise InputError(
                f"baselines of shape {given.shape} do not broadcast to {self.example}s of shape {shape}."
            ) from None
        self._check_categories(found)
        return found

    def _examples(self) -> Array:
        """Return one example to try the model on, (1, ...)."""
        if self._training is not None:
            return self._training[:1]
        raise SelectionError(
            f"the model must be run to find the layers that embed categories; pass training_data= to the "
            f"{type(self).__name__}, or give the method the layer itself."
        )

    def _with_other_categories(self, array: Array) -> Array:
        """Return examples (n, ..., columns) with another category in every categorical column."""
        out = np.array(array, dtype=np.float64)
        for column in self.categorical_features:
            out[..., column] = another_category(out[..., column], self._known.get(column))
        return out

    def _other_inputs(self, encoding: Any) -> tuple[Tensor, ...]:
        """Return an encoding's input tensors with another category in every categorical column."""
        array = getattr(encoding, "sequences", None)
        array = encoding.rows if array is None else array
        return self.tensors(self._with_other_categories(array))

    def _run_numbers(self, x: Tensor) -> Any:
        """Run the model on one tensor, (n, ..., columns), that may hold categories.

        A model that makes ids of them would give gradients of exactly 0. There are none: they become NaN, and a method
        that asks for what lies between two categories raises.
        """
        if not (self.categorical_features and x.requires_grad and torch.is_grad_enabled()):
            return self._asked(x)
        array = x.detach().to(device="cpu", dtype=torch.float64).numpy()
        if self._training is not None:
            array = self._training
        array = array[:_TRIED].copy()
        array[..., list(self.categorical_features)] = array[..., list(self.categorical_features)].round()
        (examples,), (others,) = self.tensors(array), self.tensors(self._with_other_categories(array))
        with trial(self.model), cudnn_off():  # recurrent layers
            columns = looked_up(lambda t: self._read(self._asked(t), (t,)), examples, others, self.categorical_features)
        if not columns:
            return self._asked(x)
        check_whole(x, columns, self.feature_names, type(self.model).__name__)
        return self._asked(with_no_value(x, columns))

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        return self.tensors(self.arrays(raw)[:1])

    @property
    def _problem_type(self) -> Any:
        return "multi_label_classification" if self.task == "multi_label" else super()._problem_type
