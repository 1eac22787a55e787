"""Perturbed copies of an encoded text: which cells are left when units are removed, and the model run on those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_attn_lime._util.progress import progress
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._outputs import without_nan
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters.text._budget import batches
from captum_attn_lime.adapters.text._company import Batching
from captum_attn_lime.adapters.text._tokenize import PlainIds
from captum_attn_lime.adapters.text._words import Word, word_of_tokens
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array
from captum_attn_lime.lime._draws import Masks, distinct
from captum_attn_lime.lime._units import Occurrence

Removal = Literal["delete", "mask", "pad", "attention"]
Ints = NDArray[np.int64]
# Owner of cells that stay, and of the cell that stands for a text without any cell left.
_NOBODY, _REFERENCE = -1, -2
# More tokens at once take longer a token on a CPU: what a layer makes of them no longer fits its caches.
_CPU_TOKENS, _CPU_ROWS = 1024, 8
# Copies of texts with at least so many tokens are padded to multiples of so many.
_LONG, _MULTIPLE = 64, 8
# Copies that are compared at once.
_CHUNK = 256
# Every pattern of four neighbours, around a circle.
_CIRCLE = np.array([int(c) for c in "0000100110101111"], dtype=bool)


@dataclass(frozen=True)
class Cells:
    """The cells of one encoded text, each with the unit that it is of.

    Attributes:
        ids: Token ids (M,).
        further: What goes to the model beside the ids, (k, M).
        owner: For each cell the index of its unit, -1 for cells that always stay, -2 for the reference cell.
        stays: Which of the units' cells are there while the unit is; the others stand in for a removed unit.
        features: For each unit its feature, (units,).
        n_features: Number of features.
        fill: The token id at the cells of removed units, where they are filled and not left out.
        hidden: The row of ``further`` that is 0 at the cells of removed units, where they are hidden.
    """

    ids: Ints
    further: Ints
    owner: Ints
    stays: Masks
    features: Ints
    n_features: int
    fill: int | None = None
    hidden: int | None = None

    @property
    def in_place(self) -> bool:
        """Whether all cells are there, whatever is removed."""
        return self.fill is not None or self.hidden is not None

    def there(self, kept: Masks) -> Masks:
        """Return which cells belong to the copies with these features kept, (n, M).

        Args:
            kept: Which features are kept, (n, features).
        """
        return self._there(kept, self._feature_of)

    def there_by_unit(self, kept: Masks) -> Masks:
        """Return which cells belong to the copies with these units kept, (n, M).

        Args:
            kept: Which units are kept, (n, units).
        """
        return self._there(kept, np.where(self.owner >= 0, self.owner, len(self.features)))

    @cached_property
    def _feature_of(self) -> Ints:
        """For each cell its feature; one more than there are for cells of no unit, (M,)."""
        return np.where(self.owner >= 0, self.features[np.maximum(self.owner, 0)], self.n_features)

    def _there(self, kept: Masks, column: Ints) -> Masks:
        always = np.ones((len(kept), 1), dtype=bool)
        out: Masks = np.concatenate([kept, always], axis=1).take(column, axis=1)
        if not self.stays.all():
            out ^= ~self.stays
        if self.owner[-1] == _REFERENCE:
            out[:, -1] = ~out[:, :-1].any(axis=1)
        return out

    def longest(self) -> int:
        """Return the greatest number of cells that a copy may have."""
        own = np.bincount(self.owner[(self.owner >= 0) & self.stays], minlength=len(self.features))
        other = np.bincount(self.owner[(self.owner >= 0) & ~self.stays], minlength=len(self.features))
        return int((self.owner == _NOBODY).sum() + np.maximum(own, other).sum())

    def batch(self, there: Masks, pad: int, width: int = 0, *, left: bool = False) -> tuple[Ints, list[Ints]]:
        """Return ids and what goes with them, each (n, N), of some copies, padded.

        Args:
            there: Which cells belong to each copy (n, M).
            pad: Token id at padding.
            width: The least N, where cells are left out.
            left: Whether the padding is on the left.
        """
        if self.in_place:
            ids = np.broadcast_to(self.ids, there.shape).copy()
            further = [np.broadcast_to(row, there.shape).copy() for row in self.further]
            if self.fill is not None:
                ids[~there] = self.fill
            if self.hidden is not None:
                further[self.hidden][~there] = 0
            return ids, further
        lengths = there.sum(axis=1)
        cells = there.nonzero()[1]  # row by row, as the filled part of the batch is
        filled = np.arange(lengths.max(initial=width)) < lengths[:, None]
        filled = filled[:, ::-1] if left else filled

        def table(values: Ints, fill: int) -> Ints:
            out: Ints = np.full(filled.shape, fill, dtype=np.int64)
            out[filled] = values[cells]
            return out

        return table(self.ids, pad), [table(row, 0) for row in self.further]


def cells_of(
    adapter: Any,
    encoding: Any,
    segment: int,
    units: Sequence[Occurrence],
    *,
    removal: Removal = "delete",
    replacement: str | None = None,
) -> Cells:
    """Return the cells of an encoded text.

    Args:
        adapter: The ``TextAdapter``.
        encoding: Its encoding of one text or pair.
        segment: Which text of the pair is explained, 0 or 1; 0 for a single text.
        units: Feature, start and end of each unit in that text.
        removal: What becomes of the tokens of removed units.
        replacement: With "delete": the text whose tokens take their place.

    Raises:
        InputError: The model or the text does not allow this removal.
    """
    spans = [s[1:] if s is not None and s[0] == segment else None for s in encoding.token_spans[0]]
    word_of = word_of_tokens(spans, [Word("", start, end) for _, start, end in units])
    owner = np.array([_NOBODY if k is None else k for k in word_of], dtype=np.int64)
    ids = encoding.inputs[0].cpu().numpy().astype(np.int64)
    rows = [x[0].cpu().numpy() for x in encoding.forward_args]
    further = np.stack(rows).astype(np.int64) if rows else np.zeros((0, len(ids)), dtype=np.int64)
    stays: Masks = np.ones(len(ids), dtype=bool)
    features = np.array([feature for feature, _, _ in units], dtype=np.int64)
    if replacement is not None:
        ids, further, owner, stays = _with_replacement(adapter, replacement, ids, further, owner)
    fill = {"mask": adapter.mask_id, "pad": adapter.pad_id}.get(removal)
    hidden = _hidden(adapter, owner) if removal == "attention" else None
    cells = Cells(ids, further, owner, stays, features, int(features.max()) + 1, fill, hidden)
    if cells.in_place or (owner == _NOBODY).any():
        return cells
    # With all units gone there may be no cell left: the adapter's token for an empty text stands for it.
    reference = _reference(adapter)
    types = [[0] if name == "token_type_ids" else [1] for name in adapter._further()]
    return Cells(
        np.append(ids, reference),
        np.concatenate([further, np.array(types, dtype=np.int64).reshape(len(further), 1)], axis=1),
        np.append(owner, _REFERENCE),
        np.append(stays, True),
        features,
        cells.n_features,
    )


def is_exact(adapter: Any, cells: Cells, n: int, places: Sequence[int], tokenize: Callable[..., Any]) -> bool:
    """Return whether leaving out cells gives the tokens of the text without these units.

    That holds where a word's tokens do not depend on what stands around it, and is tried out: every pattern of four
    neighbouring units kept and removed, wherever it may stand, all units, and none.

    Args:
        adapter: The ``TextAdapter``.
        cells: The cells.
        n: Number of units.
        places: The index of each unit among the pieces of the text.
        tokenize: From a list of copies, each given by the indices of its removed pieces, to their rows of tokens.
    """
    limit = adapter.max_length
    if limit is not None and cells.longest() > limit:  # the tokenizer would cut these copies
        return False
    patterns = [np.resize(np.roll(_CIRCLE, k), n) for k in range(len(_CIRCLE))]
    kept = np.stack([*patterns, np.ones(n, dtype=bool), np.zeros(n, dtype=bool)])
    there = cells.there_by_unit(kept)
    rows = tokenize([[place for place, stays in zip(places, row, strict=True) if not stays] for row in kept])
    types = list(adapter._further()).index("token_type_ids") if "token_type_ids" in adapter._further() else None
    for mine, row in zip(there, rows, strict=True):
        if row.cut or cells.ids[mine].tolist() != list(row.ids):
            return False
        if types is not None and cells.further[types][mine].tolist() != list(row.types or [0] * len(row.ids)):
            return False
    return True


def scores_of(
    adapter: Any, cells: Cells, kept: Masks, run: Callable[..., Array], *, show_progress: bool = False
) -> Array:
    """Return the model's numbers for copies of a text, (n, columns); no distinct copy runs twice.

    Copies of similar length run together. What is held at once beside the masks is one batch.

    Args:
        adapter: The ``TextAdapter``.
        cells: The cells of the text.
        kept: Which features each copy keeps, (n, features).
        run: From the tensors of a batch to its numbers, (batch, columns).
        show_progress: Show a bar over the distinct copies.
    """
    first, where = _distinct_copies(cells, kept)
    unique = kept[first]
    lengths = _lengths(cells, unique)
    batching = _batching(adapter, cells, unique, lengths)
    exact = batching.side is None
    device = adapter.device
    budget = 1 if batching.alone else adapter.batch_tokens
    if device.type == "cpu":
        budget = min(budget, max(_CPU_TOKENS, _CPU_ROWS * int(lengths.max(initial=1))))
    widths = lengths if exact or cells.in_place else _rounded(lengths, cells.longest())
    found: Array = np.empty((0, 0))
    with evaluating(adapter.model), torch.no_grad(), progress(len(unique), show_progress, "texts") as tick:
        for batch in batches(widths.tolist(), budget, exact=exact):
            width, left = int(widths[batch].max()), batching.side == "left"
            ids, further = cells.batch(cells.there(unique[batch]), adapter.pad_id, width, left=left)
            tensors: list[Tensor] = [torch.from_numpy(x).to(device) for x in (ids, *further)]
            with without_drawing():
                values = run(*tensors)
            if not found.size:
                found = np.empty((len(unique), values.shape[1]))
            found[batch] = values
            tick(len(batch))
    return without_nan(found, type(adapter.model).__name__, "perturbed text")[where]


def _batching(adapter: Any, cells: Cells, kept: Masks, lengths: Ints) -> Batching:
    """Return how the copies may run together: tried out on the shortest, the longest and one between."""
    if cells.in_place:
        chosen = np.zeros(1, dtype=np.intp)
    else:
        chosen = np.unique(np.argsort(lengths, kind="stable")[[0, len(lengths) // 2, -1]])
    types = list(adapter._further()).index("token_type_ids") if "token_type_ids" in adapter._further() else None
    there = cells.there(kept[chosen])
    rows = [
        PlainIds(tuple(cells.ids[mine].tolist()), None if types is None else tuple(cells.further[types][mine].tolist()))
        for mine in (np.ones_like(there) if cells.in_place else there)
    ]
    found: Batching = adapter._known.batching(adapter, rows, len(rows[0].ids) if cells.in_place else cells.longest())
    return found


def _rounded(lengths: Ints, longest: int) -> Ints:
    """Return the number of tokens that each copy is padded to, at most those of the longest that there may be.

    Batches of ever other shapes leave memory in pieces, more of it with every batch; of long texts, a little padding
    makes their shapes few.
    """
    return lengths if longest < _LONG else np.minimum(-(-lengths // _MULTIPLE) * _MULTIPLE, longest)


def _distinct_copies(cells: Cells, kept: Masks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the distinct copies, and for each copy which of these it equals."""
    first, where = distinct(kept)
    by_feature = np.argsort(cells._feature_of, kind="stable")
    ends = np.searchsorted(cells._feature_of[by_feature], np.arange(1, kept.shape[1]))
    of_units = cells.ids[by_feature][: int((cells._feature_of < cells.n_features).sum())]
    own = {ids.tobytes() for ids in np.split(of_units, ends)}
    if cells.in_place or len(own) == kept.shape[1]:
        return first, where
    # Different units with equal tokens: "so so good" without its first and without its second word is one text.
    table = np.concatenate([cells.ids[None], cells.further]).T.copy()  # (M, 1 + k)
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


