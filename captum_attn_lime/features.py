"""Feature masks, shared by attention, LIME and Captum: from cells to features and back.

A *feature mask* is what Captum calls by that name: an integer tensor per input tensor, broadcastable to the input's
shape, that maps each cell (input element) to the id of its feature, counted from 0. Ids may continue across the tensors
of a tuple. Three functions use it: :func:`pool` (cells to features), :func:`spread` (features to cells) and
:func:`split` (divides a feature's value among its cells, as additive measures such as infidelity need).
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor

from captum_attn_lime.errors import InputError

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])
Reduction = Literal["sum", "first", "mean"]


def pool(
    attributions: TensorOrTuple,
    feature_mask: TensorOrTuple,
    reduction: Reduction = "sum",
    n_features: int | None = None,
) -> Tensor:
    """Return one value per example and feature, aggregated over the feature's cells.

    Args:
        attributions: One value per cell, ``(B, ...)``; a tensor or a tuple of tensors.
        feature_mask: Feature ids from 0, broadcastable to ``attributions``; one row, or one row per example.
        reduction: ``"sum"`` for values that add up over cells (gradients, attention mass), ``"first"`` for values
            repeated in every cell of a feature (Captum's ablation convention), or ``"mean"``.
        n_features: Number of features; by default the largest id in the mask plus one.

    Returns:
        ``(B, n_features)``.

    Raises:
        InputError: The mask does not hold integers, has negative ids, or does not broadcast to the attributions.

    Example:
        >>> pool(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0, 1, 1]]))
        tensor([[1., 6.]])
        >>> pool(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([[0, 1, 1]]), "first")
        tensor([[1., 3.]])
    """
    cells = _as_tuple(attributions)
    masks = _as_masks(feature_mask, cells)
    n = _count(masks) if n_features is None else n_features
    flat = torch.cat([c.reshape(len(c), -1) for c in cells], dim=1)  # (B, cells)
    ids = torch.cat([m.reshape(len(m), -1) for m in masks], dim=1)  # (B, cells)
    if reduction == "first":
        cell = torch.arange(flat.shape[1], device=flat.device).expand(ids.shape)
        none = flat.shape[1]
        first = torch.full((len(ids), n), none, device=flat.device).scatter_reduce_(1, ids, cell, "amin")
        # A feature without cells reads the zero appended after the last cell.
        return torch.cat([flat, flat.new_zeros(len(flat), 1)], dim=1).gather(1, first)
    summed = flat.new_zeros(len(flat), n).scatter_add_(1, ids, flat)
    if reduction == "mean":
        return summed / _cell_counts(ids, n, flat.dtype).clamp(min=1)
    return summed


def spread(values: Tensor, feature_mask: TensorOrTuple) -> TensorOrTuple:
    """Return each feature's value in all of its cells, as Captum's ablation methods do.

    Args:
        values: One value per feature, ``(B, n_features)``.
        feature_mask: Feature ids from 0, ``(1, ...)`` or ``(B, ...)``; tensor or tuple.

    Returns:
        Tensors of the mask's shape with ``B`` rows.

    Example:
        >>> spread(torch.tensor([[0.5, 2.0]]), torch.tensor([[0, 1, 1]]))
        tensor([[0.5000, 2.0000, 2.0000]])
    """
    masks = _as_tuple(feature_mask)
    out = []
    for mask in masks:
        ids = mask.expand(len(values), *mask.shape[1:]).reshape(len(values), -1)
        out.append(values.gather(1, ids).reshape(len(values), *mask.shape[1:]))
    return tuple(out) if isinstance(feature_mask, tuple) else out[0]


def split(attributions: TensorOrTuple, feature_mask: TensorOrTuple) -> TensorOrTuple:
    """Return the attributions with each feature's value divided by its number of cells.

    Attention and LIME repeat a feature's value in each of its cells. Sums over cells (``infidelity``, completeness)
    would count the feature once per cell; after ``split`` they count it once.

    Args:
        attributions: ``(B, ...)``, with the feature's value in each cell; tensor or tuple.
        feature_mask: Feature ids from 0, broadcastable to ``attributions``.

    Example:
        >>> split(torch.tensor([[0.5, 2.0, 2.0]]), torch.tensor([[0, 1, 1]]))
        tensor([[0.5000, 1.0000, 1.0000]])
    """
    cells = _as_tuple(attributions)
    masks = _as_masks(feature_mask, cells)
    ids = torch.cat([m.reshape(len(m), -1) for m in masks], dim=1)
    counts = _cell_counts(ids, _count(masks), cells[0].dtype)
    out = []
    for cell, mask in zip(cells, masks, strict=True):
        out.append(cell / counts.gather(1, mask.reshape(len(mask), -1)).reshape(cell.shape))
    return tuple(out) if isinstance(attributions, tuple) else out[0]


def by_position(inputs: TensorOrTuple) -> TensorOrTuple:
    """Return the feature mask with one feature per position along dimension 1.

    That is one feature per token for ids ``(B, N)`` and embeddings ``(B, N, D)``, and one per column for rows
    ``(B, n)``. For a tuple, the ids continue from tensor to tensor.

    Example:
        >>> by_position(torch.zeros(1, 2, 3))
        tensor([[[0, 0, 0],
                 [1, 1, 1]]])
    """
    start, out = 0, []
    for x in _as_tuple(inputs):
        if x.dim() < 2:
            raise InputError(
                f"an input has shape {tuple(x.shape)}, but a batch (B, ...) is needed; add a dimension: x.unsqueeze(0)."
            )
        n = x.shape[1]
        ids = torch.arange(start, start + n, device=x.device).reshape(1, n, *[1] * (x.dim() - 2))
        out.append(ids.expand(1, *x.shape[1:]).contiguous())
        start += n
    return tuple(out) if isinstance(inputs, tuple) else out[0]


def is_repeated(attributions: TensorOrTuple, feature_mask: TensorOrTuple) -> bool:
    """Return whether all cells of each feature have the same value.

    False if no feature has more than one cell, since the question then has no answer.

    Example:
        >>> is_repeated(torch.tensor([[0.5, 2.0, 2.0]]), torch.tensor([[0, 1, 1]]))
        True
        >>> is_repeated(torch.tensor([[0.5, 1.0, 2.0]]), torch.tensor([[0, 1, 1]]))
        False
    """
    cells = _as_tuple(attributions)
    masks = _as_masks(feature_mask, cells)
    ids = torch.cat([m.reshape(len(m), -1) for m in masks], dim=1)
    if not bool((_cell_counts(ids, _count(masks), torch.float64) > 1).any()):
        return False
    first = pool(cells, masks, "first")
    return all(torch.equal(s, c) for s, c in zip(spread(first, masks), cells, strict=True))


def _as_tuple(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _count(masks: tuple[Tensor, ...]) -> int:
    return max(int(m.max()) for m in masks if m.numel()) + 1


def _cell_counts(ids: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(len(ids), n, dtype=dtype, device=ids.device).scatter_add_(
        1, ids, torch.ones(ids.shape, dtype=dtype, device=ids.device)
    )


def _as_masks(feature_mask: Tensor | tuple[Tensor, ...], cells: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the masks expanded to the cells' shapes, checked."""
    masks = _as_tuple(feature_mask)
    if len(masks) != len(cells):
        raise InputError(
            f"feature_mask has {len(masks)} tensor(s) but the attributions have {len(cells)}; pass one mask per tensor."
        )
    out = []
    for mask, cell in zip(masks, cells, strict=True):
        if mask.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise InputError(f"feature_mask must hold integer ids, but its dtype is {mask.dtype}; pass mask.long().")
        if mask.numel() and int(mask.min()) < 0:
            raise InputError("feature_mask has negative ids; number the features from 0.")
        try:
            out.append(mask.to(device=cell.device, dtype=torch.int64).expand(cell.shape))
        except RuntimeError:
            raise InputError(
                f"feature_mask of shape {tuple(mask.shape)} does not broadcast to the attributions' shape "
                f"{tuple(cell.shape)}; pass encoding.feature_mask, or a mask of the attributions' shape."
            ) from None
    return tuple(out)
