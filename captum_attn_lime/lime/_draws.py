"""Draws the masks of the official text and image explainers, with the same random calls in the same order."""

from __future__ import annotations

import numpy as np

from captum_attn_lime.perturb._masks import Masks


def text_masks(seed: int, features: int, n: int) -> Masks:
    """Return the features that each sample keeps, (n, features), as ``LimeTextExplainer`` draws them.

    The number of removed features is uniform from 1 to all. The first sample keeps all.

    Example:
        >>> text_masks(0, 3, 3).astype(int).tolist()
        [[1, 1, 1], [1, 1, 0], [0, 1, 0]]
    """
    random = np.random.RandomState(seed)
    kept: Masks = np.ones((n, features), dtype=bool)
    for i, size in enumerate(random.randint(1, features + 1, n - 1), start=1):
        # lime calls choice(range(features), size, replace=False), which NumPy implements by a permutation
        kept[i, random.permutation(features)[:size]] = False
    return kept


def image_masks(seed: int, features: int, n: int) -> Masks:
    """Return the features that each sample keeps, (n, features), as ``LimeImageExplainer`` draws them.

    Each feature is removed with probability 1/2. The first sample keeps all.

    Example:
        >>> image_masks(1, 3, 3).astype(int).tolist()
        [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    """
    random = np.random.RandomState(seed)
    random.randint(0, high=1000)  # lime first draws the seed of its segmentation
    kept: Masks = random.randint(0, 2, n * features).reshape(n, features).astype(bool)
    kept[0] = True
    return kept
