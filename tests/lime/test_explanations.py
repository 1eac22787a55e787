"""Explanations read as weights, spans and words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lime.explanation import Explanation
from lime.lime_text import IndexedCharacters, IndexedString, TextDomainMapper

from captum_attn_lime.adapters import Word
from captum_attn_lime.adapters.words import find_words
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime import explanation_spans, explanation_weights, word_weights


def explanation(text: str, weights: dict, *, scores=0.5, string=None, mode="classification", **options) -> Explanation:
    string = IndexedString(text, **options) if string is None else string
    out = Explanation(TextDomainMapper(string), mode=mode, class_names=["a", "b", "c"])
    out.local_exp = {label: [(np.int64(k), np.float64(w)) for k, w in pairs] for label, pairs in weights.items()}
    out.score = scores
    return out


@pytest.mark.parametrize("scores", [0.5, {1: 0.5}])  # the two lime APIs of one version number
def test_weights_of_the_only_class_or_the_named_one(scores):
    one = explanation("a b", {np.int64(1): [(1, -2.0), (0, 1.0)]}, scores=scores)
    assert explanation_weights(one) == explanation_weights(one, 1) == {0: 1.0, 1: -2.0}
    two = explanation("a b", {0: [(0, 1.0)], 2: [(0, 3.0)]})
    assert explanation_weights(two, 2) == {0: 3.0}
    with pytest.raises(TargetError, match=r"\[0, 2\]; pass label"):
        explanation_weights(two)
    with pytest.raises(TargetError, match="class 1 was not explained"):
        explanation_weights(two, 1)


def test_regression_has_one_answer():
    found = explanation("a", {0: [(0, -1.0)], 1: [(0, 1.0)]}, mode="regression")
    assert explanation_weights(found) == explanation_weights(found, 0) == {0: 1.0}


def test_a_bag_of_words_weight_is_divided_over_the_occurrences():
    found = explanation("good, not good", {1: [(0, 3.0), (1, -1.0)]})
    assert explanation_spans(found) == [(0, 4, 1.5), (6, 9, -1.0), (10, 14, 1.5)]
    in_place = explanation("good, not good", {1: [(0, 3.0), (2, 5.0)]}, bow=False)
    assert explanation_spans(in_place) == [(0, 4, 3.0), (6, 9, 0.0), (10, 14, 5.0)]


def test_characters_are_units_too():
    found = explanation("aba", {1: [(0, 4.0), (1, 1.0)]}, string=IndexedCharacters("aba"))
    assert explanation_spans(found) == [(0, 1, 2.0), (1, 2, 1.0), (2, 3, 2.0)]


def test_words_take_what_falls_on_them_and_punctuation_has_nothing():
    text = "isn't bad, bad"
    found = explanation(text, {1: [(0, 3.0), (1, 1.0), (2, 4.0)]})  # isn, t, bad
    weights = word_weights(found, find_words(text)).tolist()
    assert weights[:2] == [4.0, 2.0]  # isn + t; half of bad
    assert math.isnan(weights[2])
    assert weights[3] == 2.0


def test_a_unit_over_two_words_is_shared_by_characters():
    found = explanation("abc def", {1: [(0, 6.0)]}, split_expression="z")
    words = (Word("abc", 0, 3), Word("def", 4, 7))
    assert word_weights(found, words).tolist() == pytest.approx([6 * 3 / 7, 6 * 3 / 7])


def test_the_sum_over_words_is_the_sum_over_units():
    text = "don't do what I don't do"
    found = explanation(text, {1: [(k, float(k + 1)) for k in range(IndexedString(text).num_words())]})
    total = sum(explanation_weights(found).values())
    assert float(word_weights(found, find_words(text)).sum()) == pytest.approx(total)


def test_what_is_no_explanation_of_a_text():
    with pytest.raises(InputError, match="dict without local_exp"):
        explanation_weights({})
    rows = Explanation(object())
    rows.local_exp = {1: [(0, 1.0)]}
    with pytest.raises(InputError, match="explanation_weights"):
        explanation_spans(rows)
