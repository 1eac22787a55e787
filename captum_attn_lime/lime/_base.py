"""What the LIME classes share: the target scalar of one example, its arguments, options and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_attn_lime._explained import Explained, Output, Unit, check_output, choose
from captum_attn_lime._util.captum import Target, expand_forward_args, format_forward_args, run_forward, select_target
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters import Adapter
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters._targets import plain_target
from captum_attn_lime.errors import ForwardError, InputError, TargetError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TargetScalar:
    """The forward function's output at the target, for perturbed copies of one example.

    Attributes:
        forward_func: The forward function.
        args: The example's own row of the additional forward arguments.
        target: The example's own target.
    """

    forward_func: Callable[..., Any]
    args: tuple[Any, ...]
    target: Target

    def __call__(self, inputs: tuple[Tensor, ...]) -> Array:
        """Return one number per copy.

        Args:
            inputs: The perturbed copies, each (n, ...).

        Raises:
            ForwardError: The output is not one finite number per copy.
        """
        n = len(inputs[0])
        with without_drawing():
            output = run_forward(self.forward_func, inputs, expand_forward_args(self.args, n) or None)
        values = select_target(output, self.target).reshape(-1)
        if len(values) != n:
            raise ForwardError(
                f"the forward function gave {len(values)} numbers for {n} perturbed inputs; it must give one each."
            )
        if not bool(torch.isfinite(values).all()):
            raise ForwardError(
                "the forward function gave NaN or an infinite value for a perturbed input, and LIME cannot fit that; "
                "check the baselines (or the training data) that perturbed inputs are made of."
            )
        return np.asarray(values.detach().to(device="cpu", dtype=torch.float64).numpy())


def target_scalars(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], target: Target, additional_forward_args: Any
) -> list[TargetScalar]:
    """Return the target scalar of each example, after one run on the inputs as they are.

    Args:
        forward_func: The forward function.
        inputs: Its input tensors, each (B, ...).
        target: Any of Captum's forms of a target.
        additional_forward_args: Further arguments; tensors have B rows, or 1.

    Raises:
        TargetError: The output does not have that target, or no target picks one number per example.
        InputError: The tensors disagree about B.
    """
    n = len(inputs[0])
    if any(len(x) != n for x in inputs):
        raise InputError(f"all inputs need the same batch size, but they have {[len(x) for x in inputs]}.")
    args = format_forward_args(additional_forward_args)
    target = plain_target(target, forward_func, inputs, args)
    with without_drawing():
        output = run_forward(forward_func, inputs, args or None)
    if select_target(output, target).numel() != n:
        raise TargetError(
            f"target {target!r} does not pick one number for each of {n} example(s) from an output of shape "
            f"{tuple(output.shape)}; pass the class to explain."
        )
    return [TargetScalar(forward_func, _row_args(args, i, n), _row_target(target, i)) for i in range(n)]


@contextmanager
def settled(forward_func: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Run a block in which a model is asked in eval mode, and return the function to ask there.

    LIME would fit the noise of dropout. That goes for an adapter's model and for a module; any other function keeps the
    mode that its owner gave it.
    """
    if isinstance(forward_func, Adapter):
        with evaluating(forward_func.model):
            yield forward_func
    elif isinstance(forward_func, nn.Module):
        with evaluating(forward_func) as model:
            yield model
    else:
        yield forward_func


def unit_of(adapter: Adapter, output: Output) -> Unit:
    """Return the unit of what is explained: of a regression the prediction, whatever was asked for.

    Raises:
        InputError: ``output`` is neither ``"probability"`` nor ``"logits"``.
    """
    units: dict[Output, Unit] = {"probability": "probability", "logits": "logit"}
    unit = units[check_output(output)]
    return "prediction" if adapter.is_regression else unit


def chosen(
    adapter: Adapter,
    scores: Array,
    unit: Unit,
    names: Sequence[str] | None,
    example: tuple[Tensor, ...],
    *,
    target: Any = None,
    labels: Sequence[Any] | None = None,
    top_labels: int | None = None,
) -> tuple[Explained, ...]:
    """Return what is explained of one example: one number, or one for each of several classes.

    Args:
        adapter: What the model is asked through.
        scores: Its answers in the unit, (classes,).
        unit: The unit.
        names: Names of the classes; by default the adapter's.
        example: The tensors of the example, as the adapter's forward function takes them.
        target: The class; by default the one that is predicted.
        labels: Several classes, in the place of a target.
        top_labels: So many classes with the highest scores, in the place of a target.

    Raises:
        TargetError: There is no such class.
        InputError: More than one way to choose came, or none was chosen.
    """
    if sum(way is not None for way in (target, labels, top_labels)) > 1:
        raise InputError("target=, labels= and top_labels= are three ways to choose classes; pass one of them.")
    if adapter.is_regression and (labels is not None or top_labels is not None):
        raise InputError("labels= and top_labels= are for classes, and the model is a regression; pass target=.")
    if names is not None and len(names) != len(scores):
        raise InputError(f"{len(names)} class_names were given, but there are {len(scores)}; pass one name for each.")
    if names is None:
        names = adapter.names_of(len(scores))
    if top_labels is not None:
        check_count("top_labels", top_labels, 1)
        labels = [int(k) for k in np.argsort(-scores, kind="stable")[:top_labels]]
    if labels is not None and (isinstance(labels, (str, int)) or not len(labels)):
        raise InputError(f"labels must be a sequence of at least one class, but is {labels!r}; one class is a target.")
    unit, two_sided = adapter.naming(unit, example)
    found = tuple(
        choose(scores, one, unit, names, two_sided=two_sided) for one in ([target] if labels is None else labels)
    )
    if len({one.index for one in found}) < len(found):
        raise InputError(f"labels names a class twice: {[one.index for one in found]}.")
    return found


def check_callable(forward_func: Any) -> None:
    """Raise unless it is a function or a module."""
    if not callable(forward_func):
        raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")


def check_count(name: str, value: int, least: int) -> None:
    """Raise unless an option is a whole number of at least ``least``."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, but is {value!r}.")


def check_samples(num_samples: int, num_features: int | None) -> None:
    """Raise unless the number of samples and of features to show can be drawn and fitted."""
    check_count("num_samples", num_samples, 2)
    if num_features is not None:
        check_count("num_features", num_features, 1)


def result_dtype(inputs: tuple[Tensor, ...]) -> torch.dtype:
    """Return the dtype of attributions: the first floating input's, else torch's default."""
    return next((x.dtype for x in inputs if x.is_floating_point()), torch.get_default_dtype())


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
