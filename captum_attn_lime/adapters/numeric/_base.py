"""`NumericAdapter`, the base of adapters over numbers: tasks, batches, baselines and categories."""

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
from captum_attn_lime.adapters._state import cudnn_off, evaluating, probing
from captum_attn_lime.adapters.numeric._categories import (
    another_category,
    check_whole,
    lookup_columns,
    with_nan_gradient,
)
from captum_attn_lime.adapters.numeric._columns import (
    as_numbers,
    check_categories,
    column_indices,
    typical_example,
)
from captum_attn_lime.errors import InputError, SelectionError

# Number of examples that probe whether a gradient reaches a column.
_PROBED = 32

Task = Literal["classification", "multi_label", "regression"]


class NumericAdapter(Adapter):
    """A model over arrays of numbers, batch first.

    Subclasses implement :meth:`arrays` (raw input, checked) and :meth:`tensors` (arrays as the model's tensors), and
    describe the arguments.
    """

    #: The word for one example.
    example = "row"

    feature_names: tuple[str, ...] | None
    categorical_features: tuple[int, ...]
    _training: Array | None
    _known_categories: dict[int, Array]  # sorted categories in the training data, by categorical column

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
        if task not in get_args(Task):
            raise InputError(f"task must be 'classification', 'multi_label' or 'regression', but is {task!r}.")
        if (outputs == "predictions") != (task == "regression") and outputs != "auto":
            raise InputError(f"outputs={outputs!r} does not go with task={task!r}; only a regression has predictions.")
        super().__init__(model, class_names=class_names, outputs="predictions" if task == "regression" else outputs)
        check_count("batch_size", batch_size, f"{self.example}s")
        self.task = task
        self.batch_size = batch_size
        self._check_model()
        names = self._names_in(training_data) if feature_names is None else tuple(str(n) for n in feature_names)
        training = None if training_data is None else self._training_examples(training_data, names)
        self._training = training
        if names is None and training is not None:
            names = tuple(str(i) for i in range(training.shape[-1]))
        self.feature_names = names
        self.categorical_features = column_indices(categorical_features, names)
        self._known_categories = {}
        if training is not None:
            self._check_categories(training)
            self._known_categories = {c: np.unique(training[..., c]) for c in self.categorical_features}

    def _check_model(self) -> None:
        """Raise if the model's ``forward`` cannot take the examples."""

    def _names_in(self, training_data: Any) -> tuple[str, ...] | None:
        """Return the column names that training data carries, if any."""
        raise NotImplementedError

    def _training_examples(self, training_data: Any, names: tuple[str, ...] | None) -> Array:
        """Return training data as (n, ..., columns) float64, checked."""
        raise NotImplementedError

    def _settings(self) -> list[str]:
        return [f"task={self.task!r}"]

    @property
    def training_data(self) -> Array | None:
        """The training examples, (n, columns) or (n, steps, series) float64, or None."""
        return self._training

    def arrays(self, raw: Any) -> Array:
        """Return raw input as (n, ...) float64, checked."""
        raise NotImplementedError

    def tensors(self, array: Array) -> tuple[Tensor, ...]:
        """Return examples (n, ...) as arguments of :meth:`forward`, on the model's device."""
        raise NotImplementedError

    def outputs(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the model's outputs, (n, columns) float64, in eval mode and without gradients.

        Args:
            raw: One example or several, in any form that :meth:`encode` accepts.
            show_progress: Show a progress bar over the examples.

        Raises:
            InputError: Wrong shape, a value that is not a finite number, or an unknown category.
            ForwardError: The model returns NaN.
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
        """Return the predictions, float64: (n,) as lime's ``predict_fn`` for regression, or (n, outputs) for several.

        Args:
            raw: One example or several, in any form that :meth:`encode` accepts.
            show_progress: Show a progress bar over the examples.

        Raises:
            InputError: The adapter's task is not regression.
        """
        if self.task != "regression":
            raise InputError(f"predict is for regression and this adapter's task is {self.task}; use predict_proba.")
        out = self.logits(raw, show_progress=show_progress)
        return out[:, 0] if out.shape[1] == 1 else out

    @property
    def embeddings(self) -> list[nn.Module]:
        """The layers that embed categories, in calling order, for Captum's layer methods.

        Categories have no gradient, but their embeddings do: ``LayerIntegratedGradients(adapter, adapter.embeddings)``.

        Raises:
            SelectionError: No layer embeds categories; a layer is called once for each of several columns, which Captum
                cannot tell apart; or there is no training data to run the model on.
        """
        array = self._examples()
        found: list[nn.Module] = []
        calls: list[nn.Module] = []

        def look(layer: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> None:
            calls.append(layer)
            ids = args[0] if args and isinstance(args[0], Tensor) and len(args[0]) else torch.zeros(1)
            if layer not in found and len(ids) % 2 == 0 and not torch.equal(*ids.chunk(2)):
                found.append(layer)

        layers = [m for m in self.model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        handles = [layer.register_forward_pre_hook(partial(look, layer)) for layer in layers]
        try:
            with probing(self.model):
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
                f"an nn.Embedding of {type(self.model).__name__} is called several times in one run, once for each "
                "column, and Captum's layer methods cannot tell the calls apart; use FeatureAblation, "
                "ShapleyValueSampling or LIME over the columns."
            )
        return found

    @property
    def embedding(self) -> nn.Module:
        """The layer that embeds the categories, if a single one embeds all.

        Raises:
            SelectionError: There is none, or there are several, as in :attr:`embeddings`.
        """
        found = self.embeddings
        if len(found) > 1:
            raise SelectionError(
                f"{type(self.model).__name__} embeds its categories in {len(found)} layers; use adapter.embeddings, "
                "a list that LayerIntegratedGradients accepts, or one of them."
            )
        return found[0]

    def _check_categories(self, array: Array) -> None:
        """Raise if categorical columns of examples (n, ..., columns) hold an invalid or unknown category."""
        rows = array.reshape(-1, array.shape[-1])
        check_categories(rows, self.categorical_features, self.feature_names, self._known_categories)

    def _baselines(self, chosen: Any, shape: tuple[int, ...]) -> Array:
        """Return the baselines of examples of a shape (n, ...), in that shape.

        Args:
            chosen: ``"mean"``, ``"zero"``, an array that broadcasts to the shape, or None for the mean if there is
                training data, else zero.
            shape: The shape.

        Raises:
            InputError: There is no such baseline, it does not fit, or the mean needs training data.
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
        """Return one example to run the model on, (1, ...)."""
        if self._training is not None:
            return self._training[:1]
        raise SelectionError(
            "finding the layers that embed categories needs an example to run the model on; pass training_data= to the "
            f"{type(self).__name__}, or pass the layer to the method yourself."
        )

    def _with_other_categories(self, array: Array) -> Array:
        """Return examples (n, ..., columns) with a different category in every categorical column."""
        out = np.array(array, dtype=np.float64)
        for column in self.categorical_features:
            out[..., column] = another_category(out[..., column], self._known_categories.get(column))
        return out

    def _other_inputs(self, encoding: Any) -> tuple[Tensor, ...]:
        """Return an encoding's input tensors with a different category in every categorical column."""
        array = getattr(encoding, "sequences", None)
        array = encoding.rows if array is None else array
        return self.tensors(self._with_other_categories(array))

    def _run_numbers(self, x: Tensor) -> Any:
        """Run the model on one tensor, (n, ..., columns), that may hold categories.

        A model that converts them to ids would have gradients of exactly 0 there. This makes them NaN, and raises if a
        method interpolates between categories.
        """
        if not (self.categorical_features and x.requires_grad and torch.is_grad_enabled()):
            return self._active_model(x)
        array = x.detach().to(device="cpu", dtype=torch.float64).numpy()
        if self._training is not None:
            array = self._training
        array = array[:_PROBED].copy()
        array[..., list(self.categorical_features)] = array[..., list(self.categorical_features)].round()
        (examples,), (others,) = self.tensors(array), self.tensors(self._with_other_categories(array))
        with probing(self.model), cudnn_off():  # for recurrent layers
            columns = lookup_columns(
                lambda t: self._read(self._active_model(t), (t,)), examples, others, self.categorical_features
            )
        if not columns:
            return self._active_model(x)
        check_whole(x, columns, self.feature_names, type(self.model).__name__)
        return self._active_model(with_nan_gradient(x, columns))

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        return self.tensors(self.arrays(raw)[:1])

    @property
    def _problem_type(self) -> Any:
        return "multi_label_classification" if self.task == "multi_label" else super()._problem_type
