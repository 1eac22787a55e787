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
    """One example and the model's scores of it when features are removed.

    ``scores(kept)`` is the value function that LIME, erasure metrics, Shapley and interaction libraries need. Equal
    masks run once, in batches; a copy's score does not depend on its batch. :func:`perturbed` makes one for each
    adapter; a subclass for another kind of input implements ``_run``.

    Attributes:
        names: The features' names.
        explained: The explained number; its value is the score of the unperturbed example.
        show_progress: Whether to show a progress bar over the distinct copies.
        input_kind: The word for the input in messages, such as ``"text"``.

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
    input_kind: str = field(default="input", kw_only=True)

    def scores(self, kept: Any) -> Array:
        """Return the explained number of copies of the example, (n,) float64.

        Args:
            kept: Which features each copy keeps, bool (n, features); a NumPy array or a tensor.

        Raises:
            InputError: ``kept`` has another shape or other values.
            ForwardError: The model returned NaN or an infinite value.
        """
        scores = self.class_scores(kept)
        return scores[:, self._column(scores)]

    def class_scores(self, kept: Any, *, tick: Tick | None = None) -> Array:
        """Return the scores of all classes for copies of the example, in the explained number's unit, (n, classes).

        Vocabularies, models with one output per token, and functions that are no adapters have one column: the
        explained number.

        Args:
            kept: Which features each copy keeps, bool (n, features).
            tick: Called with the number of copies done.
        """
        masks = as_masks(kept, len(self.names))
        if not len(masks):
            return np.empty((0, 1))
        first, where = self._distinct(masks)
        scores = self._run(masks[first], tick or (lambda n: None))
        if tick is not None:
            tick(len(masks) - len(first))
        if np.isnan(scores).any() or np.isinf(scores[:, self._column(scores)]).any():
            raise ForwardError(
                f"the model returned NaN or an infinite value for a copy of the {self.input_kind} without some of its "
                "features; check the values that replace removed features."
            )
        return scores[where]

    def _column(self, scores: Array) -> int:
        """Return the column of the explained number."""
        return self.explained.column if scores.shape[1] > 1 else 0

    def _distinct(self, kept: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the indices of the masks with distinct copies, and for each mask the number of its copy."""
        return distinct(kept)

    @abstractmethod
    def _run(self, kept: Masks, tick: Tick) -> Array:
        """Return the scores of distinct copies, (n, classes), and call ``tick`` with the number of copies done."""

    def __repr__(self) -> str:
        """Return the number of features, their first names, and the explained number."""
        some = ", ".join(map(repr, self.names[:_SHOWN])) + (", ..." if len(self.names) > _SHOWN else "")
        return f"<{type(self).__name__}: {len(self.names)} features ({some}); {self.explained}>"
