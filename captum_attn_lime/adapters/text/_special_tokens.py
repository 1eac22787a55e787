"""Tokens for padding, removed words and empty texts, and a check that a tokenizer fits a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from captum_attn_lime.adapters._model_config import padding_token
from captum_attn_lime.adapters._wrappers import text_config
from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokenizing, Tokens
from captum_attn_lime.errors import InputError, TokenizerError

AnyRow = Tokens | PlainIds
# If the tokenizer lacks the first token, the next one is used.
_BASELINES = {"mask": ("mask", "unk", "pad"), "unk": ("unk", "mask", "pad"), "pad": ("pad",)}


def padding_fill(model: nn.Module, tokenizing: Tokenizing) -> int:
    """Return the padding id: the model's, else the tokenizer's closest equivalent."""
    configured = padding_token(model)
    if configured is not None:
        return configured
    found = tokenizing.special_id("pad", "eos", "bos", "unk")
    return 0 if found is None else found


def baseline_token(tokenizing: Tokenizing, chosen: str | int, padding: int) -> int:
    """Return the id that replaces a removed word.

    Raises:
        InputError: Neither an id nor one of the names.
    """
    if isinstance(chosen, (int, np.integer)) and not isinstance(chosen, bool) and chosen >= 0:
        return int(chosen)
    if not isinstance(chosen, str) or chosen not in _BASELINES:
        raise InputError(f"baselines must be {', '.join(map(repr, _BASELINES))} or a token id, but is {chosen!r}.")
    found = tokenizing.special_id(*_BASELINES[chosen])
    return padding if found is None else found


def empty_token(tokenizing: Tokenizing) -> int:
    """Return the id that represents an empty text.

    Raises:
        TokenizerError: The tokenizer has no such token.
    """
    found = tokenizing.special_id("bos", "eos", "unk", "pad")
    if found is None:
        raise TokenizerError(
            f"{type(tokenizing.tokenizer).__name__} returns no token for an empty text and has no bos, eos, unk or pad "
            "token to represent it; give the tokenizer one of them."
        )
    return found


def check_ids(model: nn.Module, embeddings: int | None, tokenizing: Tokenizing, rows: Sequence[AnyRow]) -> None:
    """Raise if a token id or a token type id has no embedding.

    Args:
        model: The model.
        embeddings: Number of its token embeddings; None if unknown.
        tokenizing: The tokenizer.
        rows: The tokens that it returned.

    Raises:
        TokenizerError: The tokenizer does not fit the model.
    """
    name = type(model).__name__
    types = getattr(text_config(model), "type_vocab_size", None)
    highest = max((max(row.types or (0,)) for row in rows), default=0)
    if isinstance(types, int) and 0 < types <= highest:
        raise TokenizerError(
            f"the tokenizer returns token type id {highest}, but {name} has {types} token type(s); use the model's "
            "own tokenizer, or remove 'token_type_ids' from tokenizer.model_input_names."
        )
    highest = max((max(row.ids, default=0) for row in rows), default=0)
    if embeddings is not None and highest >= embeddings:
        raise TokenizerError(
            f"the tokenizer returns token id {highest} ({tokenizing.names([highest])[0]!r}), but "
            f"{name} has {embeddings} embeddings; use the model's own tokenizer, or resize the embeddings."
        )
