"""All uses of Captum's private helpers, limited to those whose parameters have not changed since Captum 0.6."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from captum._utils.common import (
    _expand_additional_forward_args,
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _run_forward,
    _select_targets,
)
from captum.log import log_usage
from torch import Tensor

from captum_attn_lime.errors import ForwardError, InputError, TargetError

__all__ = [
    "as_tuple",
    "check_inputs",
    "expand_forward_args",
    "format_forward_args",
    "format_output",
    "linear_models",
    "log_usage",
    "plain_indices",
    "run_forward",
    "select_target",
]

TensorOrTuple = Tensor | tuple[Tensor, ...]
Target = Any  # int, tuple, tensor, list of int or of tuple: captum's TargetType


def as_tuple(inputs: TensorOrTuple) -> tuple[Tensor, ...]:
    """Return the inputs as a tuple of tensors, checked."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors or not all(isinstance(t, Tensor) for t in tensors):
        names = ", ".join(type(t).__name__ for t in tensors) or "an empty tuple"
        raise InputError(
            f"inputs must be a tensor or a tuple of tensors, but are {names}. "
            "For text or rows use TextAdapter or TabularAdapter: adapter.encode(...).inputs."
        )
    return cast("tuple[Tensor, ...]", _format_tensor_into_tuples(tensors))


def check_inputs(inputs: TensorOrTuple) -> tuple[Tensor, ...]:
    """Return the inputs as a tuple of tensors, checked for equal batch sizes and finite values."""
    tensors = as_tuple(inputs)
    sizes = {x.shape[0] if x.dim() else None for x in tensors}
    if None in sizes or len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise InputError(
            f"inputs have shapes {shapes}, but all need the same number of examples, at least one, in dimension 0."
        )
    for x in tensors:
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InputError("the inputs contain NaN or infinite values, where attention is undefined; remove them.")
    return tensors


def format_output(is_tuple: bool, tensors: tuple[Tensor, ...]) -> TensorOrTuple:
    """Return a tuple if the input was a tuple, otherwise the single tensor."""
    return cast("TensorOrTuple", _format_output(is_tuple, tensors))


def format_forward_args(args: Any) -> tuple[Any, ...]:
    """Return ``additional_forward_args`` as a tuple, empty for None."""
    formatted = _format_additional_forward_args(args)
    return () if formatted is None else tuple(formatted)


def expand_forward_args(args: Any, n: int) -> Any:
    """Return ``additional_forward_args`` with each tensor repeated ``n`` times along dimension 0."""
    return _expand_additional_forward_args(args, n)


def run_forward(forward_func: Any, inputs: Any, additional_forward_args: Any = None) -> Tensor:
    """Return the forward function's output tensor; raise if it is anything else."""
    return check_output(_run_forward(forward_func, inputs, None, additional_forward_args))


def check_output(output: Any) -> Tensor:
    """Return the output; raise unless it is a tensor with a batch dimension."""
    if isinstance(output, Tensor) and output.dim() > 0:
        return output
    if isinstance(output, Tensor):
        raise ForwardError(
            "the forward function returned a 0-dimensional tensor, but attributions need one value per example; "
            "return a tensor of shape (batch, ...)."
        )
    hint = "return its logits: wrap the model in an adapter, or pass `lambda *x: model(*x).logits`"
    if not hasattr(output, "logits"):
        hint = "return one tensor of shape (batch, ...)"
    raise ForwardError(f"the forward function returned {type(output).__name__}, not a tensor; {hint}.")


def select_target(output: Tensor, target: Target) -> Tensor:
    """Return the output at the target by Captum's rules; raise ``TargetError`` for any invalid target."""
    try:
        return cast("Tensor", _select_targets(output, plain_indices(target)))
    except (AssertionError, IndexError, RuntimeError, ValueError, TypeError) as error:
        raise TargetError(
            f"target {target!r} does not fit an output of shape {tuple(output.shape)}: {error}. "
            "Pass an int (class), a tuple (indices after the batch), or a list or 1-D tensor with one per example."
        ) from error


def plain_indices(target: Target) -> Target:
    """Return a target with NumPy integers and arrays converted to Python's, which Captum accepts.

    Example:
        >>> plain_indices(np.int64(2)), plain_indices(np.array([0, 1])), plain_indices([(np.int32(1), 0)])
        (2, [0, 1], [(1, 0)])
    """
    if isinstance(target, np.ndarray) and target.ndim == 2:
        return [tuple(row) for row in target.tolist()]
    if isinstance(target, (np.integer, np.ndarray)):
        return target.tolist()
    if isinstance(target, list):
        return [plain_indices(part) for part in target]
    return tuple(plain_indices(part) for part in target) if isinstance(target, tuple) else target


def linear_models() -> Any:
    """Return the module with the linear models that Captum's ``Lime`` can fit."""
    from captum._utils.models import linear_model

    return linear_model
