"""One interface for fast HuggingFace tokenizers and for tokenizers with ``spans(text)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from captum_attn_lime.adapters.text._words import Span, find_words
from captum_attn_lime.errors import TokenizerError

# Tokenizers without a limit report a larger model_max_length.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class Tokens:
    """One tokenised text, or two as one sequence.

    Attributes:
        texts: The texts after truncation.
        ids: Token ids, special tokens included.
        spans: Character span of each token in its text; None for special tokens.
        segments: The index of each token's text, 0 or 1; None for special tokens.
        types: Token type ids, if the tokenizer returns them.
        cut: Number of truncated tokens.
        rests: The part cut off each text.
        cut_left: Whether truncation was on the left.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[Span | None, ...]
    segments: tuple[int | None, ...]
    types: tuple[int, ...] | None = None
    cut: int = 0
    rests: tuple[str, ...] = ()
    cut_left: bool = False

    def of(self, segment: int) -> list[tuple[int, Span]]:
        """Return the ids and spans of one text's tokens."""
        cells = zip(self.ids, self.spans, self.segments, strict=True)
        return [(i, span) for i, span, of in cells if of == segment and span is not None]


@dataclass(frozen=True)
class PlainIds:
    """Token ids without spans, for predictions."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    cut: int = 0


Row = TypeVar("Row", Tokens, PlainIds)


class Tokenizing:
    """A tokenizer and a maximum length.

    Args:
        tokenizer: A HuggingFace tokenizer with offsets, or an object with ``spans(text) -> (ids, spans)``.
        max_length: Greatest number of tokens per text, special tokens included; None for no limit.
        types: Whether the model takes token type ids.
        open_ended: Whether to drop special tokens at a text's end, because the model continues the text.

    Attributes:
        max_length: The lesser of that length and the tokenizer's limit.
        gives_types: Whether the tokenizer has token type ids.
        types: Whether to return them: the tokenizer has them and the model takes them.
    """

    def __init__(self, tokenizer: Any, max_length: int | None, *, types: bool, open_ended: bool = False) -> None:
        self.is_huggingface = hasattr(tokenizer, "is_fast") and callable(tokenizer)
        if not self.is_huggingface and not callable(getattr(tokenizer, "spans", None)):
            raise TokenizerError(
                f"{type(tokenizer).__name__} is neither a HuggingFace tokenizer nor an object with a method "
                "spans(text) -> (ids, character spans); use WordTokenizer, or add that method."
            )
        if self.is_huggingface and not tokenizer.is_fast:
            raise TokenizerError(
                f"{type(tokenizer).__name__} is a slow tokenizer, written in Python, without the character "
                "spans of its tokens. Use the model's fast tokenizer (AutoTokenizer.from_pretrained(...)), or pass an "
                "object with a method spans(text) -> (ids, character spans)."
            )
        self.tokenizer = tokenizer
        limit = getattr(tokenizer, "model_max_length", None)
        limits = [n for n in (max_length, limit) if isinstance(n, int) and 0 < n < _NO_LIMIT]
        self.max_length = min(limits) if limits else None
        self.gives_types = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        self.types = types and self.gives_types
        self._closing = self._closing_tokens() if open_ended and self.is_huggingface else 0

    def tokens(self, text: str) -> Tokens:
        """Return the tokens of one text with their spans."""
        return self._opened(self._closed_tokens(text))

    def _closed_tokens(self, text: str) -> Tokens:
        if not self.is_huggingface:
            ids, spans = self.tokenizer.spans(text)
            return self._keep(text, _of_one(text, tuple(ids), tuple(spans)))
        found = self._fast(text)
        return self._from_whole_word(text, found) if found.cut and found.cut_left else found

    def _from_whole_word(self, text: str, cut: Tokens) -> Tokens:
        """Return a text that was cut on the left, from its first whole word on.

        The cut may fall inside a word. The rest of that word would tokenise differently ("##tive" becomes "tive" at the
        start of a text), so it is dropped too, and the remaining text is tokenised anew.
        """
        for word in find_words(text):
            if word.start < len(cut.rests[0]):
                continue
            before = word.start - 1 if word.start and text[word.start - 1].isspace() else word.start
            parts = [(start, self._fast(text[start:])) for start in dict.fromkeys((word.start, before))]
            fitting = [(start, part) for start, part in parts if not part.cut]
            if fitting:
                # Some tokenizers include the space before a word in its token: prefer the start that keeps the tokens.
                same = [(start, part) for start, part in fitting if _ends_alike(part, cut)]
                start, part = (same or fitting)[0]
                return replace(part, cut=cut.cut + len(cut.ids) - len(part.ids), rests=(text[:start],), cut_left=True)
        return cut

    def ids(self, texts: Sequence[str]) -> list[PlainIds]:
        """Return the ids of many texts, truncated to the maximum length."""
        return [self._opened(row) for row in self._closed_ids(texts)]

    def _closed_ids(self, texts: Sequence[str]) -> list[PlainIds]:
        if not self.is_huggingface:
            plain = [tuple(self.tokenizer.spans(text)[0]) for text in texts]
            return [PlainIds(ids[: self.max_length], None, len(ids) - len(ids[: self.max_length])) for ids in plain]
        full = self.encode(list(texts))
        types = full.get("token_type_ids", [None] * len(texts))
        out = []
        for text, ids, kinds in zip(texts, full["input_ids"], types, strict=True):
            if self.max_length is not None and len(ids) > self.max_length and self.cuts_left():
                row = self._closed_tokens(text)
                out.append(PlainIds(row.ids, row.types, row.cut))
            elif self.max_length is not None and len(ids) > self.max_length:
                short = self.encode(text, truncation=True, max_length=self.max_length)
                cut = len(ids) - len(short["input_ids"])
                out.append(PlainIds(tuple(short["input_ids"]), _types(short), cut))
            else:
                out.append(PlainIds(tuple(ids), None if kinds is None else tuple(kinds)))
        return out

    def names(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return the tokens of ids in the tokenizer's notation."""
        convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return tuple(str(t) for t in convert(list(ids))) if callable(convert) else tuple(str(i) for i in ids)

    def special_id(self, *names: str) -> int | None:
        """Return the id of the first of these special tokens (``"mask"``, ``"pad"``, ...) that exists, or None."""
        for name in names:
            found = getattr(self.tokenizer, f"{name}_token_id", None)
            if found is not None:
                return int(found)
        return None

    def ending(self, special: int) -> int:
        """Return how many special tokens with this id the tokenizer appends to every text."""
        if not self.is_huggingface:
            return 0
        ids = list(self.encode("a")["input_ids"])
        added = len(ids) - len(self.encode("a", add_special_tokens=False)["input_ids"])
        return next((n for n, k in enumerate(reversed(ids)) if k != special or n == added), 0)

    def _closing_tokens(self) -> int:
        """Return how many special tokens the tokenizer appends to every text."""
        ids, plain = list(self.encode("a")["input_ids"]), self.plain("a")
        ends = [k for k in range(len(plain), len(ids) + 1) if ids[k - len(plain) : k] == plain]
        return len(ids) - ends[-1] if plain and ends else 0

    def _opened(self, row: Row) -> Row:
        """Return the row without the special tokens at its end."""
        if not self._closing:
            return row
        short: dict[str, Any] = {"ids": row.ids[: -self._closing]}
        if row.types is not None:
            short["types"] = row.types[: -self._closing]
        if isinstance(row, Tokens):
            short |= {"spans": row.spans[: -self._closing], "segments": row.segments[: -self._closing]}
        return replace(row, **short)

    def encode(self, *texts: str | list[str], **options: Any) -> Any:
        """Return a HuggingFace tokenizer's encoding of a text or a pair, or of lists of them."""
        # verbose=False: the adapter warns about truncation.
        return self.tokenizer(*texts, return_token_type_ids=self.types, verbose=False, **options)

    def _fast(self, text: str) -> Tokens:
        wanted = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        full = self.encode(text, **wanted)
        whole = _fast_tokens(text, full)
        if self.max_length is None or len(whole.ids) <= self.max_length:
            return whole
        short = self.encode(text, truncation=True, max_length=self.max_length, **wanted)
        return self._cut(text, _fast_tokens(text, short), len(whole.ids))

    def plain(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens or truncation."""
        if not self.is_huggingface:
            return list(self.tokenizer.spans(text)[0])
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _keep(self, text: str, whole: Tokens) -> Tokens:
        if self.max_length is None or len(whole.ids) <= self.max_length:
            return whole
        short = _of_one(text, whole.ids[: self.max_length], whole.spans[: self.max_length])
        return self._cut(text, short, len(whole.ids))

    def _cut(self, text: str, short: Tokens, n_whole: int) -> Tokens:
        """Return truncated tokens with the part of the text that they cover."""
        covered = [s for s in short.spans if s is not None and s[1] > s[0]]
        first, last = (covered[0][0], covered[-1][1]) if covered else (0, 0)
        left = self.cuts_left()
        start, end = (first, len(text)) if left else (0, last)
        spans = tuple(None if s is None else (s[0] - start, s[1] - start) for s in short.spans)
        rest = text[:start] if left else text[end:]
        kept = _of_one(text[start:end], short.ids, spans, short.types)
        return replace(kept, cut=n_whole - len(short.ids), rests=(rest,), cut_left=left)

    def cuts_left(self) -> bool:
        """Return whether truncation is on the left."""
        return getattr(self.tokenizer, "truncation_side", "right") == "left"


def _ends_alike(part: Tokens, cut: Tokens) -> bool:
    """Return whether the text tokens of a part equal the last ones of the cut text."""
    ids, all_ids = ([k for k, span in t.of(0) if span[1] > span[0]] for t in (part, cut))
    return bool(ids) and all_ids[-len(ids) :] == ids


def _types(encoded: Any) -> tuple[int, ...] | None:
    """Return the token type ids of an encoded text, if any."""
    types = encoded.get("token_type_ids")
    return None if types is None else tuple(types)


def _fast_tokens(text: str, encoded: Any) -> Tokens:
    marks = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    spans = tuple(None if special else (int(span[0]), int(span[1])) for span, special in marks)
    return _of_one(text, tuple(encoded["input_ids"]), spans, _types(encoded))


def _of_one(
    text: str, ids: tuple[int, ...], spans: tuple[Span | None, ...], types: tuple[int, ...] | None = None
) -> Tokens:
    """Return the tokens of a single text."""
    return Tokens((text,), ids, spans, tuple(None if span is None else 0 for span in spans), types)