def _lengths(cells: Cells, kept: Masks) -> Ints:
    """Return the number of cells of each copy, (n,)."""
    if cells.in_place:
        return np.full(len(kept), len(cells.ids), dtype=np.int64)
    # Counted feature by feature, so that no table of copies by cells is made.
    of_unit = cells.owner >= 0
    feature = cells.features[cells.owner[of_unit]]
    signs = np.where(cells.stays[of_unit], 1, -1)
    change = np.bincount(feature, weights=signs, minlength=cells.n_features)
    base = int((cells.owner == _NOBODY).sum() + (~cells.stays[of_unit]).sum())
    lengths = base + kept @ change.astype(np.int64)
    return np.asarray(np.maximum(lengths, 1), dtype=np.int64)


def _with_replacement(adapter: Any, text: str, ids: Ints, further: Ints, owner: Ints) -> tuple[Ints, Ints, Ints, Masks]:
    """Return the cells with those of a replacement text put behind each unit's own."""
    new = np.array(adapter._tokenizing.plain(text), dtype=np.int64)
    last = {k: i for i, k in enumerate(owner.tolist()) if k >= 0}
    order: list[tuple[int, int]] = []  # cell, and place in the replacement or -1
    for i, k in enumerate(owner.tolist()):
        order.append((i, -1))
        if k >= 0 and last[k] == i:
            order += [(i, j) for j in range(len(new))]
    cell, place = np.array(order, dtype=np.int64).reshape(-1, 2).T
    is_new = place >= 0
    out = ids[cell]
    out[is_new] = new[place[is_new]]
    return out, further[:, cell], owner[cell], ~is_new


def _hidden(adapter: Any, owner: Ints) -> int:
    """Return which of the further arguments is the attention mask."""
    names = list(adapter._further())
    if "attention_mask" not in names:
        raise InputError(
            f"removal='attention' hides tokens by the attention mask, which {type(adapter.model).__name__} does not "
            "take; use removal='mask', 'pad' or 'delete'."
        )
    if not (owner == _NOBODY).any():
        raise InputError(
            "removal='attention' would hide every token of this text, and a model that sees none gives no meaningful "
            "answer: its tokenizer adds no special token, and all tokens are of units. Use removal='mask' or 'pad'."
        )
    return names.index("attention_mask")


def _reference(adapter: Any) -> int:
    from captum_attn_lime.adapters.text._stand_ins import filled
    from captum_attn_lime.adapters.text._tokenize import PlainIds

    return int(filled(adapter._tokenizing, PlainIds(())).ids[0])
