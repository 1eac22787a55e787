"""Which cells a model takes for padding: never a real token, also where it tells padding by a token id alone."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters.limits import padding_token
from captum_attn_lime.adapters.state import text_config
from captum_attn_lime.errors import InputError

# No token has it: with it as the padding id, no cell is padding.
_NO_TOKEN = -1


def without_doubt(model: nn.Module, ids: Tensor, mask: Tensor | None, ending: int) -> tuple[Tensor, int]:
    """Return ids and a padding id such that the model takes exactly the padded cells for padding.

    Causal classifiers read the last token whose id is not the padding id. A word that was replaced by a token with
    that id would be skipped, so the padding gets an id that no real cell has.

    Args:
        model: A model whose configuration has a place for a padding id.
        ids: Token ids (n, N).
        mask: 1 at real tokens (n, N); None where all are.
        ending: Number of real tokens at each text's end that the tokenizer adds and that are padding ids themselves.
            The model passes over those, and goes on doing so.

    Returns:
        The ids, with another id at the padding where needed, and the padding id to lend to the configuration.

    Raises:
        InputError: Every id of the vocabulary is a real token of this batch.
    """
    own = padding_token(model)
    padded = padded_cells(ids, mask, ending)
    if own is None and not bool(padded.any()):
        return ids, _NO_TOKEN
    used = set(ids[~padded].tolist())
    if own is not None and own not in used:
        return ids, own
    free = unused_id(model, used)
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


def padded_cells(ids: Tensor, mask: Tensor | None, ending: int) -> Tensor:
    """Return which cells are padding or one of the last ``ending`` real cells, (n, N) bool."""
    real = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
    from_end = real.flip(1).cumsum(1).flip(1)  # counts the real cells from a cell to its row's end
    return (real == 0) | (from_end <= ending)
