"""Running texts through a `TextAdapter`: each distinct one once, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from captum_attn_lime.adapters._outputs import Array, without_nan
from captum_attn_lime.adapters.text import _raw as raws
from captum_attn_lime.adapters.text._pairs import pair_ids
from captum_attn_lime.adapters.text._raw import Raw, is_pair
from captum_attn_lime.adapters.text._rows import ListedRows
from captum_attn_lime.adapters.text._special_tokens import AnyRow, check_ids, empty_token
from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokenizing
from captum_attn_lime.errors import SelectionError

_CHUNK = 1024  # texts tokenised at once


def scores_of_texts(adapter: Any, raw: Any, run: Callable[..., Array], *, show_progress: bool) -> Array:
    """Return the result of ``run`` for each text, (n, columns), from batches of distinct texts.

    Args:
        adapter: The ``TextAdapter``.
        raw: Texts or pairs.
        run: Function of the tensors of a batch that returns (batch, columns).
        show_progress: Show a progress bar over the distinct texts.
    """
    adapter.check_one_row()
    items = adapter._items(raw)
    distinct = list(dict.fromkeys(items))
    rows = adapter.token_rows(distinct)
    check_rows(adapter, rows)
    raws.warn_cut_many(rows, adapter.max_length)
    keys = [(row.ids, row.types) for row in rows]
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    unique = list(dict(zip(keys, rows, strict=True)).values())
    found = adapter.run_rows(ListedRows(unique), run, show_progress=show_progress)
    of_item = {item: place[key] for item, key in zip(distinct, keys, strict=True)}
    return without_nan(found[[of_item[item] for item in items]], type(adapter.model).__name__, "text")


def rows_of(tokenizing: Tokenizing, items: Sequence[Raw]) -> list[PlainIds]:
    """Return the ids of texts or pairs, truncated to the maximum length and not padded."""
    rows: list[PlainIds] = []
    for start in range(0, len(items), _CHUNK):
        chunk: Any = items[start : start + _CHUNK]
        found = pair_ids(tokenizing, chunk) if is_pair(items[0]) else tokenizing.ids(chunk)
        rows += [row if row.ids else PlainIds((empty_token(tokenizing),), None, row.cut) for row in found]
    return rows


def check_rows(adapter: Any, rows: Sequence[AnyRow]) -> None:
    """Probe the model, and raise if an id has no embedding or the model cannot take the inputs.

    An embedding that cannot be found does not raise.
    """
    adapter._facts.probe(adapter, rows[0])
    try:
        size = getattr(adapter.embedding, "num_embeddings", None)
    except SelectionError:
        size = None
    check_ids(adapter.model, size if isinstance(size, int) else None, adapter._tokenizing, rows)
    adapter._facts.check()
