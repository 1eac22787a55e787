"""Checks that attention maps can be multiplied, and are over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.errors import AttentionKindError

_WHY = {
    "cross": "is cross-attention: its queries and keys are different tokens",
    "pool": "pools tokens into one: its output is no longer a sequence of tokens",
    "channel": "is attention over channels: its queries and keys are features, not tokens",
    "unknown": "could not be recognised as self-attention (queries and keys that are projections of one tensor)",
}


def require_products(maps: Sequence[AttentionMap], method: str) -> None:
    """Check that the maps can be multiplied: square self-attention over the same tokens.

    Raises:
        AttentionKindError: They cannot; names the first map that does not fit.
    """
    n = maps[-1].shape[2]
    for attention in maps:
        queries, keys = attention.shape[2:]
        if attention.kind not in ("self", "windowed"):
            reason = _WHY[attention.kind]
        elif queries != keys:
            reason = f"is not square: {queries} queries, {keys} keys"
        elif queries != n:
            reason = f"is over {queries} tokens, but the last layer is over {n} (in models with stages tokens merge)"
        else:
            continue
        raise AttentionKindError(
            f"{method} multiplies self-attention maps, but {attention.name!r} {reason}. "
            "Choose layers= over the same tokens, or use method='raw'."
        )
    require_one_stack(maps)
    for attention in maps:
        if attention.mixed:
            raise AttentionKindError(
                f"between {maps[0].name!r} and {attention.name!r} something other than attention mixes tokens (a "
                f"recurrence, a convolution, a norm over tokens), which {method} would ignore. Choose layers= without "
                "such an operation between them, or use method='raw'."
            )


def require_tokens(maps: Sequence[AttentionMap]) -> None:
    """Check that the maps are over tokens.

    Raises:
        AttentionKindError: A map is over channels.
    """
    for attention in maps:
        if attention.kind == "channel":
            raise AttentionKindError(
                f"{attention.name!r} {_WHY['channel']}, so it says nothing about parts of the input. Choose layers= "
                "that attend to tokens, if the model has any (describe() lists them)."
            )


def require_one_stack(maps: Sequence[AttentionMap]) -> None:
    """Check that each layer's tokens passed through the layer before it.

    Two towers, or an encoder and a decoder, may have equally many tokens; their layers must not be mixed.

    Raises:
        AttentionKindError: They did not; names the two layers between which the stack breaks.
    """
    for before, after in pairwise(maps):
        if before.index is None or after.index is None or before.index == after.index:
            continue  # not captured, or the same layer twice
        if before.index not in after.follows:
            raise AttentionKindError(
                f"the tokens of {after.name!r} did not pass through {before.name!r}: they are layers of two stacks "
                "(two towers, or an encoder and a decoder), or parallel parts of one layer. Choose layers= within one "
                "of them."
            )
