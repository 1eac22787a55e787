"""Helpers that the LIME classes share: the explained numbers, checks of options, and the result's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_attn_lime._explained import Explained, Output, Unit, check_output, choose
from captum_attn_lime.adapters import Adapter
from captum_attn_lime.errors import InputError

Array = NDArray[np.float64]


def unit_of(adapter: Adapter, output: Output) -> Unit:
    """Return the unit of the explained number; regressions always explain the prediction.

    Raises:
        InputError: ``output`` is neither ``"probability"`` nor ``"logits"``.
    """
    units: dict[Output, Unit] = {"probability": "probability", "logits": "logit"}
    unit = units[check_output(output)]
    return "prediction" if adapter.is_regression else unit


def explained_numbers(
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
    """Return the explained numbers of one example: one, or one for each of several classes.

    Args:
        adapter: The adapter.
        scores: The example's scores in the unit, (classes,).
        unit: The unit.
        names: Class names; by default the adapter's.
        example: The example's tensors, in the order of the adapter's forward function.
        target: The class; by default the predicted one.
        labels: Several classes, instead of a target.
        top_labels: Number of classes with the highest scores, instead of a target.

    Raises:
        TargetError: There is no such class.
        InputError: Several of the three options are set, or no class was chosen.
    """
    if sum(way is not None for way in (target, labels, top_labels)) > 1:
        raise InputError("target=, labels= and top_labels= all choose classes; pass only one of them.")
    if adapter.is_regression and (labels is not None or top_labels is not None):
        raise InputError("labels= and top_labels= choose classes, but the model is a regression; pass target=.")
    if names is not None and len(names) != len(scores):
        raise InputError(f"there are {len(names)} class_names for {len(scores)} classes; pass one name per class.")
    if names is None:
        names = adapter.names_of(len(scores))
    if top_labels is not None:
        check_count("top_labels", top_labels, 1)
        labels = [int(k) for k in np.argsort(-scores, kind="stable")[:top_labels]]
    if labels is not None and (isinstance(labels, (str, int)) or not len(labels)):
        raise InputError(
            f"labels must be a sequence of at least one class, but is {labels!r}; pass a single class as target=."
        )
    unit, two_sided = adapter.naming(unit, example)
    numbers = tuple(
        choose(scores, one, unit, names, two_sided=two_sided) for one in ([target] if labels is None else labels)
    )
    if len({one.index for one in numbers}) < len(numbers):
        raise InputError(f"labels names a class twice: {[one.index for one in numbers]}.")
    return numbers


def check_callable(forward_func: Any) -> None:
    """Raise InputError unless ``forward_func`` is callable."""
    if not callable(forward_func):
        raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")


def check_count(name: str, value: int, least: int) -> None:
    """Raise InputError unless an option is an integer of at least ``least``."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, but is {value!r}.")


def check_samples(num_samples: int, num_features: int | None) -> None:
    """Raise InputError unless the numbers of samples and of shown features are valid."""
    check_count("num_samples", num_samples, 2)
    if num_features is not None:
        check_count("num_features", num_features, 1)


def result_dtype(inputs: tuple[Tensor, ...]) -> torch.dtype:
    """Return the dtype of attributions: that of the first floating input, else torch's default."""
    return next((x.dtype for x in inputs if x.is_floating_point()), torch.get_default_dtype())
