"""Texts through a `TextAdapter`: distinct ones once, as padded tensors, in batches that change no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters._outputs import Array, without_nan
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters.text import _raw as raws
from captum_attn_lime.adapters.text._budget import batches, padded
from captum_attn_lime.adapters.text._company import Side
from captum_attn_lime.adapters.text._pairs import pair_ids
from captum_attn_lime.adapters.text._raw import Raw, is_pair
from captum_attn_lime.adapters.text._stand_ins import AnyRow, check_ids, filled
from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokenizing
from captum_attn_lime.errors import SelectionError

_CHUNK = 1024  # texts tokenised at once


def scores_of_texts(adapter: Any, raw: Any, run: Callable[..., Array], *, show_progress: bool) -> Array:
    """Return what ``run`` gives for each text, (n, columns), from batches of distinct ones.

    Args:
        adapter: The ``TextAdapter``.
        raw: Texts or pairs.
        run: From the tensors of a batch to its numbers, (batch, columns).
        show_progress: Show a bar over the texts that run.
    """
    adapter._head.check_one_row(type(adapter.model).__name__)
    items = adapter._items(raw)
    distinct = list(dict.fromkeys(items))
    rows = adapter._rows(distinct)
    check_rows(adapter, rows)
    raws.warn_cut_many(rows, adapter.max_length)
    keys = [(row.ids, row.types) for row in rows]
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    unique = list(dict(zip(keys, rows, strict=True)).values())
    batching = adapter._known.batching(adapter, unique)
    budget = 1 if batching.alone else adapter.batch_tokens
    found: list[Array] = [np.empty(0)] * len(unique)
    with evaluating(adapter.model), torch.no_grad(), progress(len(unique), show_progress, "texts") as tick:
        for batch in batches([len(row.ids) for row in unique], budget, exact=batching.side is None):
            longest = max(len(unique[k].ids) for k in batch)
            ids, forward_args = tensors_of(adapter, [unique[k] for k in batch], longest, batching.side or "right")
            for k, values in zip(batch, run(ids, *forward_args), strict=True):
                found[k] = values
            tick(len(batch))
    of_item = {item: place[key] for item, key in zip(distinct, keys, strict=True)}
    return without_nan(np.stack([found[of_item[item]] for item in items]), type(adapter.model).__name__, "text")


def rows_of(tokenizing: Tokenizing, items: Sequence[Raw]) -> list[PlainIds]:
    """Return the ids that texts or pairs run with, cut to the greatest length and not padded."""
    rows: list[PlainIds] = []
    for start in range(0, len(items), _CHUNK):
        chunk: Any = items[start : start + _CHUNK]
        found = pair_ids(tokenizing, chunk) if is_pair(items[0]) else tokenizing.ids(chunk)
        rows += [filled(tokenizing, row) for row in found]
    return rows


def tensors_of(adapter: Any, rows: Sequence[AnyRow], length: int, side: Side) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the padded ids (n, length), and what goes with them."""
    tables: list[tuple[list[tuple[int, ...]], int]] = [([row.ids for row in rows], adapter.pad_id)]
    if adapter._binding.mask is not None:
        tables.append(([(1,) * len(row.ids) for row in rows], 0))
    if adapter._takes_types:
        tables.append(([row.types or (0,) * len(row.ids) for row in rows], 0))
    device, left = adapter.device, side == "left"
    ids, *further = (padded(cells, length, fill, left=left).to(device) for cells, fill in tables)
    return ids, tuple(further)


def check_rows(adapter: Any, rows: Sequence[AnyRow]) -> None:
    """Get to know the model, and raise if an id has no embedding or the model was seen not to take what it is given.

    An embedding that cannot be found is no reason not to run the model.
    """
    adapter._known.meet(adapter, rows[0])
    try:
        size = getattr(adapter.embedding, "num_embeddings", None)
    except SelectionError:
        size = None
    check_ids(adapter.model, size if isinstance(size, int) else None, adapter._tokenizing, rows)
    adapter._known.check()
