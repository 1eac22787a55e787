"""What all adapters share: the encoding, the forward function, and probabilities for lime."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_attn_lime.adapters.state import fast_path_off
from captum_attn_lime.errors import ForwardError, InputError

Array = NDArray[np.float64]
Tensors = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Raw inputs as the tensors that Captum wants, with their features.

    Attributes:
        inputs: What Captum attributes to, (B, ...).
        forward_args: What the forward function needs besides, each (B, ...); Captum's ``additional_forward_args``.
        baselines: Tensors of the inputs' shapes that stand for "nothing there".
        feature_mask: Feature ids from 0 in the inputs' shapes, int64. Cells that stand for no feature (special and
            padding tokens) share the last id.
        feature_names: For each example the names of its features, ids 0 to len - 1.
    """

    inputs: Tensors
    forward_args: tuple[Any, ...]
    baselines: Tensors
    feature_mask: Tensors
    feature_names: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.feature_names)

    def arguments(self, method: Any) -> dict[str, Any]:
        """Return the keyword arguments of ``method.attribute`` that this encoding can fill.

        These are ``inputs``, and of ``baselines``, ``additional_forward_args`` and ``feature_mask`` those that the
        method takes, so that ``method.attribute(**x.arguments(method), target=1)`` is a full call.

        Args:
            method: A Captum attribution, or a ``NoiseTunnel`` around one.
        """
        names = set(inspect.signature(method.attribute).parameters)
        wrapped = getattr(method, "attribution_method", None)
        if wrapped is not None:  # NoiseTunnel hands its keyword arguments on.
            names |= set(inspect.signature(wrapped.attribute).parameters)
        have = {
            "inputs": self.inputs,
            "baselines": self.baselines,
            "additional_forward_args": self.forward_args or None,
            "feature_mask": self.feature_mask,
        }
        return {name: value for name, value in have.items() if name in names}


class Adapter(nn.Module):
    """A model as a function from tensors to logits, and from raw input to probabilities.

    Subclasses write :meth:`_call` (run the wrapped model on tensors) and :meth:`logits` (raw input to logits).

    Args:
        model: The wrapped model. Its training flags stay the user's; only :meth:`predict_proba` and :meth:`logits`
            run it in eval mode, and put every flag back.
        class_names: Names of the classes, if there are any.
    """

    def __init__(self, model: nn.Module, *, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, but is {type(model).__name__}.")
        super().__init__()
        self.model = model
        self.training = model.training
        self.class_names = None if class_names is None else tuple(str(name) for name in class_names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the logits, (n, classes), of a batch of encoded inputs; the form in which Captum calls a model."""
        if not tensors or not all(isinstance(t, Tensor) for t in tensors):
            came = ", ".join(type(t).__name__ for t in tensors) or "nothing"
            raise InputError(f"an adapter runs on tensors, but got {came}; call adapter.encode(...) for them.")
        with fast_path_off():
            return self._read(self._call(tensors), tensors)

    def logits(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the logits of raw inputs, (n, classes) float64."""
        raise NotImplementedError

    def predict_proba(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return class probabilities of raw inputs, (n, classes) float64: lime's ``classifier_fn``.

        A single logit z gives the two columns 1 - sigmoid(z) and sigmoid(z). Several logits give their softmax, or,
        where a HuggingFace configuration says ``"multi_label_classification"``, the sigmoid of each.

        Raises:
            InputError: The configuration says ``"regression"``: there are no probabilities.
        """
        self._check_probabilities()
        return self._as_probabilities(self.logits(raw, show_progress=show_progress))

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter or buffer."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _check_probabilities(self) -> None:
        if self._problem_type == "regression":
            raise InputError(
                f"{type(self.model).__name__} is configured for regression, so it has no probabilities; use logits, "
                "which are its predictions (for LimeText.explain: output='logits'), or set config.problem_type."
            )

    def _as_probabilities(self, logits: Array) -> Array:
        """Return the probabilities of logits (n, classes), as :meth:`predict_proba` says."""
        if self._problem_type == "multi_label_classification" and logits.shape[1] > 1:
            return np.asarray(torch.from_numpy(logits).sigmoid().numpy(), dtype=np.float64)
        return probabilities(logits)

    @property
    def _problem_type(self) -> Any:
        return getattr(getattr(self.model, "config", None), "problem_type", None)

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        raise NotImplementedError

    def _read(self, output: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return what the forward function gives out, from what the model returned for these tensors."""
        return as_logits(output, len(tensors[0]), type(self.model).__name__)

    def _run(self, *tensors: Tensor) -> Array:
        """Return the logits of one batch as numpy numbers; the caller has switched gradients off."""
        logits = self(*tensors).detach().to(device="cpu", dtype=torch.float64).numpy()
        classes = max(logits.shape[1], 2)
        if logits.ndim == 2 and self.class_names is not None and len(self.class_names) != classes:
            raise InputError(
                f"{len(self.class_names)} class_names were given, but the model has {classes} classes "
                f"(its output has {logits.shape[1]} columns); pass one name per class."
            )
        return np.asarray(logits, dtype=np.float64)


def probabilities(logits: Array) -> Array:
    """Return the softmax over the columns, or ``[1 - p, p]`` from a single column of logits.

    Example:
        >>> probabilities(np.array([[0.0]])).tolist(), probabilities(np.array([[1.0, 1.0]])).tolist()
        ([[0.5, 0.5]], [[0.5, 0.5]])
    """
    columns = torch.from_numpy(logits)
    if columns.shape[1] == 1:
        columns = torch.cat([torch.zeros_like(columns), columns], dim=1)
    return np.asarray(columns.softmax(dim=1).numpy(), dtype=np.float64)


def as_logits(output: Any, n: int, name: str) -> Tensor:
    """Return a model's output as (n, classes): ``.logits``, the first of a tuple, or the tensor itself.

    Args:
        output: What the model returned.
        n: Number of examples that went in.
        name: The model's name, for the message.

    Raises:
        ForwardError: There is no tensor in it, or its shape is neither (n, classes) nor (n,).
    """
    found = output
    if not isinstance(output, Tensor):
        if isinstance(output, dict):
            found = output.get("logits")
        elif isinstance(output, (tuple, list)):
            found = output[0] if output else None
        else:
            found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise ForwardError(
            f"{name} returned {type(output).__name__} without logits; an adapter needs a model that returns a tensor "
            "(n, classes), an object with .logits, or a tuple that begins with the logits. "
            "A bare encoder needs a classification head."
        )
    if found.dim() == 1 and len(found) == n:
        return found.unsqueeze(1)
    if found.dim() == 2 and len(found) == n:
        return found
    raise ForwardError(
        f"{name} returned a tensor of shape {tuple(found.shape)} for {n} example(s); "
        f"an adapter needs ({n}, classes), or ({n},) for a single output."
    )
