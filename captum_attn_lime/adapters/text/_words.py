"""The words of a text as character spans, in every script, and which token belongs to which word."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby, pairwise

WORD_PATTERN = r"\w+(?:['’]\w+)*|[^\w\s]"

# Part of a word between letters: apostrophes, and the points of Hebrew and Catalan.
APOSTROPHES = "'’‘＇׳״·"
# Scripts without spaces between words: South East Asian ones, Tibetan, Chinese, Japanese and others.
_WITHOUT_SPACES = (
    r"\u0e00-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3005-\u3007\u3021-\u3029\u3031-\u312f"
    r"\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
    r"\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Characters that belong to the previous one, but are neither marks nor format characters: the vowel AM of Thai and Lao,
# the voiced marks of halfwidth katakana, and the skin colours of emoji.
_ATTACHED = "\u0e33\u0eb3\uff9e\uff9f\U0001f3fb-\U0001f3ff"
_STACKERS = r"\u1039\u17d2\u1a60\ua9c0"  # they place the next consonant below the previous one
_ZERO_WIDTH_SPACE = "\u200b"

Span = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """A word and its position in its text.

    Attributes:
        text: The word as written.
        start: Index of its first character.
        end: Index after its last character.
    """

    text: str
    start: int
    end: int


def find_words(
    text: str, pattern: str | re.Pattern[str] = WORD_PATTERN, *, tokens: Iterable[Span | None] | None = None
) -> tuple[Word, ...]:
    """Return the words of a text in order.

    With the default pattern a word is a run of letters, digits and marks, including inner apostrophes, and every other
    character except spaces is a word. Graphemes are never split: letters with combining marks, joined emoji, flags and
    keycaps.

    In scripts without spaces between words (Chinese, Japanese, Thai and others) each character is a word, or, with
    ``tokens``, the text between two token starts.

    Args:
        text: The text.
        pattern: Regular expression of one word; the matches of any other pattern than the default are the words.
        tokens: Character span of each token, None for special tokens. In scripts without spaces, characters that share
            a token are one word.

    Example:
        >>> [w.text for w in find_words("It isn't bad.")]
        ['It', "isn't", 'bad', '.']
        >>> [w.text for w in find_words("a 电影院")], [w.text for w in find_words("a 电影院", tokens=[(2, 4), (4, 5)])]
        (['a', '电', '影', '院'], ['a', '电影', '院'])
    """
    if pattern != WORD_PATTERN:
        return tuple(Word(m[0], *m.span()) for m in re.finditer(pattern, text) if m[0])
    word, character = _patterns()
    cuttable = None if tokens is None else _token_boundaries(text, tokens)
    out = []
    for m in word.finditer(text):
        start, end = m.span()
        cuts = [start, *(c.start() for c in character.finditer(text, start, end) if c.start() > start), end]
        if cuttable is not None:
            cuts = [k for k in cuts if k in (start, end) or k in cuttable]
        out += [Word(text[a:b], a, b) for a, b in pairwise(cuts)]
    return tuple(out)


def find_phrase(text: str, phrase: str) -> list[Span]:
    """Return the spans of a word or phrase in a text, as whole words; words may end at an apostrophe.

    Example:
        >>> find_phrase("Ada's and Adam's", "Ada"), find_phrase("这部电影", "电影")
        ([(0, 3)], [(2, 4)])
    """
    inside = {k for w in find_words(text) for k in range(w.start + 1, w.end)}
    out: list[Span] = []
    start = text.find(phrase) if phrase else -1
    while start >= 0:
        end = start + len(phrase)
        whole = all(k not in inside or text[k - 1] in APOSTROPHES or text[k] in APOSTROPHES for k in (start, end))
        if whole:
            out.append((start, end))
        start = text.find(phrase, end if whole else start + 1)
    return out


def word_of_tokens(spans: Sequence[Span | None], words: Sequence[Word]) -> list[int | None]:
    """Return for each token the index of the word it overlaps most, the earlier of equals, or None.

    Args:
        spans: Character span of each token; None for special tokens.
        words: The words in order, not overlapping.

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


def _token_boundaries(text: str, tokens: Iterable[Span | None]) -> set[int]:
    """Return the positions where a token begins and that no token crosses."""
    spans = [span for span in tokens if span is not None and span[1] > span[0]]
    change = [0] * (len(text) + 2)
    for start, end in spans:
        change[start + 1] += 1
        change[end] -= 1
    crossing = list(accumulate(change))
    return {start for start, _ in spans if not crossing[start]}


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a word, and of its parts: characters of scripts without spaces, and runs of others."""
    extend = _extending()
    some = f"[{extend}]*"
    # A digit that begins a keycap is not part of a word.
    letter = rf"(?:[^\W0-9]|[{extend}]|[0-9](?!\ufe0f?\u20e3))"
    word = rf"(?:[^\W0-9]|[0-9](?!\ufe0f?\u20e3)){letter}*(?:[{APOSTROPHES}]{letter}+)*"
    keycap = rf"[0-9#*]\ufe0f?\u20e3{some}"
    flag = rf"[\U0001f1e6-\U0001f1ff]{{2}}{some}"
    sign = rf"[^\w\s{_ZERO_WIDTH_SPACE}]{some}"
    symbol = rf"{sign}(?:(?<=\u200d){sign})*"
    alone = rf"(?![\d{extend}])[{_WITHOUT_SPACES}]"
    character = rf"{alone}{some}(?:(?<=[{_STACKERS}]){alone}{some})*"
    words = rf"{some}(?:{keycap}|{flag}|{word}|{symbol})|[{extend}]+"
    return re.compile(words), re.compile(rf"{character}|(?:(?!{alone}).)+", re.DOTALL)


def _extending() -> str:
    """Return the characters that belong to the previous one, as the content of a regular expression's [].

    These are all combining marks and format characters: joiners, soft hyphens, variation selectors, direction marks.
    """
    # All marks and format characters are in planes 0, 1 and 14.
    codes = (*range(0x20000), *range(0xE0000, 0xE0200))
    found = [k for k in codes if unicodedata.category(chr(k)) in ("Mn", "Mc", "Me", "Cf")]
    found.remove(ord(_ZERO_WIDTH_SPACE))  # an invisible space
    runs = [[k for _, k in run] for _, run in groupby(enumerate(found), key=lambda pair: pair[1] - pair[0])]
    return _ATTACHED + "".join(rf"\U{run[0]:08x}-\U{run[-1]:08x}" for run in runs)
