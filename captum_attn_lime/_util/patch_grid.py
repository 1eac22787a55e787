"""The patch of each pixel, and the block of patches of each token in stages that merge tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def patches_per_token(grid: tuple[int, int], n_tokens: int) -> int:
    """Return the side of the square block of patches that each token covers.

    Stages merge neighbouring tokens, two by two, so that a token of a later stage covers a square block of patches. If
    the grid is not a multiple of the block, the last row and column of tokens cover smaller blocks.

    Args:
        grid: Rows and columns of patches.
        n_tokens: Number of tokens of the stage.

    Returns:
        The block's side in patches; 1 if the tokens are not blocks of at least two by two patches, for example if each
        patch is one token, with or without a CLS token.

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
    """Return the index of each pixel's patch in row-major order, (H, W) int64; -1 for pixels beyond the last patch.

    Args:
        image: Height and width of the image.
        patch: Height and width of a patch.
        grid: Rows and columns of patches.
        side: If greater than 1, return the indices of square blocks of ``side`` by ``side`` patches.

    Example:
        >>> patch_numbers((2, 5), (1, 2), (2, 2)).tolist()
        [[0, 0, 1, 1, -1], [2, 2, 3, 3, -1]]
    """
    y, x = torch.arange(image[0]) // patch[0], torch.arange(image[1]) // patch[1]
    block = (y // side)[:, None] * -(-grid[1] // side) + x // side
    return torch.where((y < grid[0])[:, None] & (x < grid[1]), block, -1)
