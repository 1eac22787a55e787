"""`TextEncoding`: texts or pairs of texts as token ids with their words as features, and the positions of words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from captum_attn_lime.adapters._encoding import Encoding, counted
from captum_attn_lime.adapters.text._raw import TEXTS, Raw, TextFeatures, is_pair, texts_of
from captum_attn_lime.adapters.text._tokenize import Tokens
from captum_attn_lime.adapters.text._words import WORD_PATTERN, Span, Word, find_phrase, find_words, word_of_tokens
from captum_attn_lime.errors import InputError, TextError

TokenSpan = tuple[int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class TextEncoding(Encoding):
    """Texts, or pairs of texts, as token ids, with their words as features.

    Attributes:
        texts: For each example the text, or the pair of texts, after truncation.
        tokens: The tokens of each example, special and padding tokens included.
        words: The words of each example that are features, ids 0 to len - 1; spans are relative to their text. A word
            without tokens (a control character that the tokenizer drops) is left out. If tokens are the features, the
            piece of text of each token.
        text_indices: For each word the index of its text in a pair, 0 or 1; 0 for single texts.
        token_spans: For each token its text (0 or 1) and its start and end in it; None for special and padding tokens.
    """

    texts: tuple[Raw, ...]
    tokens: tuple[tuple[str, ...], ...]
    words: tuple[tuple[Word, ...], ...]
    text_indices: tuple[tuple[int, ...], ...]
    token_spans: tuple[tuple[TokenSpan | None, ...], ...]

    def _examples(self) -> str:
        noun = "text" if isinstance(self.texts[0], str) else "pair"
        return f"{counted(len(self), noun)}, {counted(len(self.tokens[0]), 'token')}"

    def positions(self, word: int, *, example: int = 0) -> tuple[int, ...]:
        """Return the positions of a word's tokens, for targets such as ``(position, class)``.

        Args:
            word: Index of the word among ``words[example]``, which is its feature's id.
            example: Index of the example.

        Raises:
            InputError: There is no such word or example.
        """
        words = self.words[self._example(example)]
        if not 0 <= word < len(words):
            raise InputError(f"example {example} has {len(words)} explained words, so there is no word {word}.")
        mask = self.feature_mask[0] if isinstance(self.feature_mask, tuple) else self.feature_mask
        return tuple(int(k) for k in (mask[example] == word).nonzero().flatten())

    def find(
        self,
        text: str,
        *,
        example: int = 0,
        in_text: Literal["first", "second"] | None = None,
        occurrence: int = 0,
    ) -> tuple[int, ...]:
        """Return the positions of the tokens of a word or phrase, whether or not it is explained.

        Special tokens are no part of a text: ``x.tokens[0].index("[CLS]")`` finds those.

        Args:
            text: What to find, exactly as written; only whole words match, and whole characters in scripts without
                spaces between words.
            example: Index of the example.
            in_text: Which text of a pair to search; by default the first one, then the second.
            occurrence: Which one of several, from 0.

        Raises:
            TextError: It does not occur, or not that often.
            InputError: There is no such example or text.

        Example:
            >>> from captum_attn_lime.adapters import TextAdapter, WordTokenizer
            >>> class Tagger(torch.nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.table = torch.nn.Embedding(9, 3)
            ...
            ...     def forward(self, ids):
            ...         return self.table(ids)
            >>> adapter = TextAdapter(Tagger(), WordTokenizer.fit(["Ada left London"]), task="tokens")
            >>> x = adapter.encode("Ada left London")
            >>> x.find("London"), x.find("Ada left"), adapter(x.inputs).shape
            ((2,), (0, 1), torch.Size([1, 3, 3]))
        """
        raw = self.texts[self._example(example)]
        if in_text is not None and (in_text not in TEXTS or not is_pair(raw)):
            raise InputError(f"in_text must be 'first' or 'second', of a pair, but is {in_text!r} for {raw!r}.")
        places = [
            (k, *span)
            for k, searched in enumerate(texts_of(raw))
            if in_text is None or TEXTS[k] == in_text
            for span in find_phrase(searched, text)
        ]
        if not 0 <= occurrence < len(places):
            raise TextError(f"{text!r} is {len(places)} times in {raw!r}, so there is no occurrence {occurrence}.")
        of, start, end = places[occurrence]
        spans = enumerate(self.token_spans[example])
        return tuple(k for k, s in spans if s is not None and s[0] == of and s[1] < end and s[2] > start)

    def _example(self, example: int) -> int:
        if not 0 <= example < len(self):
            raise InputError(f"the encoding holds {len(self)} example(s), so there is no example {example!r}.")
        return example


def features_of(
    rows: Sequence[Tokens],
    ids: Tensor,
    features: TextFeatures,
    explained: Sequence[int],
    *,
    left: bool,
) -> tuple[tuple[tuple[Word, ...], ...], tuple[tuple[int, ...], ...], Tensor]:
    """Return the explained words that have a token, the index of each word's text, and the feature mask (B, N).

    Args:
        rows: The tokens of each example.
        ids: Their padded ids, (B, N).
        features: What one feature is: ``"word"``, ``"token"``, or a pattern of one word.
        explained: Indices of the texts whose words are features. All other tokens share the last id.
        left: Whether the padding is on the left.

    Raises:
        TextError: An example has no word to explain.
    """
    words, segments, owners = [], [], []
    for i, row in enumerate(rows):
        row_words: list[Word] = []
        row_segments: list[int] = []
        owner: list[int | None] = [None] * len(row.ids)
        for segment in explained:
            spans = [s if of == segment else None for s, of in zip(row.spans, row.segments, strict=True)]
            found, word_of = _pieces(row.texts[segment], spans, features)
            used = sorted({k for k in word_of if k is not None})
            number = {k: len(row_words) + n for n, k in enumerate(used)}
            owner = [o if k is None else number[k] for o, k in zip(owner, word_of, strict=True)]
            row_words += [found[k] for k in used]
            row_segments += [segment] * len(used)
        if not row_words:
            texts = " and ".join(repr(row.texts[k][:40]) for k in explained)
            what = f"word that matches {features.pattern!r}" if isinstance(features, re.Pattern) else features
            raise TextError(f"text {i} ({texts}) has no {what} that the model sees, so there is nothing to explain.")
        words.append(tuple(row_words))
        segments.append(tuple(row_segments))
        owners.append(owner)
    last = max(len(row) for row in words)
    mask = torch.full_like(ids, last)
    for i, owner in enumerate(owners):
        cells = slice(ids.shape[1] - len(owner), None) if left else slice(len(owner))
        mask[i, cells] = torch.tensor([last if n is None else n for n in owner], device=ids.device)
    return tuple(words), tuple(segments), mask


def names_of(words: Sequence[Sequence[Word]]) -> tuple[tuple[str, ...], ...]:
    """Return the texts of each example's words."""
    return tuple(tuple(w.text for w in row) for row in words)


def names_of_tokens(tokens: Sequence[Sequence[str]], is_feature: Tensor) -> tuple[tuple[str, ...], ...]:
    """Return the tokens of each example that are features, in the tokenizer's notation."""
    return tuple(tuple(compress(row, kept)) for row, kept in zip(tokens, is_feature.tolist(), strict=True))


def _pieces(
    text: str, spans: Sequence[Span | None], features: TextFeatures
) -> tuple[Sequence[Word], Sequence[int | None]]:
    """Return the pieces of a text that are features, in order, and for each token the index of its piece."""
    if features == "token":
        cells = [k for k, span in enumerate(spans) if span is not None and span[1] > span[0]]
        number = {cell: k for k, cell in enumerate(cells)}
        places = [span for span in spans if span is not None and span[1] > span[0]]
        return [Word(text[a:b], a, b) for a, b in places], [number.get(k) for k in range(len(spans))]
    found = find_words(text, WORD_PATTERN if isinstance(features, str) else features, tokens=spans)
    return found, word_of_tokens(spans, found)


def spans_of(row: Tokens, length: int, *, left: bool) -> tuple[TokenSpan | None, ...]:
    """Return each token's text, start and end, padded with None."""
    cells = zip(row.spans, row.segments, strict=True)
    spans = [None if span is None or of is None else (of, *span) for span, of in cells]
    padding = [None] * (length - len(spans))
    return (*padding, *spans) if left else (*spans, *padding)
