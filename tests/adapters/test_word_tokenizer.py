"""WordTokenizer: ids, spans, vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.adapters import WordTokenizer
from captum_attn_lime.errors import TokenizerError


def test_fit_orders_by_frequency_then_by_letter():
    tokenizer = WordTokenizer.fit(["b b A", "a c"])
    assert tokenizer.vocabulary == {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3, "c": 4}
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, len(tokenizer)) == (0, 1, 5)
    assert WordTokenizer.fit(["b b A", "a c"], max_size=3).vocabulary == {"<pad>": 0, "<unk>": 1, "a": 2}
    assert WordTokenizer.fit(["A a"], lower=False).encode("a A b") == [3, 2, 1]


@given(st.text("abC ,.'", max_size=30))
def test_spans_are_the_words_of_the_ids(text):
    tokenizer = WordTokenizer.fit([text])
    ids, spans = tokenizer.spans(text)
    assert tokenizer.convert_ids_to_tokens(ids) == [text[a:b].lower() for a, b in spans]
    assert 1 not in ids


def test_unknown_words_without_an_unknown_token():
    with pytest.raises(TokenizerError, match="'dull' is not in the vocabulary"):
        WordTokenizer({"film": 0}).encode("dull film")


@pytest.mark.parametrize("vocabulary", [{}, {"a": -1}, {"a": "b"}])
def test_bad_vocabularies(vocabulary):
    with pytest.raises(TokenizerError):
        WordTokenizer(vocabulary)
