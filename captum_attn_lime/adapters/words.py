"""The words of a text as character spans, and which token belongs to which word."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

WORD_PATTERN = r"\w+(?:['’]\w+)*|[^\w\s]"

Span = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """A word and where it stands in its text.

    Attributes:
        text: The word as it is written.
        start: Index of its first character.
        end: Index after its last character.
    """

    text: str
    start: int
    end: int


def find_words(text: str, pattern: str = WORD_PATTERN) -> tuple[Word, ...]:
    """Return the words of a text in order.

    With the default pattern a word is a run of word characters, an apostrophe inside it included, and every other
    character that is not a space stands alone. Combining marks stay with their letter: the pattern alone would cut
    decomposed accents and most Indic words.

    Args:
        text: The text.
        pattern: Regular expression of one word.

    Example:
        >>> [w.text for w in find_words("It isn't bad.")]
        ['It', "isn't", 'bad', '.']
    """
    spans = [m.span() for m in re.finditer(pattern, text) if m.end() > m.start()]
    if pattern == WORD_PATTERN:
        spans = _with_marks(text, spans)
    return tuple(Word(text[a:b], a, b) for a, b in spans)


def word_of_tokens(spans: Sequence[Span | None], words: Sequence[Word]) -> list[int | None]:
    """Return for each token the index of the word it overlaps most, the earlier one where two are equal.

    Args:
        spans: Character span of each token; None for tokens that stand for no text (special tokens).
        words: The words in order, not overlapping.

    Returns:
        One index per token, None where no word is overlapped.

    Example:
        >>> word_of_tokens([None, (0, 3), (3, 8)], find_words("It isn't"))
        [None, 0, 1]
    """
    starts = [w.start for w in words]
    out: list[int | None] = []
    for span in spans:
        best, most = None, 0
        if span is not None:
            k = max(bisect_right(starts, span[0]) - 1, 0)
            while k < len(words) and words[k].start < span[1]:
                shared = min(words[k].end, span[1]) - max(words[k].start, span[0])
                if shared > most:
                    best, most = k, shared
                k += 1
        out.append(best)
    return out


def _with_marks(text: str, spans: list[Span]) -> list[Span]:
    """Join spans that touch at a combining mark."""
    out: list[Span] = []
    for a, b in spans:
        touches = bool(out) and out[-1][1] == a
        if touches and (_is_mark(text[a]) or (_is_mark(text[a - 1]) and text[a].isalnum())):
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
