"""Explanations read as weights, spans and words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lime.explanation import Explanation
from lime.lime_text import IndexedCharacters, IndexedString, TextDomainMapper

from captum_attn_lime.adapters import Word
from captum_attn_lime.adapters.text._words import find_words
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime import (
    explanation_prediction,
    explanation_score,
    explanation_spans,
    explanation_weights,
    safe_html,
    token_weights,
    word_weights,
)


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


# ---------------------------------------------------------------- tokens, scores, HTML


def token_encoding(text: str):
    from captum_attn_lime.adapters import TextAdapter
    from tests.models import heads

    model = heads.hugging_face("BertForSequenceClassification")
    return TextAdapter(model, heads.bert_tokenizer()).encode(text)


def test_weights_go_to_tokens():
    text = "unbelievably bad, bad"
    x = token_encoding(text)
    pieces = [k for k, s in enumerate(x.token_spans[0]) if s is not None and s[1] < 12]
    assert len(pieces) > 1
    comma, first, second = (x.tokens[0].index(","), *[k for k, t in enumerate(x.tokens[0]) if t == "bad"])
    found = explanation(text, {1: [(0, 12.0), (1, 6.0)]})
    split, broadcast, front = (token_weights(found, x, share=how) for how in ("split", "broadcast", "first"))
    lengths = [x.token_spans[0][k][2] - x.token_spans[0][k][1] for k in pieces]
    assert split[pieces].tolist() == pytest.approx([float(n) for n in lengths])  # 12 over 12 characters
    assert front[pieces].tolist() == [12.0] + [0.0] * (len(pieces) - 1)
    assert broadcast[pieces].tolist() == [12.0] * len(pieces)
    assert [float(w[k]) for w in (split, front, broadcast) for k in (first, second)] == [3.0, 3.0, 3.0, 3.0, 6.0, 6.0]
    assert [k for k, w in enumerate(split) if math.isnan(w)] == [0, comma, len(split) - 1]  # [CLS] , [SEP]
    assert float(split.nansum()) == float(front.nansum()) == pytest.approx(18.0)
    words = word_weights(found, x.words[0], share="broadcast")
    assert words[[0, 1, 3]].tolist() == [12.0, 6.0, 6.0]
    with pytest.raises(InputError, match="share must be"):
        token_weights(found, x, share="all")
    with pytest.raises(InputError, match="encode the explained text alone"):
        token_weights(found, token_encoding("bad"))


def test_scores_of_both_limes():
    found = explanation("a b", {1: [(0, 1.0)]}, scores=0.25)
    found.local_pred = np.array([0.5])
    assert (explanation_score(found), explanation_prediction(found)) == (0.25, 0.5)
    newer = explanation("a b", {0: [(0, 1.0)], 1: [(0, 1.0)]}, scores={0: 0.1, 1: 0.25})
    newer.local_pred = {0: np.array([0.3]), 1: np.array([0.5])}
    assert (explanation_score(newer, 1), explanation_prediction(newer, 1)) == (0.25, 0.5)
    with pytest.raises(TargetError):
        explanation_score(newer)


def test_html_is_escaped():
    text = "good</script><script>alert(1)</script>"
    string = IndexedString(text, split_expression=lambda t: [t[:13], t[13:]])
    found = explanation(text, {1: [(0, 1.0), (1, -1.0)]}, string=string)
    found.class_names = ["a", "<b>&</script>"]
    found.predict_proba = np.array([0.3, 0.7])
    page = safe_html(found)
    own = page[page.index("</script></head>") :]
    assert own.count("<script") == 1
    assert own.count("</script>") == 2  # of the library, and of lime's own script
    assert "alert(1)\\u003c/script\\u003e" in own
    assert "\\u003cb\\u003e\\u0026" in own
    assert "show_raw_text" in own


def test_limetexts_explanations_show_themselves(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    from captum_attn_lime.adapters import TextAdapter
    from captum_attn_lime.lime import LimeText
    from tests.models import heads

    adapter = TextAdapter(heads.hugging_face("BertForSequenceClassification"), heads.bert_tokenizer())
    found = LimeText(adapter, class_names=["<i>", "b"]).explain("a good film", 1, num_samples=10)
    assert isinstance(found, Explanation)
    for page in (found._repr_html_(), safe_html(found)):
        assert "<i>" not in page[page.index("</script></head>") :]
    found.save_to_file(str(tmp_path / "page.html"))
    assert "good" in (tmp_path / "page.html").read_text(encoding="utf8")
    shown: list = []
    display = ModuleType("IPython.display")
    display.HTML, display.display = lambda page: page, shown.append
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    found.show_in_notebook()
    assert "good" in shown[0]
