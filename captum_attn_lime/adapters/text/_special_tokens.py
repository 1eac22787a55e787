"""Tokens that stand in for others (padding, removed words, an empty text), and whether a tokenizer fits a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from captum_attn_lime.adapters._model_config import padding_token
from captum_attn_lime.adapters._wrappers import text_config
from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokenizing, Tokens
from captum_attn_lime.errors import InputError, TokenizerError

AnyRow = Tokens | PlainIds
# Where the wished-for baseline token is missing, the next one stands in.
_BASELINES = {"mask": ("mask", "unk", "pad"), "unk": ("unk", "mask", "pad"), "pad": ("pad",)}


def padding_fill(model: nn.Module, tokenizing: Tokenizing) -> int:
    """Return the id that fills up a batch: the model's, else the tokenizer's nearest to one."""
    own = padding_token(model)
    if own is not None:
        return own
    found = tokenizing.special_id("pad", "eos", "bos", "unk")
    return 0 if found is None else found


def baseline_token(tokenizing: Tokenizing, chosen: str | int, padding: int) -> int:
    """Return the id that stands for a removed word.

    Raises:
        InputError: It is no id and none of the names.
    """
    if isinstance(chosen, (int, np.integer)) and not isinstance(chosen, bool) and chosen >= 0:
        return int(chosen)
    if not isinstance(chosen, str) or chosen not in _BASELINES:
        raise InputError(f"baselines must be {', '.join(map(repr, _BASELINES))} or a token id, but is {chosen!r}.")
    found = tokenizing.special_id(*_BASELINES[chosen])
    return padding if found is None else found


def empty_token(tokenizing: Tokenizing) -> int:
    """Return the id that stands for a text without any token.

    Raises:
        TokenizerError: The tokenizer has no token to stand for an empty text.
    """
    found = tokenizing.special_id("bos", "eos", "unk", "pad")
    if found is None:
        raise TokenizerError(
            f"{type(tokenizing.tokenizer).__name__} gives an empty text no token and has no bos, eos, unk or pad token "
            "to stand for it; give the tokenizer one of them."
        )
    return found


def check_ids(model: nn.Module, embeddings: int | None, tokenizing: Tokenizing, rows: Sequence[AnyRow]) -> None:
    """Raise if a token id or a token type id has no embedding.

    Args:
        model: The model.
        embeddings: Number of its token embeddings; None where that is not known.
        tokenizing: The tokenizer.
        rows: What it gave.

    Raises:
        TokenizerError: The tokenizer is not the model's.
    """
    name = type(model).__name__
    types = getattr(text_config(model), "type_vocab_size", None)
    highest = max((max(row.types or (0,)) for row in rows), default=0)
    if isinstance(types, int) and 0 < types <= highest:
        raise TokenizerError(
            f"the tokenizer gives token type id {highest}, but {name} has {types} token type(s); use the model's "
            "own tokenizer, or take 'token_type_ids' out of tokenizer.model_input_names."
        )
    highest = max((max(row.ids, default=0) for row in rows), default=0)
    if embeddings is not None and highest >= embeddings:
        raise TokenizerError(
            f"the tokenizer gives token id {highest} ({tokenizing.names([highest])[0]!r}), but "
            f"{name} has {embeddings} embeddings; use the model's own tokenizer, or resize the embeddings."
        )
