"""Texts in many scripts: `encode`, LIME, `compare` and `find` have one notion of a word."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from captum_attn_lime import LimeText, compare
from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import TextError
from tests.models import text as models

TEXTS = (
    "这部电影很好看，我喜欢。",
    "iPhone手机 T恤",
    "映画はとても面白い",
    "ดีมาก น้ำ",
    "ភាសាខ្មែរ",
    "한국어 단어",
    "می\u200cخواهم बच्चा cafe\u0301",
    "👩\u200d👧 👍🏽 🇩🇪 1\ufe0f\u20e3",
)
CHARACTERS = ("这", "部", "电", "影", "很", "好", "看", "，", "我", "喜", "欢", "。")


def bert_of_characters(**options):
    from transformers import BertTokenizer

    letters = sorted(set("".join(TEXTS)))
    return BertTokenizer({token: i for i, token in enumerate([*models.SPECIAL, *letters])}, **options)


def byte_pairs():
    """Return a tokenizer whose tokens are bytes of characters, and some that join bytes of two characters."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([*TEXTS], vocab_size=300, min_frequency=1, special_tokens=["<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, pad_token="<pad>", unk_token="<pad>")


def adapter(tokenizer):
    torch.manual_seed(0)
    return TextAdapter(models.bert(vocab_size=max(len(tokenizer), 80)), tokenizer)


TOKENIZERS = (
    bert_of_characters,
    byte_pairs,
    models.word_level_tokenizer,  # one unknown token for a whole sentence
    lambda: WordTokenizer.fit(TEXTS),
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_encode_lime_and_compare_have_the_same_words(tokenizer, text):
    a = adapter(tokenizer())
    x = a.encode(text)
    words = x.words[0]
    assert all(w.text == text[w.start : w.end] for w in words)
    assert all(u.end <= w.start for u, w in itertools.pairwise(words))
    for k, span in enumerate(x.token_spans[0]):
        if span is not None and text[span[1] : span[2]].strip():
            word = words[int(x.feature_mask[0, k])]
            assert word.start < span[2]
            assert span[1] < word.end
    assert set(x.feature_mask[0].tolist()) >= set(range(len(words)))
    found = LimeText(a, features="word", bow=False).explain(text, 1, num_samples=20, num_features=99)
    string = found.domain_mapper.indexed_string
    assert [string.word(k) for k in range(string.num_words())] == list(x.feature_names[0])
    scores = compare({"LIME": found}, x, target=1).scores
    assert scores["LIME"].tolist() == pytest.approx([dict(found.as_map()[1])[k] for k in range(len(words))])


def test_chinese_words_are_characters_or_what_tokens_join():
    assert adapter(bert_of_characters()).encode(TEXTS[0]).feature_names[0] == CHARACTERS
    assert adapter(WordTokenizer.fit(TEXTS)).encode(TEXTS[0]).feature_names[0] == CHARACTERS
    assert adapter(models.word_level_tokenizer()).encode(TEXTS[0]).feature_names[0] == (
        "这部电影很好看",
        "，",
        "我喜欢",
        "。",
    )
    pair = adapter(bert_of_characters()).encode((TEXTS[0], "好 film"), explained_text="second")
    assert pair.feature_names[0] == ("好", "film")
    asked = TextAdapter(models.bert(), bert_of_characters()).encode("电影 好", features=re.compile(r"\w+"))
    assert asked.feature_names[0] == ("电影", "好")


@pytest.mark.parametrize(("side", "seen"), [("right", "这部电"), ("left", "喜欢。")])
def test_chinese_texts_are_cut_between_characters(side, seen):
    a = TextAdapter(models.bert(), bert_of_characters(truncation_side=side), max_length=5)
    with pytest.warns(UserWarning, match="9 tokens were cut"):
        x = a.encode(TEXTS[0])
    assert x.texts == (seen,)
    assert x.feature_names[0] == tuple(seen)


def test_find_in_chinese_and_among_signs():
    x = adapter(bert_of_characters()).encode(TEXTS[0])
    assert [x.tokens[0][k] for k in x.find("电影")] == ["电", "影"]
    assert [x.tokens[0][k] for k in x.find("喜欢。")] == ["喜", "欢", "。"]
    y = adapter(models.word_level_tokenizer()).encode("good film! the film's end")
    assert [y.tokens[0][k] for k in y.find("!")] == ["!"]
    assert y.find("film", occurrence=1)
    assert y.find("film's end")
    with pytest.raises(TextError, match="'fil' is 0 times"):
        y.find("fil")
