"""Which patch a pixel is in, and which blocks of patches stand for the tokens of stages that merge tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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


def patch_numbers(image: tuple[int, int], patch: tuple[int, int], grid: tuple[int, int], side: int = 1) -> Tensor:
    """Return the number of each pixel's patch, row by row, (H, W) int64; -1 for pixels beyond the last patch.

    Args:
        image: Height and width of the image.
        patch: Height and width of a patch.
        grid: Rows and columns of patches.
        side: With more than 1, the numbers of square blocks of so many patches by so many.

    Example:
        >>> patch_numbers((2, 5), (1, 2), (2, 2)).tolist()
        [[0, 0, 1, 1, -1], [2, 2, 3, 3, -1]]
    """
    y, x = torch.arange(image[0]) // patch[0], torch.arange(image[1]) // patch[1]
    block = (y // side)[:, None] * -(-grid[1] // side) + x // side
    return torch.where((y < grid[0])[:, None] & (x < grid[1]), block, -1)
