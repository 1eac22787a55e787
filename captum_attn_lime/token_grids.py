"""Which blocks of patches the tokens of a later stage stand for, in models that merge tokens between their stages."""

from __future__ import annotations

import math


def patches_per_token(grid: tuple[int, int], n_tokens: int) -> int:
    """Return how many patches in a row, and in a column, a token stands for.

    Stages merge neighbouring tokens, two by two, so a token of a later stage covers a square block of patches. Where
    the grid is no multiple of the block, the last row and column of tokens cover what is left.

    Args:
        grid: Rows and columns of patches.
        n_tokens: Number of tokens of the stage.

    Returns:
        The block's side; 1 where the tokens are no blocks of two by two patches or more, as where each patch is a token
        of its own, with or without a CLS token beside them.

    Example:
        >>> patches_per_token((8, 4), 2), patches_per_token((10, 12), 30), patches_per_token((3, 3), 10)
        (4, 2, 1)
    """
    rows, columns = grid
    for side in range(2, max(rows, columns) + 1):
        if math.ceil(rows / side) * math.ceil(columns / side) == n_tokens:
            return side
    return 1
