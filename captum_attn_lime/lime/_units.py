"""The units of a text that LIME removes, and their positions: lime's words, the adapter's, or the user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from captum_attn_lime.adapters.text._words import Span
from captum_attn_lime.errors import InputError, TextError

Splitter = Callable[[str], Iterable[Any]]
TextFeatures = Literal["lime", "word", "token"] | re.Pattern[str] | Splitter
Occurrence = tuple[int, int, int]


class UnitText:
    """A text with its units and the interface of lime's ``IndexedString``, so that lime can show them.

    Args:
        text: The text.
        spans: Start and end of each unit, in order and not overlapping.
        bow: Whether equal units are one feature.

    Attributes:
        raw: The text.
        bow: Whether equal units are one feature.
        as_list: The text in pieces: the units, and the text between them.
        string_start: Index of each piece's first character, (pieces,).
        positions: The indices of each feature's pieces; with ``bow=False`` the index of its one piece.
        inverse_vocab: The text of each feature.

    Example:
        >>> text = UnitText("so good, so", [(0, 2), (3, 7), (9, 11)], bow=True)
        >>> text.num_words(), text.word(0), text.string_position(0).tolist(), text.inverse_removing([0])
        (2, 'so', [0, 9], ' good, ')
    """

    def __init__(self, text: str, spans: Sequence[Span], *, bow: bool) -> None:
        self.raw = text
        self.bow = bow
        self.as_list: list[str] = []
        starts: list[int] = []
        pieces: list[int] = []
        end = 0
        for a, b in [*spans, (len(text), len(text))]:
            if a > end:
                starts.append(end)
                self.as_list.append(text[end:a])
            if b > a:
                pieces.append(len(starts))
                starts.append(a)
                self.as_list.append(text[a:b])
            end = b
        self.string_start = np.array(starts, dtype=np.int64)
        by_feature: dict[Any, list[int]] = {}
        for piece in pieces:
            by_feature.setdefault(self.as_list[piece] if bow else piece, []).append(piece)
        self.inverse_vocab = [self.as_list[group[0]] for group in by_feature.values()]
        self.positions: Any = list(by_feature.values()) if bow else np.array(pieces, dtype=np.int64)

    def raw_string(self) -> str:
        """Return the text."""
        return self.raw

    def num_words(self) -> int:
        """Return the number of features."""
        return len(self.inverse_vocab)

    def word(self, id_: int) -> str:
        """Return a feature's text."""
        return self.inverse_vocab[id_]

    def string_position(self, id_: int) -> Any:
        """Return the index of the first character of each occurrence of a feature."""
        return self.string_start[self.positions[id_] if self.bow else [self.positions[id_]]]

    def inverse_removing(self, words_to_remove: Iterable[int]) -> str:
        """Return the text without some features."""
        removed = {p for k in words_to_remove for p in np.atleast_1d(self.positions[k]).tolist()}
        return "".join(piece for k, piece in enumerate(self.as_list) if k not in removed)


def occurrences(string: Any) -> list[Occurrence]:
    """Return feature, start and end of every unit of an ``IndexedString``, in the order of the text.

    Args:
        string: lime's ``IndexedString`` or ``IndexedCharacters``, or a :class:`UnitText`.
    """
    starts = _starts(string.as_list)
    return sorted(
        (
            (feature, starts[piece], starts[piece + 1])
            for feature in range(string.num_words())
            for piece in (string.positions[feature] if string.bow else [string.positions[feature]])
        ),
        key=lambda unit: unit[1],
    )


def _starts(pieces: Sequence[str]) -> list[int]:
    """Return the start of each piece of a text, and the end of the last one.

    lime measures its pieces as NumPy strings, which end before a NUL character.
    """
    return list(accumulate(map(len, pieces), initial=0))


def lime_string(text: str, split_expression: Any, *, bow: bool, mask_string: str | None) -> Any:
    """Return lime's ``IndexedString`` of a text.

    Raises:
        TextError: The text has no word, or a word that ends in a NUL character.
    """
    from lime.lime_text import IndexedString

    string = IndexedString(text, split_expression=split_expression, bow=bow, mask_string=mask_string)
    if _loses_nul(string, split_expression):
        raise TextError(
            f"a word of the text {text[:40]!r} ends in a NUL character, which lime's strings lose; remove it from the "
            "text, or pass features=, which keeps it."
        )
    # lime's positions are wrong after a NUL, and floats for a single word, which would be shown as 0.0.
    string.string_start = np.array(_starts(string.as_list)[:-1], dtype=np.int64)
    if not string.num_words():
        raise TextError(
            f"the text {text[:40]!r} has no word between matches of split_expression {split_expression!r}; pass "
            "another split_expression, or features='word', the adapter's words."
        )
    return string


def _loses_nul(string: Any, split_expression: Any) -> bool:
    """Return whether lime lost the NUL at the end of a word."""
    ends = [piece for piece in string.as_list if piece.endswith("\0")]
    if callable(split_expression):
        return bool(ends) and not set(ends).isdisjoint(split_expression(string.raw))
    is_no_word = re.compile(f"({split_expression})|$").match  # lime's test
    return not all(map(is_no_word, ends))


def split_spans(text: str, units: re.Pattern[str] | Splitter) -> list[Span]:
    """Return the spans of the units that a pattern or a function finds in a text.

    Args:
        text: The text.
        units: A pattern of one unit, or a function from the text to its units in order: substrings, or pairs of start
            and end.

    Raises:
        InputError: The function returned units that are not in the text, or not in order.
        TextError: There are no units.

    Example:
        >>> split_spans("One. Two!", lambda text: ["One.", "Two!"]), split_spans("a b", re.compile("[a-z]"))
        ([(0, 4), (5, 9)], [(0, 1), (2, 3)])
    """
    spans: list[Span] = []
    if isinstance(units, re.Pattern):
        spans = [match.span() for match in units.finditer(text) if match.end() > match.start()]
    else:
        end = 0
        for unit in units(text):
            start, stop = _span(text, unit, end)
            if not end <= start <= stop <= len(text):
                raise InputError(
                    f"features= returned {unit!r}, which is not in the text from character {end} on; it must return "
                    "substrings of the text, or (start, end) pairs, in order and not overlapping."
                )
            end = stop
            if stop > start:
                spans.append((start, stop))
    if not spans:
        raise TextError(f"features= found nothing in the text {text[:40]!r}; there is nothing to explain.")
    return spans


def _span(text: str, unit: Any, start: int) -> Span:
    """Return the span of a splitter's unit; (-1, -1) where the text from ``start`` on does not have it."""
    if isinstance(unit, str):
        place = text.find(unit, start)
        return (place, place + len(unit)) if place >= 0 else (-1, -1)
    if isinstance(unit, (tuple, list)) and len(unit) == 2 and all(isinstance(k, (int, np.integer)) for k in unit):
        return int(unit[0]), int(unit[1])
    raise InputError(
        f"features= must return substrings or (start, end) pairs, but returned {type(unit).__name__}: {unit!r}."
    )
