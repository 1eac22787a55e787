"""What a model returns: its tensor, whether it holds logits, probabilities or predictions, and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from captum_attn_lime._explained import Unit
from captum_attn_lime._util.warn import warn
from captum_attn_lime.errors import ForwardError, InputError, OutputsWarning

Array = NDArray[np.float64]
Outputs = Literal["auto", "logits", "probabilities", "predictions"]
Kind = Literal["logits", "probabilities", "predictions"]
_SUM = 1e-3  # tolerance for sums in half precision
_aten = torch.ops.aten
_STEPS = {
    _aten._softmax.default: "softmax",
    _aten.sigmoid.default: "sigmoid",
    _aten.sigmoid_.default: "sigmoid",
    _aten.hardsigmoid.default: "sigmoid",
    _aten.exp.default: "exp",
    _aten.tanh.default: "tanh",
}
# Operations that keep probabilities, pick some, or turn p into 1 - p. Views share memory with their base.
_COPIES = (
    _aten.clone.default,
    _aten._to_copy.default,
    _aten.cat.default,
    _aten.stack.default,
    _aten.rsub.Scalar,
    _aten.clamp.default,
    _aten.clamp_min.default,
    _aten.clamp_max.default,
    _aten.nan_to_num.default,
    _aten.round.default,
    _aten.round.decimals,
    _aten.where.self,
    _aten.minimum.default,
    _aten.maximum.default,
    _aten.flip.default,
    _aten.roll.default,
    _aten.index_select.default,
    _aten.index.Tensor,
    _aten.gather.default,
)
# Operations that mix probabilities, as an ensemble does.
_MIXES = (
    _aten.add.Tensor,
    _aten.mul.Tensor,
    _aten.div.Tensor,
    _aten.mean.dim,
    _aten.sum.dim_IntList,
    _aten.sub.Tensor,
    _aten.mm.default,
    _aten.bmm.default,
)
_WRITES = (_aten.copy_.default,)
# Only the first tensor of these counts: the others are indices or bounds.
_OF_FIRST = (_aten.minimum.default, _aten.maximum.default, _aten.index_select.default, _aten.gather.default)
# A sigmoid written by hand, 1 / (1 + exp(-z)) or (1 + tanh(z)) / 2: the state after each operation.
_BY_HAND = {
    (_aten.add.Tensor, "exp"): "odds",
    (_aten.add.Tensor, "tanh"): "odds",
    (_aten.reciprocal.default, "odds"): "by hand",
    (_aten.div.Tensor, "odds"): "by hand",
    (_aten.mul.Tensor, "odds"): "by hand",
    (_aten.mul.Tensor, "by hand"): "by hand",
}


def kind_of(
    outputs: Tensor,
    run_again: Callable[[], Tensor],
    run_others: Callable[[], list[Tensor]],
    name: str,
    *,
    exclude: bool,
    dim: int = -1,
) -> Kind:
    """Return whether a model's outputs are logits or already probabilities.

    Values outside 0 to 1 are logits. Otherwise the model's operations decide: probabilities come from a softmax or
    sigmoid, or from mixing those. If that is not conclusive, this guesses and warns.

    Args:
        outputs: The model's outputs, (n, columns), or with a row for each token.
        run_again: Runs the model on one of the examples and returns its output.
        run_others: Runs it on altered copies of that example, if its operations are not conclusive.
        name: The model's name, for the warning.
        exclude: Whether the classes exclude each other.
        dim: The dimension along which they exclude each other.

    Warns:
        OutputsWarning: The result is a guess.
    """
    if not _is_between(outputs):
        return "logits"
    sums_to_one = _sums_to_one(outputs, dim)
    with _Steps() as steps:
        found = run_again()
    last = steps.to(found)
    if last in ("softmax", "sigmoid") or (last in ("exp", "mixture") and sums_to_one):
        return "probabilities"
    # Two logits may sum to 1 by chance, or one may lie between 0 and 1, but hardly for other inputs too.
    is_kept = exclude and sums_to_one and all(_is_between(o) and _sums_to_one(o, dim) for o in run_others())
    if last == "mixture" or is_kept or (last == "by hand" and all(map(_is_between, run_others()))):
        _warn_guess(name, "probabilities", "logits")
        return "probabilities"
    if last == "unseen":
        _warn_guess(name, "logits", "probabilities")
    return "logits"


def _is_between(outputs: Tensor) -> bool:
    """Return whether all outputs lie between 0 and 1."""
    values = outputs.detach().double()
    return bool(((values >= -_SUM) & (values <= 1 + _SUM)).all())


def _sums_to_one(outputs: Tensor, dim: int) -> bool:
    """Return whether the columns of every row sum to 1."""
    return outputs.shape[dim] > 1 and bool(((outputs.detach().double().sum(dim=dim) - 1).abs() < _SUM).all())


def _warn_guess(name: str, kind: Kind, other: Kind) -> None:
    warn(
        f"the outputs of {name} lie between 0 and 1, and its operations do not show whether they are probabilities; "
        f"they are read as {kind}. Pass outputs={kind!r} to the adapter if that is right, else outputs={other!r}.",
        OutputsWarning,
    )


def in_unit(outputs: Tensor, unit: Unit, kind: Kind, *, exclude: bool, dim: int = -1) -> Tensor:
    """Return outputs in a unit, with one column per class; gradients pass through.

    For a single logit z, classes 0 and 1 have the logits -z and z, and the probabilities 1 - p and p.

    Args:
        outputs: The model's outputs: (n, columns), or with a row for each token.
        unit: The unit to convert to.
        kind: What the outputs are.
        exclude: Whether the classes exclude each other.
        dim: The dimension along which they exclude each other.

    Raises:
        InputError: A regression has no probabilities or logits, and a classifier no predictions.

    Example:
        >>> in_unit(torch.tensor([[0.0]]), "probability", "logits", exclude=True)
        tensor([[0.5000, 0.5000]])
        >>> in_unit(torch.tensor([[2.0]]), "logit", "logits", exclude=True)
        tensor([[-2.,  2.]])
    """
    if (kind == "predictions") != (unit == "prediction"):
        what = "a regression, which predicts values" if kind == "predictions" else "a classifier"
        raise InputError(f"the model is {what}: it has no {unit}.")
    if unit == "prediction":
        return outputs
    unit = "logit" if unit == "log probability" else unit
    is_one = outputs.dim() == 2 and outputs.shape[1] == 1
    if kind == "logits" and unit == "logit":
        return torch.cat([-outputs, outputs], dim=1) if is_one else outputs
    if kind == "logits" and is_one:
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1).softmax(dim=1)
    if kind == "logits":
        return outputs.softmax(dim=dim) if exclude else outputs.sigmoid()
    if unit == "probability":
        return torch.cat([1 - outputs, outputs], dim=1) if is_one else outputs
    # In float32 the probability of any logit above 16 rounds to 1.
    eps = torch.finfo(torch.float32 if outputs.dtype == torch.float64 else outputs.dtype).eps / 2
    if is_one or not exclude:
        odds = outputs.clamp(eps, 1 - eps).logit()
        return torch.cat([-odds, odds], dim=1) if is_one else odds
    return outputs.clamp(min=torch.finfo(torch.float32).tiny).log()


class _Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which operation of a model each tensor comes from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, tuple[Tensor, str]] = {}  # keeps the tensors alive, so that no address is reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and (func in _WRITES or not _is_view(func)):
            self._found[_place(out)] = (out, self._step(func, args))
        return out

    def _step(self, func: Any, args: Any) -> str:
        if func in _STEPS:
            return _STEPS[func]
        if func in _WRITES:
            return self.to(args[1])
        if func in _COPIES or func in _MIXES:
            given = [a for a in (args[0] if isinstance(args[0], (list, tuple)) else args) if isinstance(a, Tensor)]
            given = given[:1] if func in _OF_FIRST else given
            given = [a for a in given[1:] if a.numel() > 1] or given[1:] if func is _aten.where.self else given
            steps = {self.to(a) for a in given}
            if steps <= {"softmax", "sigmoid", "mixture"} and steps:
                keeps = func in _COPIES and (func is not _aten.rsub.Scalar or args[1] == 1)
                return steps.pop() if keeps and len(steps) == 1 else "mixture"
        ways = {_BY_HAND.get((func, self.to(a))) for a in args if isinstance(a, Tensor)}
        return next((way for way in ways if way is not None), "other")

    def to(self, tensor: Tensor) -> str:
        """Return the operation that a tensor comes from."""
        found = self._found.get(_place(tensor))
        return "unseen" if found is None else found[1]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(func: Any) -> bool:
    return any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)


def without_nan(outputs: Array, model: str, example: str) -> Array:
    """Return a model's outputs (n, outputs), or raise ForwardError if any is NaN."""
    bad = np.flatnonzero(np.isnan(outputs).any(axis=1))
    if len(bad):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ForwardError(
            f"{model} gave NaN for {example} {bad[0]}{more}, so there is nothing to explain. Look for a division by 0, "
            f"a logarithm of 0, weights that are NaN, or values far outside the training range."
        )
    return outputs


def named_tensor(output: Any, name: str) -> Any:
    """Return the entry of an output with this name, the first of a tuple, or a tensor itself.

    Example:
        >>> named_tensor({"logits": 1}, "logits"), named_tensor((2, 3), "logits"), named_tensor("text", "logits")
        (1, 2, None)
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        return output.get(name)
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return getattr(output, name, None)


def as_logits(output: Any, n: int, name: str) -> Tensor:
    """Return a model's output as (n, classes): ``.logits``, the first of a tuple, or the tensor itself.

    Args:
        output: What the model returned.
        n: Number of examples.
        name: The model's name, for the message.

    Raises:
        ForwardError: It holds no tensor, or one whose shape is neither (n, classes) nor (n,).
    """
    found = named_tensor(output, "logits")
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
