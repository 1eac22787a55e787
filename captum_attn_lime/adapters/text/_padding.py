"""Padding ids: a model that recognises padding by its id must never mistake a real token for it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters._model_config import lacks_padding_token, padding_token
from captum_attn_lime.adapters._shallow_copy import ShallowCopy
from captum_attn_lime.adapters._state import active_model, substituted
from captum_attn_lime.adapters._wrappers import configured, text_config
from captum_attn_lime.errors import InputError

# An id that no token has: with it as the padding id, no cell is padding.
_NO_TOKEN = -1


def unambiguous_padding(model: nn.Module, ids: Tensor, mask: Tensor | None, ending: int) -> tuple[Tensor, int | None]:
    """Return ids and a padding id such that exactly the padded cells have it.

    Causal classifiers read the last token whose id is not the padding id. They would skip a word that was replaced by a
    token with that id, so the padding gets an id that no real cell has.

    Args:
        model: The model.
        ids: Token ids (n, N).
        mask: 1 at real tokens (n, N); None if all are.
        ending: Number of tokens that the tokenizer adds at each text's end with the padding id. The model still skips
            those.

    Returns:
        The ids, with another id at the padding if needed, and the padding id to set in the configuration; None if it
        stays, because the configuration has none or no real cell has its id.

    Raises:
        InputError: Every id of the vocabulary is a real token of this batch.
    """
    current = padding_token(model)
    if current is None and not lacks_padding_token(model):
        return ids, None
    padded = padded_cells(ids, mask, ending)
    if current is None and not bool(padded.any()):
        return ids, _NO_TOKEN
    used = ids[~padded]
    if current is not None and not bool((used == current).any()):
        return ids, None
    free = unused_id(model, set(used.tolist()))
    return ids.masked_fill(padded, free), free


def unused_id(model: nn.Module, used: Collection[int | None], first: int = 0) -> int:
    """Return an unused token id for padding.

    Args:
        model: The model; its configuration may have the size of the vocabulary.
        used: The ids of real tokens.
        first: The id to return if it is unused.

    Raises:
        InputError: Every id of the vocabulary is used.
    """
    known = getattr(text_config(model), "vocab_size", None)
    size: int = known if isinstance(known, int) else max(k for k in used if k is not None) + 1
    free: int | None = next((k for k in (first, *range(size)) if k not in used), None)
    if free is None:
        raise InputError(
            f"all {size} ids of the vocabulary are used, so none is left for padding; run fewer or shorter texts at "
            "once (encode them one at a time, or lower perturbations_per_eval or batch_tokens)."
        )
    return free


@contextmanager
def padding_id(model: nn.Module, value: int) -> Iterator[None]:
    """Run a block in which the model runs with this padding id in its configuration.

    Causal HuggingFace classifiers find the last token that is not padding, and reject batches without a padding id. A
    copy of the model's outermost modules has the id; the model and its configuration stay unchanged.
    """
    active = active_model(model)
    holder: Any = configured(active)
    text = text_config(model)
    if holder is None or getattr(text, "pad_token_id", value) == value:
        yield
        return
    config = copy.copy(holder.config)
    if text is holder.config:
        config.pad_token_id = value
    else:
        part = copy.copy(text)
        part.pad_token_id = value
        vars(config).update({name: part for name, held in vars(config).items() if held is text})
    readers = [m for m in active.modules() if getattr(m, "config", None) is holder.config]
    # Layers keep the configuration too, but only whole models read the padding id.
    shallow = ShallowCopy(active, [holder, *(m for m in readers if hasattr(m, "get_input_embeddings"))])
    for module in shallow.copies:
        if vars(module).get("config") is holder.config:
            vars(module)["config"] = config
    with substituted(model, shallow.root):
        yield


@contextmanager
def with_padding(adapter: Any, padding: int | None, tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Run a block in which a model's padding id is another one, and yield the tensors with it at hidden cells.

    Args:
        adapter: The ``TextAdapter``.
        padding: The id; None changes nothing.
        tensors: Ids (n, N) and further arguments.
    """
    if padding is None:
        yield tensors
        return
    ids, *further = tensors
    mask = dict(zip(adapter.argument_names, further, strict=False)).get("attention_mask")
    with padding_id(adapter.model, padding):
        yield ids.masked_fill(padded_cells(ids, mask, adapter._ending), padding), *further


def padded_cells(ids: Tensor, mask: Tensor | None, ending: int) -> Tensor:
    """Return which cells are padding or among the last ``ending`` real cells, (n, N) bool."""
    real = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
    from_end = real.flip(1).cumsum(1).flip(1)  # number of real cells from a cell to the end of its row
    return (real == 0) | (from_end <= ending)
