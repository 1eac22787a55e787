"""A NUL character in a text moves no spans: lime's numpy strings end before it."""

from __future__ import annotations

import pytest
import torch
from lime.lime_text import LimeTextExplainer
from torch import nn

from captum_attn_lime import LimeText, TextAdapter, WordTokenizer
from captum_attn_lime.errors import TextError
from captum_attn_lime.lime import explanation_spans, token_weights, word_weights

pytestmark = pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.LimeWarning")
NUMBERS = {"good": 1.0, "bad": -3.0, "film": 0.5}
TEXTS = ["good \0bad film", "good\0 bad\0\0film", "\0good bad film", "good bad\0film\0", "good, \0\0, bad film"]


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.tensor([0.0, 0.0, *NUMBERS.values()])[:, None])

    def forward(self, input_ids):
        z = self.table(input_ids).sum(1)
        return torch.cat([-z, z], dim=1)


@pytest.fixture
def adapter():
    return TextAdapter(Critic(), WordTokenizer({"<pad>": 0, "<unk>": 1, **{w: k + 2 for k, w in enumerate(NUMBERS)}}))


def check(text, spans):
    found = {text[start:end].strip("\0, "): weight for start, end, weight in spans}
    assert {word: found[word] for word in NUMBERS} == pytest.approx(NUMBERS, abs=0.25)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("options", [{}, {"bow": False}, {"features": "word"}, {"removal": "mask"}])
def test_spans_and_weights(adapter, text, options):
    explanation = LimeText(adapter, **options).explain(text, 1, output="logits", num_samples=500)
    check(text, explanation_spans(explanation))
    encoding = adapter.encode(text)
    words = encoding.words[0]
    weights = word_weights(explanation, words)
    assert {w.text: float(x) for w, x in zip(words, weights, strict=True) if w.text in NUMBERS} == pytest.approx(
        NUMBERS, abs=0.25
    )
    assert float(token_weights(explanation, encoding).nansum()) == pytest.approx(sum(NUMBERS.values()), abs=0.25)
    string = explanation.domain_mapper.indexed_string
    for k in range(string.num_words()):
        assert all(text[int(p) :].startswith(string.word(k)) for p in string.string_position(k))
    shown = dict(explanation.as_list())
    assert {word: shown[word] for word in NUMBERS} == pytest.approx(NUMBERS, abs=0.25)


@pytest.mark.parametrize("text", TEXTS)
def test_an_official_explanation(adapter, text):
    explanation = LimeTextExplainer(random_state=0).explain_instance(text, adapter.logits, num_samples=500)
    check(text, explanation_spans(explanation))


@pytest.mark.parametrize("split", [r"\s+", str.split, " "])
def test_words_that_lime_would_cut_are_refused(adapter, split):
    with pytest.raises(TextError, match="NUL"):
        LimeText(adapter, split_expression=split).explain("good bad\0 film", 1)
    with pytest.raises(TextError, match="NUL"):
        LimeText(adapter, split_expression=split).explain("good \0\0 film", 1)
    fine = LimeText(adapter, split_expression=split).explain("good \0bad film", 1, output="logits", num_samples=500)
    check("good \0bad film", explanation_spans(fine))
