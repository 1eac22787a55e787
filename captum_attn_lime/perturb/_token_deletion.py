"""Copies of an encoded text with removed tokens deleted, so that later tokens move up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_attn_lime._util.progress import Tick
from captum_attn_lime.perturb._masks import Array, Ints, Masks, distinct
from captum_attn_lime.perturb._model_outputs import BatchScorer
from captum_attn_lime.perturb._perturbed import Perturbed

# Number of copies compared at once.
_CHUNK = 256


@dataclass(frozen=True)
class TextTokens:
    """The tokens of one text and their features.

    Attributes:
        ids: Token ids (M,).
        types: Token types (M,), if any.
        feature: The feature of each token, (M,); ``n_features`` for tokens that are always kept.
        n_features: Number of features.
        is_replacement: Which tokens replace a removed feature, (M,); None if there are none.
    """

    ids: Ints
    types: Ints | None
    feature: Ints
    n_features: int
    is_replacement: Masks | None = None

    def present(self, kept: Masks) -> Masks:
        """Return the tokens of each copy, bool (n, M).

        Args:
            kept: Which features each copy keeps, (n, features).
        """
        always = np.ones((len(kept), 1), dtype=bool)
        out: Masks = np.concatenate([kept, always], axis=1).take(self.feature, axis=1)
        if self.is_replacement is not None:
            out ^= self.is_replacement
        return out

    def counts(self) -> tuple[Ints, Ints]:
        """Return the number of tokens and of replacement tokens of each feature, and of what is always kept."""
        original = np.ones(len(self.ids), dtype=bool) if self.is_replacement is None else ~self.is_replacement
        n = self.n_features + 1
        return np.bincount(self.feature[original], minlength=n), np.bincount(self.feature[~original], minlength=n)

    def with_replacements(self, new: Sequence[int]) -> TextTokens:
        """Return the tokens with replacement tokens inserted after each feature.

        Args:
            new: Ids of the replacement tokens.
        """
        order: list[tuple[int, int]] = []  # token, and position among the new ones or -1
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
        return replace(self, ids=ids, types=types, feature=self.feature[cell], is_replacement=is_new)


class DeletedCopies:
    """Copies of one text as rows of tokens for ``TextAdapter.run_rows``.

    Args:
        tokens: The tokens of the text.
        kept: Which features each copy keeps, (n, features).
    """

    def __init__(self, tokens: TextTokens, kept: Masks) -> None:
        self._tokens, self._kept = tokens, kept
        original, new = tokens.counts()
        # Counting by feature avoids a table of copies by tokens.
        self.lengths: Ints = original[-1] + new.sum() + kept @ (original - new)[:-1]
        self.longest = max(int(original[-1] + np.maximum(original, new)[:-1].sum()), 1)

    def cells(self, rows: Sequence[int]) -> tuple[Ints, Ints | None]:
        """Return the concatenated token ids of rows, and their token types, if any."""
        present = self._tokens.present(self._kept[rows]).nonzero()[1]
        return self._tokens.ids[present], None if self._tokens.types is None else self._tokens.types[present]


@dataclass(frozen=True, eq=False, repr=False)
class PerturbedTokens(Perturbed):
    """One text whose removed features are deleted.

    Attributes:
        adapter: The ``TextAdapter``.
        tokens: The tokens of the text.
        score_batch: Scores a batch of copies.
        batch_size: Largest number of copies in one forward pass; by default what the adapter's ``batch_tokens`` allows.
    """

    adapter: Any = field(kw_only=True)
    tokens: TextTokens = field(kw_only=True)
    score_batch: BatchScorer = field(kw_only=True)
    batch_size: int | None = field(default=None, kw_only=True)
    input_kind: str = field(default="text", kw_only=True)

    def _run(self, kept: Masks, tick: Tick) -> Array:
        rows = DeletedCopies(self.tokens, kept)
        options = dict(batch_size=self.batch_size, show_progress=self.show_progress)
        scores: Array = self.adapter.run_rows(rows, self.score_batch, **options)
        tick(len(scores))
        return scores

    def _distinct(self, kept: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        first, where = distinct(kept)
        tokens = self.tokens
        contents = {tokens.ids[tokens.feature == k].tobytes() for k in range(tokens.n_features)}
        if len(contents) == tokens.n_features:
            return first, where
        # Features with equal tokens: "so so good" without its first word equals it without its second.
        table = np.stack([x for x in (tokens.ids, tokens.types) if x is not None], axis=1)  # (M, 1 or 2)
        numbers: dict[bytes, int] = {}
        copy_of = np.empty(len(first), dtype=np.intp)
        keep: list[int] = []
        for start in range(0, len(first), _CHUNK):
            rows = first[start : start + _CHUNK]
            present = tokens.present(kept[rows])
            cuts = np.cumsum([0, *present.sum(axis=1)]) * table[0].nbytes
            content = table[present.nonzero()[1]].tobytes()
            for k, row in enumerate(rows.tolist()):
                number = numbers.setdefault(content[cuts[k] : cuts[k + 1]], len(numbers))
                if number == len(keep):
                    keep.append(row)
                copy_of[start + k] = number
        return np.array(keep, dtype=np.intp), copy_of[where]
