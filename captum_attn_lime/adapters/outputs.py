"""What the numbers are that a model puts out: logits, probabilities or predictions; and one kind made of another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from captum_attn_lime.errors import InputError, OutputsWarning
from captum_attn_lime.explained import Unit

Outputs = Literal["auto", "logits", "probabilities", "predictions"]
Kind = Literal["logits", "probabilities", "predictions"]
_SUM = 1e-3  # half precision sums to 1 so nearly
_aten = torch.ops.aten
_MAKES_PROBABILITIES = (
    _aten._softmax.default,
    _aten.sigmoid.default,
    _aten.sigmoid_.default,
    _aten.exp.default,
)
# What hands on the values of another tensor as they are. Views share its memory.
_HANDS_ON = (_aten.clone.default, _aten._to_copy.default, _aten.cat.default, _aten.stack.default)


def kind_of(outputs: Tensor, run_again: Callable[[], Tensor], name: str, *, exclude: bool, dim: int = -1) -> Kind:
    """Return whether a model's outputs are logits or already probabilities.

    Values outside 0 to 1 are logits. Others are probabilities where the model's last step is seen to be a softmax or
    a sigmoid; where no such step is seen, but the columns of every row sum to 1, that is guessed.

    Args:
        outputs: The model's outputs, (n, columns), or with a row for each token.
        run_again: Runs the model on one of the examples and returns its output.
        name: The model's name, for the warning.
        exclude: Whether the classes exclude each other.
        dim: The dimension of what exclude each other.

    Warns:
        OutputsWarning: It is guessed.
    """
    values = outputs.detach().double()
    if not bool(((values >= -_SUM) & (values <= 1 + _SUM)).all()):
        return "logits"
    sums_to_one = values.shape[dim] > 1 and bool(((values.sum(dim=dim) - 1).abs() < _SUM).all())
    with _LastStep() as seen:
        found = run_again()
    last = seen.of(found)
    if last is not None and (last != "exp" or sums_to_one):
        return "probabilities"
    if exclude and sums_to_one:
        warnings.warn(
            f"the outputs of {name} lie between 0 and 1 and sum to 1, so they are read as probabilities, and no "
            "softmax is put on top. Pass outputs='probabilities' to the adapter if that is right, or outputs='logits'.",
            OutputsWarning,
            stacklevel=2,
        )
        return "probabilities"
    return "logits"


def in_unit(outputs: Tensor, unit: Unit, kind: Kind, *, exclude: bool, dim: int = -1) -> Tensor:
    """Return outputs in a unit, with one column for each class; gradients pass through.

    Of a single logit z the classes 0 and 1 have the logits -z and z, and the probabilities 1 - p and p.

    Args:
        outputs: The model's outputs: (n, columns), or with a row for each token.
        unit: What is wanted.
        kind: What the outputs are.
        exclude: Whether the classes exclude each other.
        dim: The dimension of what exclude each other.

    Raises:
        InputError: A regression has no probabilities and no logits, nor a classifier predictions.

    Example:
        >>> in_unit(torch.tensor([[0.0]]), "probability", "logits", exclude=True)
        tensor([[0.5000, 0.5000]])
        >>> in_unit(torch.tensor([[2.0]]), "logit", "logits", exclude=True)
        tensor([[-2.,  2.]])
    """
    if (kind == "predictions") != (unit == "prediction"):
        came = "a regression, which predicts values" if kind == "predictions" else "a classifier"
        raise InputError(f"the model is {came}: it has no {unit}.")
    if unit == "prediction":
        return outputs
    is_one = outputs.dim() == 2 and outputs.shape[1] == 1
    if kind == "logits" and unit == "logit":
        return torch.cat([-outputs, outputs], dim=1) if is_one else outputs
    if kind == "logits" and is_one:
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1).softmax(dim=1)
    if kind == "logits":
        return outputs.softmax(dim=dim) if exclude else outputs.sigmoid()
    if unit == "probability":
        return torch.cat([1 - outputs, outputs], dim=1) if is_one else outputs
    # A float32 probability of 1 stands for all logits above 16.
    eps = torch.finfo(torch.float32 if outputs.dtype == torch.float64 else outputs.dtype).eps / 2
    if is_one or not exclude:
        odds = outputs.clamp(eps, 1 - eps).logit()
        return torch.cat([-odds, odds], dim=1) if is_one else odds
    return outputs.clamp(min=torch.finfo(torch.float32).tiny).log()


class _LastStep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which tensors come from a step that makes probabilities."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: list[tuple[Tensor, str]] = []  # held, so that no other tensor comes to lie there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            if func in _MAKES_PROBABILITIES:
                self._made.append((out, func.__name__.split(".")[0].strip("_")))
            elif func in _HANDS_ON:
                given = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
                made = [self.of(t) for t in given]
                if made and all(step is not None for step in made):
                    self._made.append((out, str(made[0])))
        return out

    def of(self, tensor: Tensor) -> str | None:
        """Return the step that a tensor comes from; None where it comes from another one."""
        place = tensor.untyped_storage().data_ptr()
        return next((step for made, step in reversed(self._made) if made.untyped_storage().data_ptr() == place), None)
