"""Words, spans and the assignment of tokens to words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.adapters.batches import batches
from captum_attn_lime.adapters.words import Word, find_words, word_of_tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It isn't bad, it’s good.", ["It", "isn't", "bad", ",", "it’s", "good", "."]),
        ("'quoted' rock'n'roll", ["'", "quoted", "'", "rock'n'roll"]),
        ("café e\u0301te\u0301!", ["café", "e\u0301te\u0301", "!"]),  # precomposed, and letters with combining accents
        ("अच्छा है", ["अच्छा", "है"]),
        ("好 😀x", ["好", "😀", "x"]),
        ("  \n", []),
    ],
)
def test_find_words(text, words):
    found = find_words(text)
    assert [w.text for w in found] == words
    assert all(text[w.start : w.end] == w.text for w in found)


@given(st.text(max_size=60))
def test_words_are_in_order_and_cover_every_character_that_is_no_space(text):
    words = find_words(text)
    covered = [i for w in words for i in range(w.start, w.end)]
    assert covered == sorted(set(covered))
    # Marks are joined to what stands before them, so only spaces may be left out.
    assert all(text[i].isspace() for i in set(range(len(text))) - set(covered))


def test_a_token_belongs_to_the_word_it_overlaps_most():
    words = (Word("ab", 0, 2), Word("cdef", 2, 6), Word("g", 7, 8))
    spans = [(0, 1), (1, 6), (1, 3), (5, 8), (6, 7), (3, 3), None, (6, 8)]
    assert word_of_tokens(spans, words) == [0, 1, 0, 1, None, None, None, 2]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=12), st.text("ab ,", max_size=35))
def test_word_of_tokens_agrees_with_counting_characters(spans, text):
    words = find_words(text)
    spans = [(a, a + n) for a, n in spans]
    slow = []
    for a, b in spans:
        counts = [len(set(range(a, b)) & set(range(w.start, w.end))) for w in words]
        slow.append(counts.index(max(counts)) if counts and max(counts) else None)
    assert word_of_tokens(spans, words) == slow


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.booleans())
def test_batches_hold_every_example_once_within_the_budget(lengths, budget, exact):
    found = batches(lengths, budget, exact=exact)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[i] for i in batch]
        assert len(batch) == 1 or max(sizes) * len(batch) <= budget
        assert not exact or len(set(sizes)) == 1
