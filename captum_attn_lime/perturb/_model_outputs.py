"""Model outputs for perturbed copies of an example: an adapter's in one unit, or a function's at its target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._explained import Explained, Unit
from captum_attn_lime._util.captum import Target, expand_forward_args, format_forward_args, run_forward, select_target
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters import Adapter
from captum_attn_lime.adapters._outputs import Kind
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters._targets import plain_target
from captum_attn_lime.adapters._unit_override import NATIVE_UNIT
from captum_attn_lime.errors import ForwardError, InputError, TargetError
from captum_attn_lime.perturb._masks import Array

# Maps the tensors of a batch to scores, (n, columns).
BatchScorer = Callable[..., Array]


@dataclass(frozen=True)
class AdapterScorer:
    """Scores an adapter's batches in one unit.

    Attributes:
        adapter: The adapter.
        unit: The unit.
        kind: The kind of output that its model has.
        columns: Number of output columns.
        position: Index of the one output to return, for models with a row of outputs per token.
        token: The token id to score, for models whose classes are a vocabulary.
        padding: The token id of tokens hidden from attention, if any.
    """

    adapter: Any
    unit: Unit
    kind: Kind
    columns: int
    position: tuple[int, ...] | None = None
    token: int | None = None
    padding: int | None = None

    def __call__(self, *tensors: Tensor) -> Array:
        """Return the scores of a batch, (n, classes) or (n, 1)."""
        options = {} if self.padding is None else {"padding": self.padding}
        if self.token is not None:
            return np.asarray(self.adapter.token_scores(*tensors, target=self.token, unit=self.unit, **options))
        outputs = self.adapter.outputs_of(*tensors, **options)
        scores: Array = self.adapter.as_unit(outputs, self.unit, self.kind)
        if self.position is None:
            return scores
        index: Any = (slice(None), *self.position)
        return np.asarray(scores[index][:, None])


def adapter_scores(
    adapter: Adapter, tensors: tuple[Tensor, ...], unit: Unit | None = None
) -> tuple[AdapterScorer, Array]:
    """Return an adapter's scorer and the scores of the unperturbed example, (1, classes).

    Args:
        adapter: The adapter.
        tensors: The example's inputs and further arguments, each (1, ...).
        unit: The unit; by default that of the model's outputs.
    """
    outputs = adapter.outputs_of(*tensors)
    kind = adapter.kind_of(outputs, *tensors)
    unit = NATIVE_UNIT[kind] if unit is None else unit
    return AdapterScorer(adapter, unit, kind, outputs.shape[-1]), adapter.as_unit(outputs, unit, kind)


@dataclass(frozen=True)
class TargetScalar:
    """A function's output at the target, for copies of one example.

    Attributes:
        forward_func: The function.
        args: The example's row of the additional forward arguments.
        target: The example's target.
        value: The output for the unperturbed example.
    """

    forward_func: Callable[..., Any]
    args: tuple[Any, ...]
    target: Target
    value: float | None = None

    @property
    def explained(self) -> Explained:
        """The explained number: an output of the function, in the function's unit."""
        index = 0 if self.target is None else self.target
        return Explained(
            index[0] if isinstance(index, tuple) and len(index) == 1 else index, "prediction", value=self.value
        )

    def __call__(self, *inputs: Tensor) -> Array:
        """Return one number per copy, (n, 1).

        Args:
            inputs: The copies, each (n, ...).

        Raises:
            ForwardError: The output is not one finite number per copy.
        """
        n = len(inputs[0])
        with torch.no_grad(), eval_mode(self.forward_func) as function, without_drawing():
            output = run_forward(function, inputs, expand_forward_args(self.args, n) or None)
        values = select_target(output, self.target).reshape(-1)
        if len(values) != n:
            raise ForwardError(
                f"the forward function returned {len(values)} number(s) for {n} inputs; it must return one each."
            )
        if not bool(torch.isfinite(values).all()):
            raise ForwardError(
                "the forward function returned NaN or an infinite value for a perturbed input, which cannot be "
                "explained; check the baselines (or the training data) that perturbed inputs are made of."
            )
        return np.asarray(values.detach().to(device="cpu", dtype=torch.float64).numpy())[:, None]


def target_scalars(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], target: Target, additional_forward_args: Any
) -> list[TargetScalar]:
    """Return the target scalar of each example, after one forward pass on the unperturbed inputs.

    Args:
        forward_func: The forward function.
        inputs: Its input tensors, each (B, ...).
        target: A target in any of Captum's forms.
        additional_forward_args: Further arguments; tensors have B rows or one.

    Raises:
        TargetError: The output has no such target, or the target does not select one number per example.
        InputError: The tensors differ in B.
    """
    n = len(inputs[0])
    if any(len(x) != n for x in inputs):
        raise InputError(f"all inputs need the same batch size, but they have {[len(x) for x in inputs]}.")
    args = format_forward_args(additional_forward_args)
    target = plain_target(target, forward_func, inputs, args)
    with torch.no_grad(), eval_mode(forward_func) as function, without_drawing():
        output = run_forward(function, inputs, args or None)
    values = select_target(output, target).reshape(-1)
    if values.numel() != n:
        raise TargetError(
            f"target {target!r} does not select one number for each of {n} example(s) from an output of shape "
            f"{tuple(output.shape)}; pass the class to explain."
        )
    return [
        TargetScalar(forward_func, _row_args(args, i, n), _row_target(target, i), value)
        for i, value in enumerate(values.tolist())
    ]


@contextmanager
def eval_mode(forward_func: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Put a module or an adapter's model in eval mode within a block, and yield the function to call there.

    In training mode the noise of dropout would be explained. Any other function is left unchanged.
    """
    if isinstance(forward_func, Adapter):
        with evaluating(forward_func.model):
            yield forward_func
    elif isinstance(forward_func, nn.Module):
        with evaluating(forward_func) as model:
            yield model
    else:
        yield forward_func


def _row_args(args: tuple[Any, ...], i: int, n: int) -> tuple[Any, ...]:
    out = []
    for arg in args:
        if not isinstance(arg, Tensor) or arg.dim() == 0:
            out.append(arg)
        elif len(arg) == n:
            out.append(arg[i : i + 1])
        elif len(arg) == 1:
            out.append(arg)
        else:
            raise InputError(
                f"a tensor in additional_forward_args has shape {tuple(arg.shape)}, but there are {n} example(s); "
                "its first dimension must be the batch."
            )
    return tuple(out)


def _row_target(target: Target, i: int) -> Target:
    """Return the target of one example of a batch."""
    if isinstance(target, Tensor) and target.numel() > 1:
        return int(target[i])
    if isinstance(target, Tensor):
        return int(target.item())
    if isinstance(target, list):
        return target[i] if len(target) > 1 else target[0]
    return target
