"""`Adapter`, the base class: a Captum forward function, and logits and probabilities of raw input for lime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._explained import Explained, Unit, choose, class_index
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._encoding import Tensors
from captum_attn_lime.adapters._outputs import Array, Kind, Outputs, as_logits, in_unit, kind_of
from captum_attn_lime.adapters._state import active_model, evaluating, fast_path_off, modes_kept
from captum_attn_lime.adapters._unit_override import NATIVE_UNIT, UnitOverride, active_override
from captum_attn_lime.adapters._wrappers import configuration
from captum_attn_lime.errors import InputError

_SHOWN = 8  # class names in a repr


class Adapter(nn.Module):
    """A model as a function from tensors to its outputs, and from raw input to logits and probabilities.

    Subclasses implement :meth:`_call` (run the wrapped model on tensors), :meth:`outputs` (raw input to the model's
    outputs) and :meth:`_one` (one raw input to tensors).

    Args:
        model: The wrapped model. :meth:`forward` runs it in its current mode, :meth:`predict_proba` and :meth:`logits`
            in eval mode. Its training flags never change.
        class_names: Names of the classes, or of a regression's outputs.
        outputs: What the model returns: ``"logits"``, ``"probabilities"`` (it ends in softmax or sigmoid),
            ``"predictions"`` (a regression), or ``"auto"`` to find out.
    """

    def __init__(
        self, model: nn.Module, *, class_names: Sequence[str] | None = None, outputs: Outputs = "auto"
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, but is {type(model).__name__}.")
        if outputs not in get_args(Outputs):
            raise InputError(f"outputs must be one of {', '.join(map(repr, get_args(Outputs)))}, but is {outputs!r}.")
        super().__init__()
        self.model = model
        self.training = model.training
        self.class_names = None if class_names is None else tuple(str(name) for name in class_names)
        self._names_are_given = class_names is not None  # a configuration's names may belong to a part of the model
        self.outputs_are: Outputs = outputs

    def __repr__(self) -> str:
        parts = [type(self.model).__name__, *self._settings()]
        if self.class_names is not None:
            names = ", ".join(map(repr, self.class_names[:_SHOWN]))
            parts.append(f"classes=[{names}{', ...' if len(self.class_names) > _SHOWN else ''}]")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _settings(self) -> list[str]:
        """Return the settings that the repr shows between the model and its classes."""
        return []

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the model's outputs, (n, columns), for encoded inputs. Captum calls this method."""
        if not tensors or not all(isinstance(t, Tensor) for t in tensors):
            found = ", ".join(type(t).__name__ for t in tensors) or "nothing"
            raise InputError(f"an adapter runs on tensors, but got {found}; get them from adapter.encode(...).")
        # A model may write into its input, so it gets a copy, except of one row expanded to many.
        tensors = tuple(t if len(t) > 1 and t.stride(0) == 0 else t.clone() for t in tensors)
        with fast_path_off(), modes_kept(self._active_model):
            outputs = self._read(self._call(tensors), tensors)
        answering = active_override.get()
        if answering is None or answering.adapter is not self:
            return outputs
        answering.is_used = True
        return self._in_unit(outputs, answering.unit, answering.kind)

    def outputs(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the model's outputs for raw inputs, (n, columns) float64, in eval mode and without gradients.

        Args:
            raw: One input or several, in any form that :meth:`encode` accepts.
            show_progress: Show a progress bar over the inputs.

        Raises:
            InputError: :meth:`encode` does not accept the input.
            ForwardError: The model returns NaN, or not what its task needs.
        """
        raise NotImplementedError

    def logits(self, raw: Any, *, target: Any = None, show_progress: bool = False) -> Array:
        """Return the logits of raw inputs, (n, columns) float64; for a regression its predictions.

        A classifier with a single logit has one column. Probabilities are converted back to logits: log p, or
        log p / (1 - p) where classes do not exclude each other.

        Args:
            raw: One input or several.
            target: Index or name of the only class to return, (n, 1). The two classes of a single logit z are -z and z.
            show_progress: Show a progress bar over the inputs.

        Raises:
            TargetError: There is no such class.
        """
        if target is not None:
            return self._of_class(raw, target, "prediction" if self.is_regression else "logit", show_progress)
        outputs = self.outputs(raw, show_progress=show_progress)
        kind = self._kind(outputs, raw)
        if kind != "probabilities":
            return outputs
        found = self.as_unit(outputs, "logit", kind)
        return found[:, 1:] if outputs.shape[1] == 1 else found

    def predict_proba(self, raw: Any, *, target: Any = None, show_progress: bool = False) -> Array:
        """Return class probabilities of raw inputs, (n, classes) float64: lime's ``classifier_fn``.

        A single logit z gives the two columns 1 - sigmoid(z) and sigmoid(z). Several logits give their softmax, or the
        sigmoid of each if a HuggingFace configuration says ``"multi_label_classification"``. Outputs that already are
        probabilities stay unchanged.

        Args:
            raw: One input or several.
            target: Index or name of the only class to return, (n, 1).
            show_progress: Show a progress bar over the inputs.

        Raises:
            InputError: The model is a regression, which has no probabilities.
            TargetError: There is no such class.

        Warns:
            OutputsWarning: The adapter had to guess whether outputs are probabilities.
        """
        self._check_probabilities()
        if target is not None:
            return self._of_class(raw, target, "probability", show_progress)
        outputs = self.outputs(raw, show_progress=show_progress)
        return self.as_unit(outputs, "probability", self._kind(outputs, raw))

    def scores(self, raw: Any, unit: Unit, *, show_progress: bool = False) -> Array:
        """Return scores of raw inputs in a unit, one column per class, (n, classes) float64.

        A single logit z gives -z and z, or 1 - p and p. A regression gives its outputs.

        Args:
            raw: One input or several.
            unit: ``"probability"`` or ``"logit"`` for a classifier, ``"prediction"`` for a regression.
            show_progress: Show a progress bar over the inputs.

        Raises:
            InputError: The model has no scores in that unit.
        """
        if unit == "probability":
            return self.predict_proba(raw, show_progress=show_progress)
        found = self.logits(raw, show_progress=show_progress)
        return self.as_unit(found, unit, "predictions" if unit == "prediction" else "logits")

    def explained(
        self, inputs: Tensors, forward_args: Any = (), target: Any = None, *, unit: Unit | None = None
    ) -> Explained:
        """Return the explained number of one encoded example.

        Args:
            inputs: The encoding's inputs, (1, ...) each.
            forward_args: The encoding's further arguments.
            target: Index or name of the class, (position, class), or None for the predicted class. For a regression
                an output; for a vocabulary the id or the text of a token.
            unit: The unit; by default that of the model's outputs, which Captum's methods explain.

        Raises:
            TargetError: There is no such class.
        """
        outputs, kind = self._found(_tensors(inputs, forward_args))
        unit = NATIVE_UNIT[kind] if unit is None else unit
        scores = self._in_unit(outputs.double(), unit, kind)
        return self.choose(scores[0].cpu(), target, unit, kind, outputs.shape[-1])

    def choose(self, scores: Any, target: Any, unit: Unit, kind: Kind, columns: int) -> Explained:
        """Return the explained number, chosen from the scores of one example.

        Args:
            scores: Scores in the unit, (classes,), or (N, classes) from a model that predicts for each token.
            target: As in :meth:`explained`.
            unit: The unit.
            kind: What the model returns.
            columns: How many columns it returns.

        Raises:
            TargetError: There is no such class.
        """
        unit, two_sided = self._naming(unit, kind, columns)
        names = self.names_of(scores.shape[-1])
        return choose(scores, self.with_token_ids(target), unit, names, two_sided=two_sided)

    def outputs_of(self, *tensors: Tensor) -> Array:
        """Return the model's outputs for one batch of encoded examples, float64.

        The model runs once on the inputs and further arguments, each (n, ...): in eval mode and without gradients. The
        random state is restored.
        """
        with evaluating(self.model), torch.no_grad(), without_drawing():
            return self._run(*tensors)

    def kind_of(self, outputs: Array, *tensors: Tensor) -> Kind:
        """Return the kind of the outputs that :meth:`outputs_of` returned for encoded examples.

        Warns:
            OutputsWarning: The adapter had to guess whether outputs are probabilities.
        """
        return self._kind_of(torch.from_numpy(outputs), lambda: tuple(t[:1] for t in tensors))

    def columns(self, inputs: Tensors, forward_args: Any = ()) -> int:
        """Return how many columns the model returns, from a run on the first encoded example."""
        return int(self._run_once(tuple(t[:1] for t in _tensors(inputs, forward_args))).shape[-1])

    def naming(self, unit: Unit, inputs: Tensors, forward_args: Any = ()) -> tuple[Unit, bool]:
        """Return the name of a unit, and whether what lowers one of two classes raises the other by the same amount.

        Logits of probabilities that sum to 1 are log probabilities. Two classes are p and 1 - p, or -z and z for a
        single logit. The model runs on the first encoded example if the unit alone does not decide.
        """
        if unit != "logit":
            return self._naming(unit, "logits", 0)
        outputs, kind = self._found(tuple(t[:1] for t in _tensors(inputs, forward_args)))
        return self._naming(unit, kind, outputs.shape[-1])

    def with_token_ids(self, target: Any) -> Any:
        """Return a target in which token ids replace the texts of tokens, if the classes are a vocabulary."""
        return target

    @contextmanager
    def output_unit(self, unit: Unit, inputs: Tensors, forward_args: Any = ()) -> Iterator[UnitOverride]:
        """Have :meth:`forward` return scores in a unit, one column per class, within a block of this thread.

        Any attribution that runs the adapter then explains that number.

        Args:
            unit: The unit.
            inputs: An example, which shows what the model returns.
            forward_args: Its further arguments.
        """
        outputs, kind = self._found(_tensors(inputs, forward_args))
        is_plain = NATIVE_UNIT[kind] == unit and (unit == "prediction" or outputs.shape[-1] > 1)
        answering = UnitOverride(self, unit, kind, is_plain)
        token = active_override.set(answering)
        try:
            yield answering
        finally:
            active_override.reset(token)

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter or buffer."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the model's first floating parameter."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts values instead of classes."""
        return self.outputs_are == "predictions" or self._problem_type == "regression"

    def _check_probabilities(self) -> None:
        if self.is_regression:
            raise InputError(
                f"{type(self.model).__name__} is configured for regression, so it has no probabilities; use logits "
                "(its predictions), or set config.problem_type."
            )

    @property
    def _problem_type(self) -> Any:
        return configuration(self.model, "problem_type")

    @property
    def _active_model(self) -> nn.Module:
        """The module to run: the model, or the copy that replaces it in the current block."""
        return active_model(self.model)

    @property
    def classes_exclude(self) -> bool:
        """Whether the classes exclude each other."""
        return self._problem_type != "multi_label_classification" and not self.is_regression

    def _naming(self, unit: Unit, kind: Kind, columns: int) -> tuple[Unit, bool]:
        """Return the name of a unit, and whether two classes are p and 1 - p, or -z and z."""
        is_log = unit == "logit" and kind == "probabilities" and self.classes_exclude and columns != 1
        two_sided = self.classes_exclude and (unit == "probability" or columns == 1)
        return ("log probability" if is_log else unit), two_sided

    @property
    def _excluding_dim(self) -> int:
        """The dimension of the outputs over which probabilities sum to 1."""
        return -1

    def names_of(self, n: int) -> Sequence[str] | None:
        """Return the names of n classes or outputs; None if there are not n names."""
        return self.class_names if self.class_names is not None and len(self.class_names) == n else None

    def _in_unit(self, outputs: Tensor, unit: Unit, kind: Kind) -> Tensor:
        return in_unit(outputs, unit, kind, exclude=self.classes_exclude, dim=self._excluding_dim)

    def as_unit(self, outputs: Array, unit: Unit, kind: Kind) -> Array:
        """Return outputs, (n, columns) or with a row for each token, in a unit, as :meth:`scores` does."""
        return np.asarray(self._in_unit(torch.from_numpy(outputs), unit, kind).numpy(), dtype=np.float64)

    def _of_class(self, raw: Any, target: Any, unit: Unit, show_progress: bool) -> Array:
        """Return the scores of one class for raw inputs, (n, 1)."""
        outputs = self.outputs(raw, show_progress=show_progress)
        return self._column(self.as_unit(outputs, unit, self._kind(outputs, raw)), target)

    def _column(self, scores: Array, target: Any) -> Array:
        """Return the column (n, 1) of one class."""
        n = scores.shape[1]
        return scores[:, [class_index(self.with_token_ids(target), n, self.names_of(n))]]

    def _found(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Kind]:
        """Return the model's outputs for encoded examples, and their kind."""
        outputs = self._run_once(tensors)
        return outputs, self._kind_of(outputs, lambda: tensors)

    def _kind_of(self, outputs: Tensor, example: Callable[[], tuple[Tensor, ...]]) -> Kind:
        """Return the kind of outputs; ``example`` returns the tensors of one of the examples."""
        if self.is_regression:
            return "predictions"
        if self.outputs_are != "auto":
            return "probabilities" if self.outputs_are == "probabilities" else "logits"
        return kind_of(
            outputs,
            lambda: self._run_once(example()),
            lambda: [self._run_once(other) for other in self._altered(example())],
            type(self.model).__name__,
            exclude=self.classes_exclude,
            dim=self._excluding_dim,
        )

    def _altered(self, tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """Return altered inputs of the model: numbers move, categories stay."""
        moves: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: 1.5 * x + 0.5, lambda x: -x)
        return [tuple(move(t) if t.is_floating_point() else t for t in tensors) for move in moves]

    def _kind(self, outputs: Array, raw: Any) -> Kind:
        """Return the kind of outputs for raw inputs."""
        return self._kind_of(torch.from_numpy(outputs), lambda: self._one(raw))

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        """Return the first raw input as arguments of :meth:`forward`."""
        raise NotImplementedError

    def _run_once(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the model's outputs without any unit override, in eval mode and without gradients."""
        token = active_override.set(None)
        try:
            with evaluating(self.model), torch.no_grad():
                outputs: Tensor = self(*tensors)
                return outputs
        finally:
            active_override.reset(token)

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        raise NotImplementedError

    def _read(self, output: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the forward function's result, read from what the model returned for these tensors."""
        return as_logits(output, len(tensors[0]), type(self.model).__name__)

    def _run(self, *tensors: Tensor) -> Array:
        """Return the outputs of one batch as a NumPy array; the caller disables gradients."""
        outputs = self(*tensors).detach().to(device="cpu", dtype=torch.float64).numpy()
        self._check_names(outputs)
        return np.asarray(outputs, dtype=np.float64)

    def _check_names(self, outputs: Array) -> None:
        classes = outputs.shape[-1] if self.is_regression else max(outputs.shape[-1], 2)
        if outputs.ndim == 2 and self._names_are_given and len(self.class_names or ()) != classes:
            kind = "outputs" if self.is_regression else "classes"
            raise InputError(
                f"{len(self.class_names or ())} class_names were given, but the model has {classes} {kind} "
                f"(its output has {outputs.shape[1]} columns); pass one name for each."
            )


def _tensors(inputs: Tensors, forward_args: Any) -> tuple[Tensor, ...]:
    """Return all tensors of an encoding, as arguments of :meth:`Adapter.forward`."""
    return (*(inputs if isinstance(inputs, tuple) else (inputs,)), *(forward_args or ()))
