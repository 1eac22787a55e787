"""What the LIME classes share: the target scalar of one example, its arguments, options and progress."""

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
    """Return the unit of what is explained: of a regression the prediction, whatever was asked for.

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
