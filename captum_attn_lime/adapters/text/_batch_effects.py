"""Whether a text's answer depends on what it shares a batch with: padding, on either side, or other texts."""

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
# From rows of tokens, the side on which they are padded and the width, to what the model says of each.
Answers = Callable[[Sequence[PlainIds], Side, int], list[Array]]
Epsilon = Callable[[], float]
# Of the spread of the answers, and of their size in steps of their precision: what kernels for other shapes may change.
_OF_SPREAD, _STEPS = 1e-5, 64


@dataclass(frozen=True)
class Batching:
    """How texts may run together.

    Attributes:
        side: The side on which padding changes nothing; None where it does on both.
        alone: Whether each text must run alone, because others in its batch change its answer.
    """

    side: Side | None
    alone: bool = False


def shortened(row: Any, length: int) -> PlainIds:
    """Return a row's first and last tokens, as a text has them whose words in the middle are gone.

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
    answers: Answers, rows: Sequence[Any], width: int, own: Side, epsilon: Epsilon, *, budget: int
) -> tuple[Batching, bool]:
    """Return how rows may run together, and whether that is certain.

    Some of the rows, and what is left of one where its words are gone, run alone and padded. The less there is of a
    text, the more padding tells: where the largest over positions is taken, a long text hides it.

    Args:
        answers: What the model says.
        rows: Tokens of texts.
        width: The number of tokens to which they are padded.
        own: The tokenizer's side, which is tried first.
        epsilon: Precision of the answers, known once there are some.
        budget: Greatest number of tokens of a batch.
    """
    copies: list[PlainIds] = []
    alone: list[Array] = []
    for row in _telling(rows, width):
        said = _answers(answers, [row], own, len(row.ids))
        if said is not None:  # a part of a text may be too short for a model
            copies.append(row)
            alone += said
    if not copies:
        return Batching(own), False
    batch = [*copies, shortened(max(rows, key=lambda row: len(row.ids)), width)]
    tolerance = _tolerance(alone, epsilon())
    for side in (own, _other(own)):
        together = _answers(answers, batch, side, width) if len(batch) * width <= budget else None
        if together is None:  # parts of texts may not go together, as where all need equally many end tokens
            each = [_answers(answers, [row], side, width) for row in copies]
            together = [x for said in each if said is not None for x in said]
        if len(together) >= len(alone) and _same(together, alone, tolerance):
            return Batching(side), _vary(alone)
    again = [_answers(answers, [row], own, len(row.ids)) for row in copies]
    if not all(said is not None and _same(said, [was], tolerance) for said, was in zip(again, alone, strict=True)):
        return Batching(own), True  # its answers are random: nothing can be said of padding
    return Batching(None), True


def _telling(rows: Sequence[Any], width: int) -> list[PlainIds]:
    """Return rows shorter than the width: of those that came, and what is left of the longest without its words."""
    *shorter, longest = sorted(rows, key=lambda row: len(row.ids))
    real = [shorter[0], shorter[len(shorter) // 2]] if shorter else []
    made = [shortened(longest, length) for length in (2, len(longest.ids) // 4, len(longest.ids) // 2) if length]
    found = dict.fromkeys([*made, *(shortened(row, width) for row in (*real, longest))])
    return [row for row in found if 0 < len(row.ids) < width][:4]


def _other(side: Side) -> Side:
    return "left" if side == "right" else "right"


def others_change_answer(answers: Answers, row: Any, epsilon: Epsilon) -> bool:
    """Return whether another text of the same length in its batch changes a text's answer.

    Args:
        answers: What the model says.
        row: The tokens of a text.
        epsilon: Precision of the answers, known once there are some.
    """
    row = shortened(row, len(row.ids))
    width = len(row.ids)
    alone = _answers(answers, [row], "right", width)
    # Other words in another order, between the same ends: a bag of the same words would say the same.
    middle = row.ids[1:-1]
    other = replace(row, ids=(*row.ids[:1], *middle[-1:] * len(middle), *row.ids[-1:]) if middle else row.ids[::-1])
    both = _answers(answers, [row, other], "right", width)
    if alone is None or both is None or _same(both[:1], alone, _tolerance([*alone, *both], epsilon())):
        return False
    again = _answers(answers, [row], "right", width)
    return again is not None and _same(again, alone, _tolerance([*alone, *both], epsilon()))


def precision(*dtypes: torch.dtype) -> float:
    """Return the precision of the coarsest of these number formats.

    Example:
        >>> precision(torch.float32, torch.float64) == torch.finfo(torch.float32).eps
        True
    """
    return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=torch.finfo(torch.float32).eps)


def _answers(answers: Answers, rows: Sequence[PlainIds], side: Side, width: int) -> list[Array] | None:
    """Return the model's answers, or None where it does not take these rows."""
    try:
        return answers(rows, side, width)
    except Exception:  # whatever a model of anyone's raises, a real run will raise too
        return None


def _tolerance(said: Sequence[Array], epsilon: float) -> float:
    values = [np.atleast_2d(x)[[0, -1]] for x in said]
    table = np.concatenate(values)
    return float(_OF_SPREAD * np.ptp(table, axis=0).max() + _STEPS * epsilon * np.abs(table).max())


def _same(one: Sequence[Array], other: Sequence[Array], tolerance: float) -> bool:
    return all(
        a.shape == b.shape and bool((np.abs(a - b) <= tolerance).all()) for a, b in zip(one, other, strict=False)
    )


def _vary(said: Sequence[Array]) -> bool:
    """Return whether different texts get different answers; a model that says the same of all tells nothing."""
    first = np.atleast_2d(said[0])[0]
    return any(not np.allclose(np.atleast_2d(x)[0], first, rtol=1e-6, atol=0) for x in said[1:])
