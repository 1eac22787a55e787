"""Whether a text's output depends on the rest of its batch: padding, on either side, or other texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from captum_attn_lime.adapters.text._tokenize import PlainIds

Side = Literal["left", "right"]
Array = NDArray[np.float64]
# From rows of tokens, the padding side and the width, to the model's output for each row.
RunRows = Callable[[Sequence[PlainIds], Side, int], list[Array]]
Epsilon = Callable[[], float]
# Tolerance for kernels of other shapes: a share of the outputs' spread, and a number of steps of their precision.
_OF_SPREAD, _STEPS = 1e-5, 64


@dataclass(frozen=True)
class Batching:
    """How texts may share batches.

    Attributes:
        side: The side on which padding changes nothing; None if it changes outputs on both.
        alone: Whether each text must run alone, because others in its batch change its output.
    """

    side: Side | None
    alone: bool = False


def shortened(row: Any, length: int) -> PlainIds:
    """Return a row's first and last tokens, like a text without its middle words.

    Example:
        >>> shortened(PlainIds((2, 7, 8, 9, 3)), 3).ids
        (2, 7, 3)
    """
    end = length // 2
    keep = [*range(length - end), *range(len(row.ids) - end, len(row.ids))] if length < len(row.ids) else None
    if keep is None:
        return PlainIds(tuple(row.ids), row.types)
    types = None if row.types is None else tuple(row.types[k] for k in keep)
    return PlainIds(tuple(row.ids[k] for k in keep), types)


def find_batching(
    run: RunRows, rows: Sequence[Any], width: int, preferred: Side, epsilon: Epsilon, *, budget: int
) -> tuple[Batching, bool]:
    """Return how rows may share batches, and whether that is certain.

    Some rows, and shortened copies of one, run alone and padded. Padding shows most in short texts: with a maximum over
    positions, for example, a long text hides it.

    Args:
        run: Runs the model.
        rows: Tokens of texts.
        width: The number of tokens to which they are padded.
        preferred: The tokenizer's side, which is tried first.
        epsilon: Returns the precision of the outputs; called after the first run.
        budget: Greatest number of tokens of a batch.
    """
    copies: list[PlainIds] = []
    alone: list[Array] = []
    for row in _shorter(rows, width):
        outputs = _try_outputs(run, [row], preferred, len(row.ids))
        if outputs is not None:  # a shortened text may be too short for a model
            copies.append(row)
            alone += outputs
    if not copies:
        return Batching(preferred), False
    batch = [*copies, shortened(max(rows, key=lambda row: len(row.ids)), width)]
    tolerance = _tolerance(alone, epsilon())
    for side in (preferred, _other(preferred)):
        together = _try_outputs(run, batch, side, width) if len(batch) * width <= budget else None
        if together is None:  # some models reject such a batch, for example if all rows need equally many end tokens
            each = [_try_outputs(run, [row], side, width) for row in copies]
            together = [x for outputs in each if outputs is not None for x in outputs]
        if len(together) >= len(alone) and _same(together, alone, tolerance):
            return Batching(side), _vary(alone)
    again = [_try_outputs(run, [row], preferred, len(row.ids)) for row in copies]
    if not all(x is not None and _same(x, [first], tolerance) for x, first in zip(again, alone, strict=True)):
        return Batching(preferred), True  # the outputs are random, so the effect of padding cannot be known
    return Batching(None), True


def _shorter(rows: Sequence[Any], width: int) -> list[PlainIds]:
    """Return rows shorter than the width: some of these, and shortened copies of the longest."""
    *shorter, longest = sorted(rows, key=lambda row: len(row.ids))
    real = [shorter[0], shorter[len(shorter) // 2]] if shorter else []
    made = [shortened(longest, length) for length in (2, len(longest.ids) // 4, len(longest.ids) // 2) if length]
    found = dict.fromkeys([*made, *(shortened(row, width) for row in (*real, longest))])
    return [row for row in found if 0 < len(row.ids) < width][:4]


def _other(side: Side) -> Side:
    return "left" if side == "right" else "right"


def others_change_output(run: RunRows, row: Any, epsilon: Epsilon) -> bool:
    """Return whether another text of the same length in its batch changes a text's output.

    Args:
        run: Runs the model.
        row: The tokens of a text.
        epsilon: Returns the precision of the outputs; called after the first run.
    """
    row = shortened(row, len(row.ids))
    width = len(row.ids)
    alone = _try_outputs(run, [row], "right", width)
    # Different words between the same ends: a bag of words would not notice a mere reordering.
    middle = row.ids[1:-1]
    other = replace(row, ids=(*row.ids[:1], *middle[-1:] * len(middle), *row.ids[-1:]) if middle else row.ids[::-1])
    both = _try_outputs(run, [row, other], "right", width)
    if alone is None or both is None or _same(both[:1], alone, _tolerance([*alone, *both], epsilon())):
        return False
    again = _try_outputs(run, [row], "right", width)
    return again is not None and _same(again, alone, _tolerance([*alone, *both], epsilon()))


def precision(*dtypes: torch.dtype) -> float:
    """Return the precision of the coarsest of these number formats.

    Example:
        >>> precision(torch.float32, torch.float64) == torch.finfo(torch.float32).eps
        True
    """
    return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=torch.finfo(torch.float32).eps)


def _try_outputs(run: RunRows, rows: Sequence[PlainIds], side: Side, width: int) -> list[Array] | None:
    """Return the model's outputs, or None if it cannot take these rows."""
    try:
        return run(rows, side, width)
    except Exception:  # a user's model may raise anything; a real run will raise it again
        return None


def _tolerance(outputs: Sequence[Array], epsilon: float) -> float:
    values = [np.atleast_2d(x)[[0, -1]] for x in outputs]
    table = np.concatenate(values)
    return float(_OF_SPREAD * np.ptp(table, axis=0).max() + _STEPS * epsilon * np.abs(table).max())


def _same(one: Sequence[Array], other: Sequence[Array], tolerance: float) -> bool:
    return all(
        a.shape == b.shape and bool((np.abs(a - b) <= tolerance).all()) for a, b in zip(one, other, strict=False)
    )


def _vary(outputs: Sequence[Array]) -> bool:
    """Return whether different texts get different outputs; equal ones are not conclusive."""
    first = np.atleast_2d(outputs[0])[0]
    return any(not np.allclose(np.atleast_2d(x)[0], first, rtol=1e-6, atol=0) for x in outputs[1:])
