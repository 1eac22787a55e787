"""Copies of an encoded text whose removed tokens are left out, so that what follows moves up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime._util.progress import Tick
from captum_attn_lime.perturb._asking import Ask
from captum_attn_lime.perturb._masks import Array, Ints, Masks, distinct
from captum_attn_lime.perturb._perturbed import Perturbed

# Copies that are compared at once.
_CHUNK = 256


@dataclass(frozen=True)
class Cells:
    """The tokens of one text, each with the feature that it is of.

    Attributes:
        ids: Token ids (M,).
        types: Token types (M,), if there are any.
        feature: For each token its feature; ``n_features`` for tokens that always stay, (M,).
        n_features: Number of features.
        stand_in: Which tokens are there in the place of a removed feature, (M,); None for none.
    """

    ids: Ints
    types: Ints | None
    feature: Ints
    n_features: int
    stand_in: Masks | None = None

    def there(self, kept: Masks) -> Masks:
        """Return which tokens belong to the copies with these features kept, (n, M).

        Args:
            kept: Which features are kept, (n, features).
        """
        always = np.ones((len(kept), 1), dtype=bool)
        out: Masks = np.concatenate([kept, always], axis=1).take(self.feature, axis=1)
        if self.stand_in is not None:
            out ^= self.stand_in
        return out

    def counts(self) -> tuple[Ints, Ints]:
        """Return for each feature, and for what always stays, how many tokens it has and how many stand in for it."""
        own = np.ones(len(self.ids), dtype=bool) if self.stand_in is None else ~self.stand_in
        n = self.n_features + 1
        return np.bincount(self.feature[own], minlength=n), np.bincount(self.feature[~own], minlength=n)

    def replaced_by(self, new: Sequence[int]) -> Cells:
        """Return the tokens with new ones behind each feature's own, which stand in for it.

        Args:
            new: The new tokens' ids.
        """
        order: list[tuple[int, int]] = []  # token, and place among the new ones or -1
        last = {k: i for i, k in enumerate(self.feature.tolist()) if k < self.n_features}
        for i, k in enumerate(self.feature.tolist()):
            order.append((i, -1))
            if last.get(k) == i:
                order += [(i, j) for j in range(len(new))]
        cell, place = np.array(order, dtype=np.int64).reshape(-1, 2).T
        is_new = place >= 0
        ids = self.ids[cell]
        ids[is_new] = np.array(new, dtype=np.int64)[place[is_new]]
        types = None if self.types is None else self.types[cell]
        return replace(self, ids=ids, types=types, feature=self.feature[cell], stand_in=is_new)


class Copies:
    """Copies of one text as rows of tokens for ``TextAdapter.run_rows``.

    Args:
        cells: The tokens of the text.
        kept: Which features each copy keeps, (n, features).
    """

    def __init__(self, cells: Cells, kept: Masks) -> None:
        self._cells, self._kept = cells, kept
        own, other = cells.counts()
        # Counted feature by feature, so that no table of copies by tokens is made.
        self.lengths: Ints = own[-1] + other.sum() + kept @ (own - other)[:-1]
        self.longest = max(int(own[-1] + np.maximum(own, other)[:-1].sum()), 1)

    def cells(self, rows: Sequence[int]) -> tuple[Ints, Ints | None]:
        """Return the token ids of some rows, one row after the other, and their token types, if there are any."""
        there = self._cells.there(self._kept[rows]).nonzero()[1]
        return self._cells.ids[there], None if self._cells.types is None else self._cells.types[there]


@dataclass(frozen=True, eq=False, repr=False)
class PerturbedTokens(Perturbed):
    """One text of which features are left out.

    Attributes:
        adapter: The ``TextAdapter``.
        cells: The tokens of the text.
        ask: What is asked about copies.
        batch_size: Greatest number of copies in one forward pass; None for what the adapter's ``batch_tokens`` allow.
    """

    adapter: Any = field(kw_only=True)
    cells: Cells = field(kw_only=True)
    ask: Ask = field(kw_only=True)
    batch_size: int | None = field(default=None, kw_only=True)

    @property
    def _noun(self) -> str:
        return "text"

    def _of_distinct(self, kept: Masks, tick: Tick) -> Array:
        rows = Copies(self.cells, kept)
        options = dict(batch_size=self.batch_size, show_progress=self.show_progress)
        found: Array = self.adapter.run_rows(rows, self.ask, **options)
        tick(len(found))
        return found

    def _distinct(self, kept: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        first, where = distinct(kept)
        cells = self.cells
        tokens = {cells.ids[cells.feature == k].tobytes() for k in range(cells.n_features)}
        if len(tokens) == cells.n_features:
            return first, where
        # Different features with equal tokens: "so so good" without its first and without its second word is one text.
        table = np.stack([x for x in (cells.ids, cells.types) if x is not None], axis=1)  # (M, 1 or 2)
        place: dict[bytes, int] = {}
        again = np.empty(len(first), dtype=np.intp)
        keep: list[int] = []
        for start in range(0, len(first), _CHUNK):
            rows = first[start : start + _CHUNK]
            there = cells.there(kept[rows])
            cuts = np.cumsum([0, *there.sum(axis=1)]) * table[0].nbytes
            content = table[there.nonzero()[1]].tobytes()
            for k, row in enumerate(rows.tolist()):
                number = place.setdefault(content[cuts[k] : cuts[k + 1]], len(place))
                if number == len(keep):
                    keep.append(row)
                again[start + k] = number
        return np.array(keep, dtype=np.intp), again[where]
