"""The official text explainer run on masks: its own draws, distances and fit, without a text for each sample."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime.lime._base import Array

Masks = NDArray[np.bool_]


class Draws(np.random.RandomState):
    """numpy's ``RandomState`` with a faster way to the same numbers where lime draws the features to remove."""

    def choice(self, a: Any, size: Any = None, replace: bool = True, p: Any = None) -> Any:
        """Return what ``RandomState.choice`` returns.

        lime draws without replacement from ``range(features)``. numpy turns that range into an array, which takes
        longer than the draw, and then takes the beginning of a permutation.
        """
        is_plain = isinstance(a, range) and a == range(len(a)) and isinstance(size, (int, np.integer))
        if replace or p is not None or not is_plain or not 0 <= size <= len(a):
            return super().choice(a, size, replace, p)
        return self.permutation(len(a))[:size]


class Recorder:
    """What lime takes for the text: it notes which features each sample lost, and builds no strings.

    Args:
        features: Number of features.
        samples: Number of samples, the first of which has all features.

    Attributes:
        kept: Which features each sample has, (samples, features) bool.
        used: Number of samples noted so far, the first one not counted.
    """

    def __init__(self, features: int, samples: int) -> None:
        self.kept: Masks = np.ones((samples, features), dtype=bool)
        self.used = 0

    def num_words(self) -> int:
        """Return the number of features."""
        return int(self.kept.shape[1])

    def raw_string(self) -> str:
        """Return what stands for the text itself."""
        return ""

    def inverse_removing(self, removed: Any) -> str:
        """Note a sample without these features, and return what stands for it."""
        self.used += 1
        self.kept[self.used, removed] = False
        return ""


def text_explainer(kernel_width: float, seed: int, **options: Any) -> Any:
    """Return the official ``LimeTextExplainer``."""
    from lime.lime_text import LimeTextExplainer

    return LimeTextExplainer(kernel_width=kernel_width, random_state=Draws(seed), **options)


def explain_masks(
    explainer: Any, features: int, scores: Callable[[Masks], Array], *, num_samples: int, **options: Any
) -> Any:
    """Return the official explainer's explanation of a text of so many features.

    The explainer's own method runs, with another class in the place of its ``IndexedString``: rebinding that name for
    one call leaves the package as it is, also for other threads.

    Args:
        explainer: A ``LimeTextExplainer`` with the default ``bow`` and ``split_expression``.
        features: Number of features.
        scores: From masks (num_samples, features), True where a feature is kept, to scores (num_samples, classes).
        num_samples: Number of samples.
        options: Further arguments of ``explain_instance``.
    """
    recorder = Recorder(features, num_samples)
    run: Any = type(explainer).explain_instance
    if isinstance(run, FunctionType):
        names = {**run.__globals__, "IndexedString": lambda *args, **kwargs: recorder}
        again: Any = FunctionType(run.__code__, names, run.__name__, run.__defaults__, run.__closure__)
        again.__kwdefaults__ = run.__kwdefaults__
        run = again

    def classify(texts: Any) -> Array:
        return scores(recorder.kept if recorder.used else masks_of(texts, features))

    # Where another function stands around lime's, its string class is lime's own, and this text has all features.
    text = " ".join(map(str, range(features)))
    return run(explainer, text, classify, num_samples=num_samples, **options)


def masks_of(texts: Any, features: int) -> Masks:
    """Return which features are named in each text of feature numbers, (texts, features).

    Example:
        >>> masks_of(["0 1 2", "0  2", "  "], 3).astype(int).tolist()
        [[1, 1, 1], [1, 0, 1], [0, 0, 0]]
    """
    kept: Masks = np.zeros((len(texts), features), dtype=bool)
    for row, text in enumerate(texts):
        kept[row, [int(k) for k in text.split()]] = True
    return kept


def distinct(masks: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the distinct rows, and for each row which of these it equals.

    Example:
        >>> first, where = distinct(np.array([[True, False], [False, False], [True, False]]))
        >>> sorted(first.tolist()), (first[where] == [0, 1, 0]).all()
        ([0, 1], np.True_)
    """
    packed = np.ascontiguousarray(np.packbits(masks, axis=1))
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, where = np.unique(rows, return_index=True, return_inverse=True)
    return first, where.reshape(-1)


class Remembered:
    """A classifier of masks that has each mask answered once, however often it is asked.

    Args:
        scores: From masks (n, features) to scores (n, classes).
        tick: Told of the masks that were not passed on; they are counted as done.
    """

    def __init__(self, scores: Callable[[Masks], Array], tick: Callable[[int], object] | None = None) -> None:
        self._scores, self._tick = scores, tick
        self._places: dict[bytes, int] = {}
        self._found: list[Array] = []

    def __call__(self, kept: Masks) -> Array:
        """Return the scores of masks, (n, classes)."""
        keys = [row.tobytes() for row in np.packbits(kept, axis=1)]
        new = list({key: k for k, key in enumerate(keys) if key not in self._places}.values())
        if new:
            self._found.append(self._scores(kept[new]))
            for k in new:
                self._places[keys[k]] = len(self._places)
        if self._tick is not None:
            self._tick(len(kept) - len(new))
        return np.asarray(np.concatenate(self._found)[[self._places[key] for key in keys]])
