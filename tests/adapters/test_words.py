"""Words, spans and the assignment of tokens to words."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.adapters.text._rows import batches
from captum_attn_lime.adapters.text._words import Word, find_phrase, find_words, word_of_tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It isn't bad, it’s good.", ["It", "isn't", "bad", ",", "it’s", "good", "."]),
        ("'quoted' rock'n'roll", ["'", "quoted", "'", "rock'n'roll"]),
        ("café e\u0301te\u0301!", ["café", "e\u0301te\u0301", "!"]),  # precomposed, and letters with combining accents
        ("अच्छा है", ["अच्छा", "है"]),
        ("好 😀x", ["好", "😀", "x"]),
        ("  \n", []),
        # Scripts without spaces: every character, with what belongs to it.
        ("电影很好。", ["电", "影", "很", "好", "。"]),
        ("iPhone手机 T恤", ["iPhone", "手", "机", "T", "恤"]),
        ("\U00020000\U00030000々〇", ["\U00020000", "\U00030000", "々", "〇"]),
        ("ﾊﾟか\u3099コー", ["ﾊﾟ", "か\u3099", "コ", "ー"]),
        ("น้ำดี ๑๒ ภาษา", ["น้ำ", "ดี", "๑๒", "ภ", "า", "ษ", "า"]),
        ("ខ្មែរ\u200bက္က", ["ខ្មែ", "រ", "က္က"]),
        ("ລາວ ꦲꦏ꧀ꦱ ཀྲ་", ["ລ", "າ", "ວ", "ꦲ", "ꦏ꧀ꦱ", "ཀྲ", "་"]),
        # Korean has spaces, composed and decomposed.
        ("한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8", ["한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8"]),
        # What is seen as one character.
        ("👩\u200d👩\u200d👧👍🏽🇩🇪🇫🇷", ["👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "🇫🇷"]),
        (
            "1\ufe0f\u20e3a2\u20e3 #\ufe0f\u20e3 ❤\ufe0f!",
            ["1\ufe0f\u20e3", "a", "2\u20e3", "#\ufe0f\u20e3", "❤\ufe0f", "!"],
        ),
        (
            "🏴\U000e0067\U000e0062\U000e007f 🏳\ufe0f\u200d🌈🙂",
            ["🏴\U000e0067\U000e0062\U000e007f", "🏳\ufe0f\u200d🌈", "🙂"],
        ),
        # What is not seen, or stands inside a word.
        ("می\u200cخواهم بِکُن", ["می\u200cخواهم", "بِکُن"]),
        ("Donau\u00addampf \u200fשלום\u200e, a\u2060b", ["Donau\u00addampf", "\u200fשלום\u200e", ",", "a\u2060b"]),
        ("don‘t don＇t donʼt l·l צה״ל", ["don‘t", "don＇t", "donʼt", "l·l", "צה״ל"]),
        ("தமிழ் ２０２４年ＡＢ 3.14 x_1²", ["தமிழ்", "２０２４", "年", "ＡＢ", "3", ".", "14", "x_1²"]),
        ("\u0301a \u0301 \u200d", ["\u0301a", "\u0301", "\u200d"]),
        ("a\u200bb\u200b", ["a", "b"]),
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
    assert all(text[i].isspace() or text[i] == "\u200b" for i in set(range(len(text))) - set(covered))


@given(
    st.text("a1é电影แำั😀\u0301\u200d\u20e3🇩'. ", max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4))),
)
def test_tokens_join_characters_and_cut_nothing_else(text, spans):
    tokens = [(a, min(a + n, len(text))) for a, n in spans if a < len(text)]
    fine, coarse, found = find_words(text), find_words(text, tokens=()), find_words(text, tokens=tokens)
    edges = [{k for w in words for k in (w.start, w.end)} for words in (coarse, found, fine)]
    assert edges[0] <= edges[1] <= edges[2]
    for k in edges[1] - edges[0]:
        assert any(a == k < b for a, b in tokens)
        assert not any(a < k < b for a, b in tokens)
    assert sum(w.end - w.start for w in found) == sum(w.end - w.start for w in fine)


def test_scripts_without_spaces_are_cut_where_tokens_begin():
    def words(text, tokens):
        return [w.text for w in find_words(text, tokens=tokens)]

    assert words("very 电影 फिल्म", [(0, 4), (5, 6), (6, 7), (8, 10), (10, 13)]) == ["very", "电", "影", "फिल्म"]
    assert words("很电影 isn't", [None, (0, 1), (1, 3), (4, 7), (7, 8)]) == ["很", "电影", "isn't"]
    assert words("电影院", [(0, 2), (0, 2), (1, 3)]) == ["电影院"]  # overlapping tokens, as bytes make them
    assert words("电影院", [(0, 1)] * 3 + [(1, 2)] * 3 + [(2, 3)] * 3) == ["电", "影", "院"]
    assert words("น้ำดี", [(0, 1), (1, 3), (3, 5)]) == ["น้ำ", "ดี"]  # not inside a character
    assert words("iPhone手机", [(0, 7), (7, 8)]) == ["iPhone手", "机"]
    assert [w.text for w in find_words("电影", r"\w+", tokens=[(0, 1), (1, 2)])] == ["电影"]  # the user's pattern


def test_phrases_are_whole_words():
    assert find_phrase("这部电影很好，电影", "电影") == [(2, 4), (7, 9)]
    assert find_phrase("hats that hat's hat!", "hat") == [(10, 13), (16, 19)]
    assert find_phrase("ba a a", "a a") == [(3, 6)]
    assert find_phrase("cafe\u0301, cafe", "cafe") == [(7, 11)]
    assert find_phrase("isn't it? good!", "good!") == [(10, 15)]
    assert find_phrase("haha 哈哈哈", "哈哈") == [(5, 7)]
    assert find_phrase("a", "") == []


def test_long_texts_take_time_in_proportion():
    def seconds(n):
        text = "the film isn't bad 电影很好看 " * n
        start = perf_counter()
        words = find_words(text)
        find_words(text, tokens=[(w.start, w.end) for w in words])
        return perf_counter() - start

    seconds(10)
    assert seconds(8000) < 30 * seconds(800)  # ten times as long; the square would be a hundred times


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
