"""Columns that hold categories: other categories to try, and checks of gradient methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.adapters._outputs import Array
from captum_attn_lime.errors import InputError

_INSTEAD = (
    "use a method that replaces values (FeatureAblation, ShapleyValueSampling, LimeTabular, LimeSequence), or a layer "
    "method over what embeds the categories: LayerIntegratedGradients(adapter, adapter.embeddings)"
)


def another_category(values: Array, known: Array | None) -> Array:
    """Return a different category for each value: the next known one, or 1 for 0 and 0 for others.

    Example:
        >>> another_category(np.array([0.0, 2.0]), None), another_category(np.array([1.0, 7.0]), np.array([1.0, 7.0]))
        (array([1., 0.]), array([7., 1.]))
    """
    if known is None:
        return np.where(values == 0, 1.0, 0.0)
    return np.asarray(known[(np.searchsorted(known, values) + 1) % len(known)])


def as_ids(categories: Tensor, model: str) -> Tensor:
    """Return categories (n, columns) as integers, also from floats with integer values.

    Raises:
        InputError: A float is not an integer: a gradient method interpolated the inputs or added noise.
    """
    if not categories.is_floating_point():
        return categories
    ids = categories.detach().round()
    if not torch.equal(ids, categories.detach()):
        raise InputError(
            f"{model} looks up categories, but got {categories.dtype} values that are no whole numbers: this method "
            f"interpolates its inputs or adds noise to them, as NoiseTunnel does, also around a layer method. Instead "
            f"{_INSTEAD}, without a NoiseTunnel."
        )
    return ids.to(torch.int64)


def with_nan_gradient(x: Tensor, columns: Sequence[int]) -> Tensor:
    """Return the same numbers with NaN as the gradient of some columns (last dimension), which have none."""
    return cast(Tensor, _NaNGradient.apply(x, tuple(columns)))  # type: ignore[no-untyped-call]


def lookup_columns(
    run: Callable[[Tensor], Tensor], examples: Tensor, others: Tensor, columns: Sequence[int]
) -> list[int]:
    """Return the categorical columns whose gradient is 0 although other categories give other outputs.

    These are the columns that a model of one tensor converts to ids. A column that it uses as a number, such as one of
    0 and 1, has an ordinary gradient, and one that it ignores a true gradient of 0.

    Args:
        run: The model's outputs (n, ...) for examples.
        examples: Examples (n, ..., columns), with integer categories.
        others: The same with different categories.
        columns: The categorical columns.
    """
    with torch.enable_grad():
        x = examples.detach().clone().requires_grad_()
        outputs = run(x)
        if not outputs.requires_grad:
            return list(columns)
        # Unequal weights, because outputs that sum to a constant (probabilities) would have a gradient of 0.
        weights = torch.linspace(0.5, 1.5, outputs[0].numel()).to(outputs).reshape(outputs.shape[1:])
        (gradient,) = torch.autograd.grad((outputs * weights).sum(), x, allow_unused=True)
    if gradient is not None:
        columns = [c for c in columns if not bool((gradient[..., c] != 0).any())]
    return [c for c in columns if _matters(run, examples, others, c, outputs.detach())]


def _matters(run: Callable[[Tensor], Tensor], examples: Tensor, others: Tensor, column: int, outputs: Tensor) -> bool:
    """Return whether different categories in a column give different outputs."""
    altered = examples.clone()
    altered[..., column] = others[..., column]
    try:
        with torch.no_grad():
            return not torch.allclose(run(altered), outputs, rtol=1e-6, atol=1e-8)
    except (IndexError, RuntimeError):  # a category that the model has no entry for: it looks them up
        return True


def check_whole(x: Tensor, columns: Sequence[int], names: Sequence[str] | None, model: str) -> None:
    """Raise if a gradient method passes a model categories that are not integers."""
    for column in columns:
        values = x.detach()[..., column]
        if not torch.equal(values, values.round()):
            raise InputError(
                f"{model} looks up the categories of {(names[column] if names else str(column))!r}, and this gradient "
                f"method needs values between them, on the path from the baseline or through noise; {_INSTEAD}."
            )


class _NaNGradient(torch.autograd.Function):
    """The identity, with NaN as the gradient of some columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: tuple[int, ...]) -> Tensor:
        ctx.columns = columns
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        out = gradients[0].clone()
        out[..., list(ctx.columns)] = float("nan")
        return out, None
