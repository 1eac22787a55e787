"""Helpers around lime's tabular explainer: checks of its options, a fix of its bins, and its predict function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._util.progress import Tick
from captum_attn_lime.adapters import TabularAdapter
from captum_attn_lime.adapters.numeric._columns import as_table
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array
from captum_attn_lime.perturb._model_outputs import TargetScalar

Semantics = Literal["contrast", "gradient", "times_input"]


@contextmanager
def no_sum_warning() -> Iterator[None]:
    """Suppress lime's warning that scores do not sum to 1, which logits and multi-label scores need not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Prediction probab", UserWarning)
        yield


def rounded_like(training: Array, like: tuple[Tensor, ...], groups: Sequence[Sequence[int]]) -> Array:
    """Return the training rows rounded to the inputs' dtype.

    5.8 is not 5.8 in float32: with unrounded training data, a value on a quartile would fall into the neighbouring bin.
    """
    out: Array = training.copy()
    for x, group in zip(like, groups, strict=True):
        if x.is_floating_point():
            columns = torch.from_numpy(training[:, list(group)])
            out[:, list(group)] = columns.to(x.dtype).to(torch.float64).numpy()
    return out


def fix_single_value_bins(discretizer: Any) -> None:
    """Make lime's discretizer return the value of a bin that holds a single value.

    lime 0.2.0.1 returns it in standard units, that is about 0: a column that is 5 in every training row would be 0 in
    every perturbed row, which the model has never seen. Other bins and the random draws do not change.
    """
    draw = discretizer.get_undiscretize_values

    def values(feature: int, bins: Any) -> Array:
        out: Array = draw(feature, bins)
        least, most = (np.array(ends[feature])[bins] for ends in (discretizer.mins, discretizer.maxs))
        return np.where(least == most, least, out)

    discretizer.get_undiscretize_values = values


def features_of(masks: tuple[Tensor, ...], tensors: tuple[Tensor, ...], semantics: Semantics) -> tuple[Tensor, ...]:
    """Return the feature of each cell, in the inputs' shapes, checked."""
    try:
        expanded = tuple(m.cpu().expand(x.shape) for m, x in zip(masks, tensors, strict=True))
    except (RuntimeError, ValueError):
        given, needed = (", ".join(str(tuple(t.shape)) for t in group) for group in (masks, tensors))
        raise InputError(f"feature_mask of shape {given} does not broadcast to the inputs' {needed}.") from None
    ids = torch.cat([m.flatten(1) for m in expanded], dim=1)
    if semantics == "gradient" and any(len(row.unique()) < row.numel() for row in ids):
        raise InputError(
            "feature_mask joins several cells into one feature, and slopes do not add up; use "
            "semantics='times_input' or 'contrast', or leave feature_mask out."
        )
    return expanded


def predictor(
    scalar: TargetScalar, to_tensors: Callable[[Array], Sequence[Tensor]], batch: int, tick: Tick
) -> Callable[[Array], Array]:
    """Return lime's predict function, from examples (n, ...) to target scalars (n,)."""

    def predict(examples: Array) -> Array:
        values = []
        for start in range(0, len(examples), batch):
            part = np.ascontiguousarray(examples[start : start + batch])
            values.append(scalar(*to_tensors(part))[:, 0])
            tick(len(part))
        return np.concatenate(values)

    return predict


def needs_training_data() -> InputError:
    """Return the error for missing training data."""
    return InputError("LIME draws its rows from training data; pass training_data=, here or to the adapter.")


def check_options(semantics: str, discretizer: Any, training_labels: Any, sample_around_instance: bool) -> None:
    """Raise InputError for invalid options and for options that lime would ignore."""
    if semantics not in get_args(Semantics):
        raise InputError(f"semantics must be 'contrast', 'gradient' or 'times_input', but is {semantics!r}.")
    entropy = isinstance(discretizer, str) and discretizer == "entropy"
    if semantics == "contrast" and sample_around_instance:
        raise InputError(
            "sample_around_instance has no effect on bins; use semantics='gradient' or 'times_input', or leave it out."
        )
    if semantics != "contrast" and discretizer != "quartile":
        raise InputError(f"discretizer has no effect with semantics={semantics!r}; leave it out or use 'contrast'.")
    if training_labels is not None and not entropy:
        raise InputError("training_labels are used only by discretizer='entropy'; leave them out.")
    if entropy and training_labels is None:
        raise InputError("discretizer='entropy' needs training_labels=.")


def training_rows(given: Any, adapter: TabularAdapter | None, names: Sequence[str] | None) -> Array:
    """Return the checked training rows as an array."""
    if given is None:
        if adapter is None or adapter.training_data is None:
            raise needs_training_data()
        return adapter.training_data
    if adapter is not None:
        return adapter.arrays(given)
    return as_table(given, names)
