"""Which cells a model takes for padding: never a real token, also where it tells padding by a token id alone."""

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

# No token has it: with it as the padding id, no cell is padding.
_NO_TOKEN = -1


def unambiguous_padding(model: nn.Module, ids: Tensor, mask: Tensor | None, ending: int) -> tuple[Tensor, int | None]:
    """Return ids and a padding id such that the model takes exactly the padded cells for padding.

    Causal classifiers read the last token whose id is not the padding id. A word that was replaced by a token with
    that id would be skipped, so the padding gets an id that no real cell has.

    Args:
        model: The model.
        ids: Token ids (n, N).
        mask: 1 at real tokens (n, N); None where all are.
        ending: Number of real tokens at each text's end that the tokenizer adds and that are padding ids themselves.
            The model passes over those, and goes on doing so.

    Returns:
        The ids, with another id at the padding where needed, and the padding id to lend to the configuration; None
        where the model needs no other: its configuration has no place for one, or no real cell has its id.

    Raises:
        InputError: Every id of the vocabulary is a real token of this batch.
    """
    own = padding_token(model)
    if own is None and not lacks_padding_token(model):
        return ids, None
    padded = padded_cells(ids, mask, ending)
    if own is None and not bool(padded.any()):
        return ids, _NO_TOKEN
    used = ids[~padded]
    if own is not None and not bool((used == own).any()):
        return ids, None
    free = unused_id(model, set(used.tolist()))
    return ids.masked_fill(padded, free), free


def unused_id(model: nn.Module, used: Collection[int | None], first: int = 0) -> int:
    """Return a token id that none of these is, to stand for padding.

    Args:
        model: A model whose configuration may say how many ids there are.
        used: The ids that real tokens have.
        first: The id to return if it is not used.

    Raises:
        InputError: Every id of the vocabulary is used.
    """
    known = getattr(text_config(model), "vocab_size", None)
    size: int = known if isinstance(known, int) else max(k for k in used if k is not None) + 1
    free: int | None = next((k for k in (first, *range(size)) if k not in used), None)
    if free is None:
        raise InputError(
            f"all {size} ids of the vocabulary are used, so none can stand for padding; run fewer or shorter texts at "
            "once (encode them one at a time, or a lower perturbations_per_eval or batch_tokens)."
        )
    return free


@contextmanager
def padding_id(model: nn.Module, value: int) -> Iterator[None]:
    """Run a block in which the model is asked with this padding id in its configuration.

    Causal HuggingFace classifiers look for the last token that is not padding and refuse batches without that id. A
    twin of the model's outermost modules has the id; the model and its configuration stay as they are.
    """
    own = active_model(model)
    holder: Any = configured(own)
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
    readers = [m for m in own.modules() if getattr(m, "config", None) is holder.config]
    # Layers keep the configuration too, but only whole models read the padding id.
    twin = ShallowCopy(own, [holder, *(m for m in readers if hasattr(m, "get_input_embeddings"))])
    for module in twin.copies:
        if vars(module).get("config") is holder.config:
            vars(module)["config"] = config
    with substituted(model, twin.root):
        yield


@contextmanager
def with_padding(adapter: Any, padding: int | None, tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Run a block in which a model takes an id for its padding, and return the tensors with it at hidden cells.

    Args:
        adapter: The ``TextAdapter``.
        padding: The id; None to leave all as it is.
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
    """Return which cells are padding or one of the last ``ending`` real cells, (n, N) bool."""
    real = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
    from_end = real.flip(1).cumsum(1).flip(1)  # counts the real cells from a cell to its row's end
    return (real == 0) | (from_end <= ending)
