"""`Perturbed`: one example as the value function of a cooperative game whose players are its features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime._explained import Explained
from captum_attn_lime._util.progress import Tick
from captum_attn_lime.errors import ForwardError
from captum_attn_lime.perturb._masks import Array, Masks, as_masks, distinct

_SHOWN = 5  # names in a repr


@dataclass(frozen=True, eq=False, repr=False)
class Perturbed(ABC):
    """One example whose features can be taken out, and the model's answers without them.

    LIME, erasure metrics, Shapley and interaction libraries ask through this door: ``scores(kept)`` is the value
    function of the game. Equal masks run once, and as many copies at a time as the batch size allows. A copy gets the
    answer that it gets alone. :func:`perturbed` makes one.

    Attributes:
        names: The names of the features.
        explained: The number that is asked for; its value is the answer for the example itself.
        show_progress: Whether to show a bar over the distinct copies.

    Example:
        >>> import torch
        >>> from captum_attn_lime.perturb import perturbed
        >>> game = perturbed(lambda x: x.sum(dim=1), torch.tensor([[1.0, 2.0, 4.0]]))
        >>> game.scores([[True, True, True], [True, False, True], [False, False, False]])
        array([7., 5., 0.])
    """

    names: tuple[str, ...]
    explained: Explained
    show_progress: bool = field(default=False, kw_only=True)

    def scores(self, kept: Any) -> Array:
        """Return the explained number of copies of the example, (n,) float64.

        Args:
            kept: Which features each copy keeps, (n, features) of bool; a NumPy array or a tensor.

        Raises:
            InputError: ``kept`` has another shape, or holds something else.
            ForwardError: The model gave NaN or an infinite value.
        """
        found = self.answers(kept)
        return found[:, self._column(found)]

    def answers(self, kept: Any, *, tick: Tick | None = None) -> Array:
        """Return all classes' numbers of copies of the example, in the unit of the explained one, (n, classes).

        Of a vocabulary, of a model that answers for each token, and of a function that is no adapter, it is the
        explained number alone, (n, 1).

        Args:
            kept: Which features each copy keeps, (n, features) of bool.
            tick: Counts the copies that are done.
        """
        masks = as_masks(kept, len(self.names))
        if not len(masks):
            return np.empty((0, 1))
        first, where = self._distinct(masks)
        found = self._of_distinct(masks[first], tick or (lambda n: None))
        if tick is not None:
            tick(len(masks) - len(first))
        if np.isnan(found).any() or np.isinf(found[:, self._column(found)]).any():
            raise ForwardError(
                f"the model gave NaN or an infinite value for a copy of the {self._noun} without some of its features, "
                "and nothing can be explained there; check what stands in for removed features."
            )
        return found[where]

    def _column(self, answers: Array) -> int:
        """Return which column of answers is the explained number."""
        return self.explained.column if answers.shape[1] > 1 else 0

    def _distinct(self, kept: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the indices of the masks of distinct copies, and for each mask which of these it equals."""
        return distinct(kept)

    @abstractmethod
    def _of_distinct(self, kept: Masks, tick: Tick) -> Array:
        """Return the numbers of distinct copies, (n, classes)."""

    @property
    def _noun(self) -> str:
        """What the example is called."""
        return "input"

    def __repr__(self) -> str:
        """Return the number of features, the first of their names, and what is explained."""
        some = ", ".join(map(repr, self.names[:_SHOWN])) + (", ..." if len(self.names) > _SHOWN else "")
        return f"<{type(self).__name__}: {len(self.names)} features ({some}); {self.explained}>"
