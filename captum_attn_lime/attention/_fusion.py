"""Selection of heads, and their fusion into one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, Literal, SupportsIndex, get_args

from torch import Tensor

from captum_attn_lime.errors import InputError, SelectionError

HeadFusion = Literal["mean", "max", "min"]


def check_head_fusion(head_fusion: str) -> HeadFusion:
    """Return the name of a head fusion; raise an InputError if it is unknown."""
    for name in get_args(HeadFusion):
        if head_fusion == name:
            return name  # type: ignore[no-any-return]
    raise InputError(f"head_fusion must be one of {', '.join(get_args(HeadFusion))}, but is {head_fusion!r}.")


def check_heads(heads: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """Return a selection of heads as an immutable object, checked except for the number of heads.

    Raises:
        SelectionError: It is empty, or contains anything other than integers.

    Example:
        >>> check_heads([0, -1])
        (0, -1)
    """
    if heads is None:
        return None
    is_one = isinstance(heads, SupportsIndex)
    try:
        wanted: tuple[Any, ...] = (heads,) if is_one else tuple(heads)  # type: ignore[arg-type]
        found = tuple(index(head) for head in wanted if not isinstance(head, bool))
    except TypeError:
        wanted, found = (heads,), ()
    if not wanted:
        raise SelectionError("heads is empty; pass None for all heads, or at least one index.")
    if len(found) != len(wanted):
        raise SelectionError(f"heads={heads!r} is not valid: pass an index, a sequence of indices, or None for all.")
    return found[0] if is_one else found


def select_heads(heads: int | Sequence[int] | None, n_heads: int, *, name: str = "") -> list[int]:
    """Return head indices in ``[0, n_heads)``; ``None`` selects all, negative ones count from the end.

    Raises:
        SelectionError: A head is out of range, or the selection is empty.

    Example:
        >>> select_heads(-1, 12)
        [11]
    """
    wanted = check_heads(heads)
    if wanted is None:
        return list(range(n_heads))
    wanted = (wanted,) if isinstance(wanted, int) else wanted
    for head in wanted:
        if not -n_heads <= head < n_heads:
            where = f" in {name!r}" if name else ""
            raise SelectionError(f"head {head} is out of range: there are {n_heads} heads{where} (0 to {n_heads - 1}).")
    return [head % n_heads for head in wanted]


def pick_heads(x: Tensor, heads: list[int]) -> Tensor:
    """Return ``x[:, heads]``, without a copy if these are all heads."""
    return x if heads == list(range(x.shape[1])) else x[:, heads]


def fuse_heads(weights: Tensor, head_fusion: HeadFusion = "mean") -> Tensor:
    """Return the weights (B, H, Q, K) fused over their heads, (B, Q, K).

    Example:
        >>> import torch
        >>> fuse_heads(torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]]), "max")
        tensor([[[1.0000, 0.5000]]])
    """
    if head_fusion == "mean":
        return weights.mean(dim=1)
    return weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
