"""Pairs of texts as one sequence of tokens, and their truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokenizing, Tokens
from captum_attn_lime.errors import TextError, TokenizerError


def pair_tokens(tokenizing: Tokenizing, pair: tuple[str, str]) -> Tokens:
    """Return the tokens of two texts, with the tokenizer's special tokens.

    A pair that is too long loses tokens of the longer text first, then of both alike, on the tokenizer's
    ``truncation_side``. The result tokenises the remaining texts.

    Raises:
        TokenizerError: The tokenizer has no separator.
        TextError: There is no room for a token of each text.
    """
    whole = _whole(tokenizing, pair)
    limit = tokenizing.max_length
    if limit is None or len(whole.ids) <= limit:
        return whole
    sizes = [len(whole.of(0)), len(whole.of(1))]
    room = limit - (len(whole.ids) - sum(sizes))
    while True:
        kept = shares(sizes[0], sizes[1], room)
        if any(size and keep < 1 for size, keep in zip(sizes, kept, strict=True)):
            raise TextError(
                f"the model takes {limit} tokens, of which a pair needs {len(whole.ids) - sum(sizes)} special ones; "
                f"the texts' {sizes[0]} and {sizes[1]} tokens do not fit; raise max_length, or shorten them."
            )
        parts = [_part(tokenizing, whole, k, kept[k]) for k in (0, 1)]
        found = _whole(tokenizing, (parts[0][0], parts[1][0]))
        # A text cut inside a word may tokenise into more tokens.
        if len(found.ids) <= limit:
            rests = (parts[0][1], parts[1][1])
            return replace(found, cut=len(whole.ids) - len(found.ids), rests=rests, cut_left=tokenizing.cuts_left())
        room -= len(found.ids) - limit


def pair_ids(tokenizing: Tokenizing, pairs: Sequence[tuple[str, str]]) -> list[PlainIds]:
    """Return the ids of many pairs, truncated to the maximum length."""
    out: list[PlainIds] = []
    if tokenizing.is_huggingface:
        full = tokenizing.encode([first for first, _ in pairs], [second for _, second in pairs])
        types = full.get("token_type_ids", [None] * len(pairs))
        out = [
            PlainIds(tuple(i), None if t is None else tuple(t)) for i, t in zip(full["input_ids"], types, strict=True)
        ]
        limit = tokenizing.max_length
        long = [k for k, row in enumerate(out) if limit is not None and len(row.ids) > limit]
    else:
        out, long = [PlainIds(())] * len(pairs), list(range(len(pairs)))
    for k in long:
        row = pair_tokens(tokenizing, pairs[k])
        out[k] = PlainIds(row.ids, row.types, row.cut)
    return out


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text remain; the longer one loses tokens first.

    Example:
        >>> shares(3, 9, 20), shares(3, 9, 8), shares(8, 9, 7)
        ((3, 9), (3, 5), (3, 4))
    """
    if first + second <= room:
        return first, second
    half = max(room, 0) // 2
    if first <= second:
        keep = min(first, half)
        return keep, max(room, 0) - keep
    keep = min(second, half)
    return max(room, 0) - keep, keep


def _whole(tokenizing: Tokenizing, pair: tuple[str, str]) -> Tokens:
    """Return the tokens of two texts without truncation."""
    if not tokenizing.is_huggingface:
        return _joined(tokenizing, pair)
    # As a batch of one: outside a batch, a pair with an empty second text would count as a single text.
    encoded = tokenizing.encode([pair[0]], [pair[1]], return_offsets_mapping=True)
    segments = tuple(encoded.sequence_ids(0))
    offsets = zip(encoded["offset_mapping"][0], segments, strict=True)
    spans = tuple(None if segment is None else (int(span[0]), int(span[1])) for span, segment in offsets)
    return Tokens(pair, tuple(encoded["input_ids"][0]), spans, segments, _types(encoded))


def _joined(tokenizing: Tokenizing, pair: tuple[str, str]) -> Tokens:
    """Return the tokens of both texts with the separator between them."""
    separator = tokenizing.special_id("sep")
    if separator is None:
        raise TokenizerError(
            f"{type(tokenizing.tokenizer).__name__} has no token to separate the two texts of a pair; give it a "
            "sep_token_id (WordTokenizer.fit(texts, separator='<sep>'))."
        )
    first, second = (tokenizing.tokenizer.spans(text) for text in pair)
    ids = (*first[0], separator, *second[0])
    segments = (*[0] * len(first[0]), None, *[1] * len(second[0]))
    return Tokens(pair, tuple(ids), (*first[1], None, *second[1]), segments)


def _types(encoded: Any) -> tuple[int, ...] | None:
    """Return the token type ids of a batch of one, if any."""
    types = encoded.get("token_type_ids")
    return None if types is None else tuple(types[0])


def _part(tokenizing: Tokenizing, whole: Tokens, segment: int, keep: int) -> tuple[str, str]:
    """Return the part of one text that has this many tokens, and the part cut off."""
    text, tokens = whole.texts[segment], whole.of(segment)
    if keep >= len(tokens):
        return text, ""
    if not tokenizing.cuts_left():
        end = tokens[keep - 1][1][1]
        return text[:end], text[end:]
    start = tokens[len(tokens) - keep][1][0]
    return text[start:], text[:start]
