"""What runs at once: batches of similar length under a token budget, and their tables of ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def batches(lengths: Sequence[int], budget: int, *, exact: bool) -> list[list[int]]:
    """Return the indices of all examples in batches, shortest first.

    Args:
        lengths: Number of tokens of each example.
        budget: Greatest number of tokens of a batch, padding included; a longer example runs alone.
        exact: Whether a batch may hold one length only.

    Example:
        >>> batches([3, 1, 2, 1], 4, exact=False), batches([3, 1, 2, 1], 4, exact=True)
        ([[1, 3], [2], [0]], [[1, 3], [2], [0]])
        >>> batches([3, 1, 2, 1], 6, exact=False)
        [[1, 3, 2], [0]]
    """
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = out[-1] if out else []
        fits = bool(last) and (len(last) + 1) * lengths[i] <= budget
        if fits and (not exact or lengths[last[-1]] == lengths[i]):
            last.append(i)
        else:
            out.append([i])
    return out


def padded(cells: Sequence[Sequence[int]], length: int, fill: int, *, left: bool) -> Tensor:
    """Return rows of numbers as a table (n, length), filled up at their end or beginning.

    Example:
        >>> padded([[1, 2], [3]], 2, 0, left=True).tolist()
        [[1, 2], [0, 3]]
    """
    rows = []
    for row in cells:
        padding = [fill] * (length - len(row))
        rows.append([*padding, *row] if left else [*row, *padding])
    return torch.tensor(rows, dtype=torch.int64)
