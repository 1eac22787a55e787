"""Inputs of a text adapter: checks of texts, pairs and tensors, and warnings about truncation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard, get_args

from torch import Tensor

from captum_attn_lime._util.warn import warn
from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokens
from captum_attn_lime.adapters.text._words import find_words
from captum_attn_lime.errors import InputError, TextError, TruncationWarning

Pair = tuple[str, str]
Raw = str | Pair
ExplainedText = Literal["both", "first", "second"]
TEXTS: tuple[ExplainedText, ExplainedText] = ("first", "second")  # of a pair
TextFeatures = Literal["word", "token"] | re.Pattern[str]


def is_pair(raw: Any) -> TypeGuard[Pair]:
    """Return whether this is a pair of texts: a tuple of two str.

    Example:
        >>> is_pair(("Who?", "Ada.")), is_pair(["Who?", "Ada."])
        (True, False)
    """
    return isinstance(raw, tuple) and len(raw) == 2 and all(isinstance(text, str) for text in raw)


def as_list(raw: Any) -> list[Raw]:
    """Return one text or pair, or several, as a list of texts or a list of pairs.

    Raises:
        InputError: Neither texts nor pairs, a mixture, or an empty sequence.
    """
    items: Any = [raw] if isinstance(raw, str) or is_pair(raw) else raw
    if isinstance(items, tuple):
        raise InputError(
            f"a tuple of two texts is a pair, but this tuple holds {', '.join(type(t).__name__ for t in items)}; "
            "pass several texts or pairs as a list."
        )
    if isinstance(items, (bytes, dict)) or not hasattr(items, "__iter__"):
        raise InputError(f"expected a text (str) or several, but got {type(raw).__name__}.")
    out = list(items)
    if not out:
        raise InputError("expected a text or several, but the sequence is empty.")
    for i, item in enumerate(out):
        if not isinstance(item, str) and not is_pair(item):
            raise InputError(
                f"expected texts, but item {i} is {type(item).__name__}: {item!r}; convert it with str(), "
                "or pass a pair as a tuple of two str."
            )
        if is_pair(item) != is_pair(out[0]):
            raise InputError(f"item 0 and item {i} are a single text and a pair; pass only texts or only pairs.")
    return [item if is_pair(item) else str(item) for item in out]


def texts_to_explain(chosen: ExplainedText, items: Sequence[Raw]) -> tuple[int, ...]:
    """Return the indices of the texts of each item that provide the features."""
    if chosen not in get_args(ExplainedText):
        names = ", ".join(map(repr, get_args(ExplainedText)))
        raise InputError(f"explained_text must be one of {names}, but is {chosen!r}.")
    if chosen != "both" and not is_pair(items[0]):
        raise InputError(
            f"explained_text={chosen!r} chooses a text of a pair, but these are single texts; pass pairs as tuples."
        )
    if chosen == "both":
        return (0, 1) if is_pair(items[0]) else (0,)
    return (TEXTS.index(chosen),)


def check_features(features: Any) -> None:
    """Raise unless these are valid features of a text."""
    if features not in ("word", "token") and not isinstance(features, re.Pattern):
        raise InputError(
            f"features must be 'word', 'token' or a compiled pattern of one word, but is {features!r}; for a regular "
            "expression pass re.compile(...)."
        )


def texts_of(item: Raw) -> tuple[str, ...]:
    """Return the texts of an item as a tuple of one or two."""
    return (item,) if isinstance(item, str) else item


def check_not_blank(item: Raw, i: int) -> None:
    """Raise if a text, or one of a pair, is empty or blank."""
    for k, text in enumerate(texts_of(item)):
        if not text.strip():
            what = f"the {TEXTS[k]} text of pair {i}" if is_pair(item) else f"text {i}"
            raise TextError(
                f"{what} is {'empty' if not text else 'blank'}; pass a text with at least one word"
                f"{', or the other text alone' if is_pair(item) else ''}."
            )


def warn_cut(row: Tokens, i: int, max_length: int | None) -> None:
    """Warn about the words that truncation removed from one text or pair."""
    if not row.cut:
        return
    paired = len(row.texts) == 2
    lost = []
    for k, (text, rest) in enumerate(zip(row.texts, row.rests, strict=True)):
        if not rest and paired:
            continue
        seen = len(find_words(text))
        some = " ".join(w.text for w in find_words(rest)[:4])
        of = f" of the {TEXTS[k]} text" if paired else ""
        if row.cut_left:
            lost.append(f"all but the last {seen} words{of}" if paired else f"all but its last {seen} words")
        else:
            lost.append(f"{'the' if paired else 'its'} words{of} from number {seen + 1} on ({some} ...)")
    warn(
        f"{'pair' if paired else 'text'} {i} has {row.cut + len(row.ids)} tokens and the model takes {max_length}: "
        f"{row.cut} tokens were cut. Not seen and not explained: {'; '.join(lost)}.",
        TruncationWarning,
    )


def warn_cut_many(rows: Sequence[PlainIds], max_length: int | None) -> None:
    """Warn once about all truncated texts or pairs."""
    cut = [row.cut for row in rows if row.cut]
    if cut:
        warn(
            f"{len(cut)} of {len(rows)} texts were longer than {max_length} tokens: up to {max(cut)} tokens were cut "
            "and not seen. Explain the part that is seen: adapter.encode(text).texts.",
            TruncationWarning,
        )


def check_by_position(tensors: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raise InputError for a dictionary or named arguments instead of positional tensors."""
    if named or any(hasattr(x, "keys") for x in tensors):
        raise InputError(
            "an adapter takes tensors by position, but got a dictionary or named arguments; pass ids, mask and types "
            "as adapter(x.inputs, *x.forward_args), with x = adapter.encode(text)."
        )


def check_ids_tensor(ids: Tensor) -> None:
    """Raise InputError unless a tensor holds token ids (n, N) or embeddings (n, N, D)."""
    if ids.dim() not in (2, 3):
        raise InputError(
            f"an adapter takes token ids (n, N), or embeddings (n, N, D), but got shape {tuple(ids.shape)}; add the "
            "batch dimension with ids.unsqueeze(0), and likewise for the mask."
        )
    if ids.dim() == 2 and ids.is_floating_point():
        raise InputError(
            f"the token ids are {ids.dtype}: this method interpolates its inputs, or adds noise as NoiseTunnel does, "
            "which is impossible for ids. Without a NoiseTunnel, use a layer method, such as "
            "LayerIntegratedGradients(adapter, adapter.embedding)."
        )
