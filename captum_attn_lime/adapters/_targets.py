"""Targets by name: class names and NumPy integers as the indices that Captum's functions understand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_attn_lime._explained import class_index
from captum_attn_lime._util.captum import plain_indices
from captum_attn_lime.adapters._base import Adapter
from captum_attn_lime.errors import TargetError


def plain_target(target: Any, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], forward_args: Any) -> Any:
    """Return a target in which NumPy integers are ints, and class names the columns of the forward function's output.

    Args:
        target: Any of Captum's forms of a target, also with class names.
        forward_func: The forward function; names need an adapter.
        inputs: Its input tensors; the first example shows the number of columns.
        forward_args: Its further arguments.

    Raises:
        TargetError: There is no such class, or it is class 0 of a single logit z, whose -z is not an output.

    Example:
        >>> import numpy as np
        >>> plain_target([np.int64(1), (np.int64(0), 2)], len, (), ())
        [1, (0, 2)]
    """
    target = plain_indices(target)
    if isinstance(target, (list, tuple)):
        return type(target)(plain_target(one, forward_func, inputs, forward_args) for one in target)
    if isinstance(forward_func, Adapter):
        target = forward_func.with_token_ids(target)
    if not isinstance(target, str):
        return target
    if not isinstance(forward_func, Adapter) or forward_func.class_names is None:
        raise TargetError(
            f"target {target!r} is a name, and {type(forward_func).__name__} has no class names; pass the index of the "
            "class, or make the method with an adapter that has class_names."
        )
    columns = forward_func.columns(inputs, forward_args)
    n = columns if forward_func.is_regression else max(columns, 2)
    names = forward_func.names_of(n)
    index = class_index(target, n, names)
    if names is not None and columns < n:
        if index == 0:
            raise TargetError(
                f"the model has a single logit z, that of class {names[1]!r}; {names[0]!r} is -z. Pass "
                f"target={names[1]!r} and flip the signs, or use compare or LIME's explain, which do that."
            )
        return 0
    return index
