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
_STEPS = {
    _aten._softmax.default: "softmax",
    _aten.sigmoid.default: "sigmoid",
    _aten.sigmoid_.default: "sigmoid",
    _aten.exp.default: "exp",
}
# What keeps probabilities as they are, or makes 1 - p of p. Views share memory with what they look at.
_COPIES = (
    _aten.clone.default,
    _aten._to_copy.default,
    _aten.cat.default,
    _aten.stack.default,
    _aten.rsub.Scalar,
)
# What mixes probabilities, as an ensemble does.
_MIXES = (
    _aten.add.Tensor,
    _aten.mul.Tensor,
    _aten.div.Tensor,
    _aten.mean.dim,
    _aten.sum.dim_IntList,
    _aten.sub.Tensor,
    _aten.mm.default,
)


def kind_of(outputs: Tensor, run_again: Callable[[], Tensor], name: str, *, exclude: bool, dim: int = -1) -> Kind:
    """Return whether a model's outputs are logits or already probabilities.

    Values outside 0 to 1 are logits. For others the steps of the model are looked at: probabilities come from a
    softmax or sigmoid, or from mixing such. Where this leaves a doubt, it is guessed with a warning.

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
    with _Steps() as steps:
        found = run_again()
    last = steps.to(found)
    if last in ("softmax", "sigmoid") or (last in ("exp", "mixture") and sums_to_one):
        return "probabilities"
    if last == "mixture" or (exclude and sums_to_one and last in ("unseen", "division")):
        _guessed(name, "probabilities", "logits")
        return "probabilities"
    if last == "unseen":
        _guessed(name, "logits", "probabilities")
    return "logits"


def _guessed(name: str, kind: Kind, other: Kind) -> None:
    warnings.warn(
        f"the outputs of {name} lie between 0 and 1, and its steps do not tell whether they are probabilities; they "
        f"are read as {kind}. Pass outputs={kind!r} to the adapter if that is right, or outputs={other!r}.",
        OutputsWarning,
        stacklevel=3,
    )


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


class _Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which step of a model each tensor comes from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, tuple[Tensor, str]] = {}  # tensors are held, so that no other comes to lie there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not _is_view(func):
            self._found[_place(out)] = (out, self._step(func, args))
        return out

    def _step(self, func: Any, args: Any) -> str:
        if func in _STEPS:
            return _STEPS[func]
        if func in _COPIES or func in _MIXES:
            given = [a for a in (args[0] if isinstance(args[0], (list, tuple)) else args) if isinstance(a, Tensor)]
            steps = {self.to(a) for a in given}
            if steps <= {"softmax", "sigmoid", "mixture"} and steps:
                keeps = func in _COPIES and (func is not _aten.rsub.Scalar or args[1] == 1)
                return steps.pop() if keeps and len(steps) == 1 else "mixture"
        return "division" if func is _aten.div.Tensor else "other"

    def to(self, tensor: Tensor) -> str:
        """Return the step that a tensor comes from."""
        found = self._found.get(_place(tensor))
        return "unseen" if found is None else found[1]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(func: Any) -> bool:
    return any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
