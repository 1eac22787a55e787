"""What all adapters share: the forward function, and logits and probabilities of raw input for lime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._explained import Explained, Unit, choose, class_index
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._answering import OWN_UNIT, Answering
from captum_attn_lime.adapters._answering import current as current_answering
from captum_attn_lime.adapters._encoding import Tensors
from captum_attn_lime.adapters._outputs import Array, Kind, Outputs, as_logits, in_unit, kind_of
from captum_attn_lime.adapters._state import asked, evaluating, fast_path_off, modes_kept
from captum_attn_lime.adapters._wrappers import configuration
from captum_attn_lime.errors import InputError

_SHOWN = 8  # class names in a repr


class Adapter(nn.Module):
    """A model as a function from tensors to its outputs, and from raw input to logits and probabilities.

    Subclasses write :meth:`_call` (run the wrapped model on tensors), :meth:`outputs` (raw input to the model's
    outputs) and :meth:`_one` (one raw input to tensors).

    Args:
        model: The wrapped model. Its training flags stay the user's; only :meth:`predict_proba` and :meth:`logits`
            run it in eval mode, and put every flag back.
        class_names: Names of the classes, if there are any; of a regression with several outputs, their names.
        outputs: What the model puts out: ``"logits"``, ``"probabilities"`` (it ends in softmax or sigmoid),
            ``"predictions"`` of a regression, or ``"auto"`` to find out.
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
        self._names_are_given = class_names is not None  # those of a configuration may be of a part of the model
        self.outputs_are: Outputs = outputs

    def __repr__(self) -> str:
        parts = [type(self.model).__name__, *self._settings()]
        if self.class_names is not None:
            names = ", ".join(map(repr, self.class_names[:_SHOWN]))
            parts.append(f"classes=[{names}{', ...' if len(self.class_names) > _SHOWN else ''}]")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _settings(self) -> list[str]:
        """Return what the repr says besides the model and its classes."""
        return []

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the model's outputs, (n, columns), for encoded inputs; the form in which Captum calls a model."""
        if not tensors or not all(isinstance(t, Tensor) for t in tensors):
            came = ", ".join(type(t).__name__ for t in tensors) or "nothing"
            raise InputError(f"an adapter runs on tensors, but got {came}; call adapter.encode(...) for them.")
        # A model may write into its input, unless that is one row in the place of many.
        tensors = tuple(t if len(t) > 1 and t.stride(0) == 0 else t.clone() for t in tensors)
        with fast_path_off(), modes_kept(self._asked):
            outputs = self._read(self._call(tensors), tensors)
        answering = current_answering.get()
        if answering is None or answering.adapter is not self:
            return outputs
        answering.is_used = True
        return self._in_unit(outputs, answering.unit, answering.kind)

    def outputs(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return what the model puts out for raw inputs, (n, columns) float64, in eval mode and without gradients.

        Args:
            raw: One input or several, in any form that :meth:`encode` accepts.
            show_progress: Show a bar over the inputs.

        Raises:
            InputError: It is no such input.
            ForwardError: The model gives NaN, or something else than its task needs.
        """
        raise NotImplementedError

    def logits(self, raw: Any, *, target: Any = None, show_progress: bool = False) -> Array:
        """Return the logits of raw inputs, (n, columns) float64; of a regression its predictions.

        A classifier of one logit has one column. A model that puts out probabilities has the logits that these are
        made of: log p, or log p / (1 - p) where classes do not exclude each other.

        Args:
            raw: One input or several.
            target: Return this class alone, (n, 1): its index or name. Of one logit z the classes are -z and z.
            show_progress: Show a bar over the inputs.

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

        A single logit z gives the two columns 1 - sigmoid(z) and sigmoid(z). Several logits give their softmax, or,
        where a HuggingFace configuration says ``"multi_label_classification"``, the sigmoid of each. Outputs that are
        probabilities already are returned as they are.

        Args:
            raw: One input or several.
            target: Return this class alone, (n, 1): its index or name.
            show_progress: Show a bar over the inputs.

        Raises:
            InputError: The model is a regression: there are no probabilities.
            TargetError: There is no such class.

        Warns:
            OutputsWarning: Whether outputs are probabilities had to be guessed.
        """
        self._check_probabilities()
        if target is not None:
            return self._of_class(raw, target, "probability", show_progress)
        outputs = self.outputs(raw, show_progress=show_progress)
        return self.as_unit(outputs, "probability", self._kind(outputs, raw))

    def scores(self, raw: Any, unit: Unit, *, show_progress: bool = False) -> Array:
        """Return answers to raw inputs in a unit, with a column for each class, (n, classes) float64.

        Of a classifier of one logit z these are -z and z, or 1 - p and p; of a regression its outputs.

        Args:
            raw: One input or several.
            unit: ``"probability"`` or ``"logit"`` of a classifier, ``"prediction"`` of a regression.
            show_progress: Show a bar over the inputs.

        Raises:
            InputError: The model has no answers in that unit.
        """
        if unit == "probability":
            return self.predict_proba(raw, show_progress=show_progress)
        found = self.logits(raw, show_progress=show_progress)
        return self.as_unit(found, unit, "predictions" if unit == "prediction" else "logits")

    def explained(
        self, inputs: Tensors, forward_args: Any = (), target: Any = None, *, unit: Unit | None = None
    ) -> Explained:
        """Return the number that is explained of one encoded example.

        Args:
            inputs: The encoding's inputs, (1, ...) each.
            forward_args: Its further arguments.
            target: The class: its index or name, (position, class), or None for the class that is predicted. Of a
                regression with several outputs one of these; of a vocabulary the id or the text of a token.
            unit: The unit; by default that of the model's own outputs, which Captum's methods explain.

        Raises:
            TargetError: There is no such class.
        """
        outputs, kind = self._found(_tensors(inputs, forward_args))
        unit = OWN_UNIT[kind] if unit is None else unit
        scores = self._in_unit(outputs.double(), unit, kind)
        return self.choose(scores[0].cpu(), target, unit, kind, outputs.shape[-1])

    def choose(self, scores: Any, target: Any, unit: Unit, kind: Kind, columns: int) -> Explained:
        """Return the number that is explained, out of the model's answers to one example.

        Args:
            scores: The answers in the unit, (classes,), or (N, classes) of a model that predicts for each token.
            target: As in :meth:`explained`.
            unit: The unit.
            kind: What the model puts out.
            columns: How many columns it puts out.

        Raises:
            TargetError: There is no such class.
        """
        unit, two_sided = self._naming(unit, kind, columns)
        names = self.names_of(scores.shape[-1])
        return choose(scores, self.with_token_ids(target), unit, names, two_sided=two_sided)

    def outputs_of(self, *tensors: Tensor) -> Array:
        """Return the model's outputs for one batch of encoded examples, float64.

        The model runs once on the inputs and further arguments, each (n, ...): in eval mode, without gradients, and as
        if it drew no random numbers.
        """
        with evaluating(self.model), torch.no_grad(), without_drawing():
            return self._run(*tensors)

    def kind_of(self, outputs: Array, *tensors: Tensor) -> Kind:
        """Return what the model puts out, found out on what :meth:`outputs_of` gave for encoded examples.

        Warns:
            OutputsWarning: Whether outputs are probabilities had to be guessed.
        """
        return self._kind_of(torch.from_numpy(outputs), lambda: tuple(t[:1] for t in tensors))

    def columns(self, inputs: Tensors, forward_args: Any = ()) -> int:
        """Return how many columns the model puts out, looked up on the first of encoded examples."""
        return int(self._run_once(tuple(t[:1] for t in _tensors(inputs, forward_args))).shape[-1])

    def naming(self, unit: Unit, inputs: Tensors, forward_args: Any = ()) -> tuple[Unit, bool]:
        """Return what a unit is called, and whether what lowers one of two classes raises the other just as much.

        Of probabilities that sum to 1 the logits are log probabilities. Two classes are p and 1 - p, or, of one logit,
        -z and z. The model runs on the first of encoded examples where that does not follow from the unit.
        """
        if unit != "logit":
            return self._naming(unit, "logits", 0)
        outputs, kind = self._found(tuple(t[:1] for t in _tensors(inputs, forward_args)))
        return self._naming(unit, kind, outputs.shape[-1])

    def with_token_ids(self, target: Any) -> Any:
        """Return a target in which the text of a token is its id, where the classes are a vocabulary."""
        return target

    @contextmanager
    def answering_in(self, unit: Unit, inputs: Tensors, forward_args: Any = ()) -> Iterator[Answering]:
        """Have :meth:`forward` answer in a unit, with a column for each class, within a block of this thread.

        Any attribution that runs the adapter then explains that number, for whichever class, without knowing of it.

        Args:
            unit: The unit.
            inputs: An example, on which it is found out what the model puts out.
            forward_args: Its further arguments.
        """
        outputs, kind = self._found(_tensors(inputs, forward_args))
        is_plain = OWN_UNIT[kind] == unit and (unit == "prediction" or outputs.shape[-1] > 1)
        answering = Answering(self, unit, kind, is_plain)
        token = current_answering.set(answering)
        try:
            yield answering
        finally:
            current_answering.reset(token)

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter or buffer."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the model's numbers."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts values, and has no classes."""
        return self.outputs_are == "predictions" or self._problem_type == "regression"

    def _check_probabilities(self) -> None:
        if self.is_regression:
            raise InputError(
                f"{type(self.model).__name__} is configured for regression, so it has no probabilities; use logits, "
                "which are its predictions, or set config.problem_type."
            )

    @property
    def _problem_type(self) -> Any:
        return configuration(self.model, "problem_type")

    @property
    def _asked(self) -> nn.Module:
        """What runs: the model, or in a block that asks it in another mode, its stand-in."""
        return asked(self.model)

    @property
    def classes_exclude(self) -> bool:
        """Whether the classes exclude each other."""
        return self._problem_type != "multi_label_classification" and not self.is_regression

    def _naming(self, unit: Unit, kind: Kind, columns: int) -> tuple[Unit, bool]:
        """Return what a unit is called, and whether two classes are p and 1 - p, or -z and z."""
        is_log = unit == "logit" and kind == "probabilities" and self.classes_exclude and columns != 1
        two_sided = self.classes_exclude and (unit == "probability" or columns == 1)
        return ("log probability" if is_log else unit), two_sided

    @property
    def _excluding_dim(self) -> int:
        """The dimension of the outputs over which probabilities sum to 1."""
        return -1

    def names_of(self, n: int) -> Sequence[str] | None:
        """Return the names of n classes or outputs, where they have any; those of another number are others' names."""
        return self.class_names if self.class_names is not None and len(self.class_names) == n else None

    def _in_unit(self, outputs: Tensor, unit: Unit, kind: Kind) -> Tensor:
        return in_unit(outputs, unit, kind, exclude=self.classes_exclude, dim=self._excluding_dim)

    def as_unit(self, outputs: Array, unit: Unit, kind: Kind) -> Array:
        """Return outputs in a unit, with a column for each class.

        Of a classifier of one logit z these are -z and z, or 1 - p and p; of a regression its outputs.

        Args:
            outputs: The model's outputs, (n, columns), or with a row for each token.
            unit: The unit.
            kind: What the outputs are.
        """
        return np.asarray(self._in_unit(torch.from_numpy(outputs), unit, kind).numpy(), dtype=np.float64)

    def _of_class(self, raw: Any, target: Any, unit: Unit, show_progress: bool) -> Array:
        """Return the answers to raw inputs for one class, (n, 1)."""
        outputs = self.outputs(raw, show_progress=show_progress)
        return self._column(self.as_unit(outputs, unit, self._kind(outputs, raw)), target)

    def _column(self, scores: Array, target: Any) -> Array:
        """Return the column (n, 1) of one class, of scores with a column for each."""
        n = scores.shape[1]
        return scores[:, [class_index(self.with_token_ids(target), n, self.names_of(n))]]

    def _found(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Kind]:
        """Return the model's outputs for encoded examples, and what they are."""
        outputs = self._run_once(tensors)
        return outputs, self._kind_of(outputs, lambda: tensors)

    def _kind_of(self, outputs: Tensor, example: Callable[[], tuple[Tensor, ...]]) -> Kind:
        """Return what outputs are; ``example`` gives the tensors of one of the examples."""
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
        """Return other inputs of the model: numbers are moved, categories stay."""
        moves: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: 1.5 * x + 0.5, lambda x: -x)
        return [tuple(move(t) if t.is_floating_point() else t for t in tensors) for move in moves]

    def _kind(self, outputs: Array, raw: Any) -> Kind:
        """Return what outputs for raw inputs are."""
        return self._kind_of(torch.from_numpy(outputs), lambda: self._one(raw))

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        """Return the first of raw inputs as the tensors that :meth:`forward` takes."""
        raise NotImplementedError

    def _run_once(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the model's outputs as they are, in eval mode and without gradients."""
        token = current_answering.set(None)
        try:
            with evaluating(self.model), torch.no_grad():
                outputs: Tensor = self(*tensors)
                return outputs
        finally:
            current_answering.reset(token)

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        raise NotImplementedError

    def _read(self, output: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return what the forward function gives out, from what the model returned for these tensors."""
        return as_logits(output, len(tensors[0]), type(self.model).__name__)

    def _run(self, *tensors: Tensor) -> Array:
        """Return the outputs of one batch as numpy numbers; the caller has switched gradients off."""
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
    """Return all tensors of an encoding, as :meth:`Adapter.forward` takes them."""
    return (*(inputs if isinstance(inputs, tuple) else (inputs,)), *(forward_args or ()))
