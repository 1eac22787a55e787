"""What TextAdapter says to texts, tokenizers and models that do not fit, and what truncation leaves."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import (
    ForwardError,
    InputError,
    SelectionError,
    TextError,
    TokenizerError,
    TruncationWarning,
)
from tests.models import text as models
from tests.models.heads import Returns

TOKENIZER = WordTokenizer.fit(models.CORPUS)


@pytest.fixture
def adapter():
    return TextAdapter(models.bert(), models.word_level_tokenizer())


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("", TextError, "empty"),
        (["fine", " \n"], TextError, "text 1 is blank"),
        ([], InputError, "sequence is empty"),
        (3, InputError, "got int"),
        (b"fine", InputError, "got bytes"),
        (["fine", 3], InputError, "item 1 is int"),
        (["fine", None], InputError, "item 1 is NoneType"),
    ],
)
def test_bad_texts(adapter, texts, error, message):
    with pytest.raises(error, match=message):
        adapter.encode(texts)


def test_a_text_without_a_word():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    with pytest.raises(TextError, match=r"no word that matches '.*' that the model sees"):
        adapter.encode("!! ?!", features=re.compile(r"\w+"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(baselines="zero"), "baselines must be 'mask', 'unk', 'pad' or a token id"),
        (dict(baselines=-1), "or a token id, but is -1"),
        (dict(features="sentence"), "features must be 'word', 'token' or a compiled pattern"),
        (dict(features=r"\w+"), r"pass re\.compile"),
    ],
)
def test_bad_options_of_encode(adapter, options, message):
    with pytest.raises(InputError, match=message):
        adapter.encode("a fine film", **options)


def test_words_that_the_tokenizer_drops_are_no_features():
    class Dropping(WordTokenizer):
        def spans(self, text):
            ids, spans = super().spans(text)
            kept = [k for k, (a, b) in enumerate(spans) if text[a:b] != "*"]
            return [ids[k] for k in kept], [spans[k] for k in kept]

    adapter = TextAdapter(models.MaskedMean(), Dropping(TOKENIZER.vocabulary))
    x = adapter.encode("a * fine * film")
    assert x.feature_names == (("a", "fine", "film"),)
    assert x.feature_mask.tolist() == [[0, 1, 2]]
    with pytest.raises(TextError, match="no word that the model sees"):
        adapter.encode("* *")


def test_a_tokenizer_with_more_words_than_the_model_has_embeddings():
    adapter = TextAdapter(models.bert(vocab_size=12), models.word_level_tokenizer())
    for run in (adapter.encode, adapter.predict_proba):
        with pytest.raises(TokenizerError, match="12 embeddings"):
            run("it is not good")


def test_a_tokenizer_that_is_none():
    with pytest.raises(TokenizerError, match="WordTokenizer"):
        TextAdapter(models.bert(), str.split)


def test_a_slow_tokenizer_is_refused_with_what_to_use():
    from transformers import ByT5Tokenizer

    with pytest.raises(TokenizerError, match=r"ByT5Tokenizer is a slow tokenizer.*spans\(text\)"):
        TextAdapter(models.bert(), ByT5Tokenizer())

    class Bytes:
        """A byte is a token: what the message asks for."""

        def spans(self, text):
            ends = [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]
            return [b % 40 for b in text.encode()], ends

    x = TextAdapter(models.MaskedMean(), Bytes()).encode("a naïve film")
    assert x.feature_names[0] == ("a", "naïve", "film")
    assert [len(x.positions(k)) for k in range(3)] == [1, 6, 4]


def test_mixed_lengths_need_a_mask():
    adapter = TextAdapter(models.BagOfWords(70), TOKENIZER)
    with pytest.raises(InputError, match="takes no mask"):
        adapter.encode(["a fine film", "dull"])
    assert adapter.predict_proba(["a fine film", "dull"]).shape == (2, 2)


class NoLogits:
    last_hidden_state = torch.zeros(1, 3, 4)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("text", "returned str"),
        ({"loss": torch.zeros(1)}, "classification head"),
        (NoLogits(), "NoLogits"),
        ((), "returned tuple"),
        (torch.zeros(1, 3, 2), r"shape \(1, 3, 2\)"),
        (torch.zeros(5, 2), r"shape \(5, 2\) for 1 example"),
        (torch.tensor(1.0), r"shape \(\)"),
    ],
)
def test_models_that_return_no_logits(output, message):
    adapter = TextAdapter(Returns(output), TOKENIZER)
    with pytest.raises(ForwardError, match=message):
        adapter.predict_proba("a film")


@pytest.mark.parametrize("wrap", [lambda t: (t, 1), lambda t: [t], lambda t: {"logits": t}, lambda t: t])
def test_outputs_that_hold_logits(wrap):
    logits = torch.tensor([[1.0, 2.0]])
    assert TextAdapter(Returns(wrap(logits)), TOKENIZER).logits("a film").tolist() == [[1.0, 2.0]]


def test_an_exception_in_the_model_leaves_everything_as_it_was():
    model = Returns("text").train()
    with pytest.raises(ForwardError):
        TextAdapter(model, TOKENIZER).predict_proba("a film")
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


class NeedsMore(nn.Module):
    def forward(self, ids, image):
        return ids


class TakesNothing(nn.Module):
    def forward(self):
        return torch.zeros(1)


@pytest.mark.parametrize(("model", "message"), [(NeedsMore(), "'image'"), (TakesNothing(), "no positional")])
def test_models_that_do_not_take_a_text(model, message):
    with pytest.raises(ForwardError, match=message):
        TextAdapter(model, TOKENIZER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_length=0), "max_length"),
        (dict(batch_tokens=-1), "batch_tokens"),
        (dict(forward_names={"mask": "mask"}), "the roles are"),
        (dict(forward_names={"padding_mask": "pad"}), "'pad'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        TextAdapter(models.MaskedMean(), TOKENIZER, **options)


def test_not_a_module():
    with pytest.raises(InputError, match="function"):
        TextAdapter(lambda ids: ids, TOKENIZER)


def test_class_names_must_be_as_many_as_classes():
    adapter = TextAdapter(models.MaskedMean(), TOKENIZER, class_names=["a", "b", "c"])
    with pytest.raises(InputError, match="3 class_names"):
        adapter.predict_proba("a film")


def test_no_embedding_takes_the_ids():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Embedding(70, 2), nn.Embedding(70, 2)

        def forward(self, ids):
            return (self.one(ids + 1) + self.two(ids + 2)).sum(1)

    adapter = TextAdapter(Shifted(), TOKENIZER)
    with pytest.raises(SelectionError, match="none of the 2"):
        _ = adapter.embedding
    assert adapter.predict_proba("a film").shape == (1, 2)
    with pytest.raises(SelectionError, match="has no"):
        _ = TextAdapter(nn.Linear(1, 1), TOKENIZER).embedding


def test_gradient_methods_on_ids_are_told_to_use_the_layer_form(adapter):
    x = adapter.encode("a fine film")
    with pytest.raises(InputError, match="LayerIntegratedGradients"):
        adapter(x.inputs.float(), *x.forward_args)
    with pytest.raises(InputError, match="got 4 tensors"):
        adapter(x.inputs, *x.forward_args, x.inputs, x.inputs)
    with pytest.raises(InputError, match="got str"):
        adapter("a fine film")


def test_no_token_and_nothing_to_stand_for_it():
    adapter = TextAdapter(models.MaskedMean(), WordTokenizer({"film": 0}))
    with pytest.raises(TokenizerError, match="no token"):
        adapter.predict_proba([""])


def test_truncation_says_what_was_cut_and_keeps_the_spans():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer(), max_length=6)
    with pytest.warns(TruncationWarning, match=r"7 tokens and the model takes 6: 1 .* number 5 on \(good") as caught:
        x = adapter.encode("it is not  so good")
    assert len(caught) == 1
    assert x.texts == ("it is not  so",)
    assert x.tokens[0][-1] == "[SEP]"
    assert x.feature_names == (("it", "is", "not", "so"),)
    assert [x.texts[0][w.start : w.end] for w in x.words[0]] == list(x.feature_names[0])
    with pytest.warns(TruncationWarning, match="1 of 2 texts"):
        logits = adapter.logits(["it is not  so good", "dull"])
    np.testing.assert_allclose(logits[0], adapter.logits(x.texts[0])[0], atol=1e-5)


def test_truncation_on_the_left():
    tokenizer = models.word_level_tokenizer()
    tokenizer.truncation_side = "left"
    adapter = TextAdapter(models.bert(), tokenizer, max_length=5)
    with pytest.warns(TruncationWarning, match="all but its last 3 words"):
        x = adapter.encode("it is not so good")
    assert x.texts == ("not so good",)
    assert [x.texts[0][w.start : w.end] for w in x.words[0]] == ["not", "so", "good"]


def test_the_greatest_length_is_the_least_of_all_limits():
    tokenizer = models.word_level_tokenizer()
    assert TextAdapter(models.bert(max_position_embeddings=40), tokenizer).max_length == 40
    assert TextAdapter(models.bert(max_position_embeddings=40), tokenizer, max_length=30).max_length == 30
    tokenizer.model_max_length = 20
    assert TextAdapter(models.bert(max_position_embeddings=40), tokenizer).max_length == 20
    assert TextAdapter(models.MaskedMean(), TOKENIZER).max_length is None
    assert TextAdapter(models.gpt2(), models.byte_bpe_tokenizer()).max_length == 64


def test_robertas_positions_begin_after_its_padding_index():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=12,
        intermediate_size=16, pad_token_id=1,
    )  # fmt: skip
    adapter = TextAdapter(RobertaForSequenceClassification(config).eval(), models.word_level_tokenizer())
    assert adapter.max_length == 10
    with pytest.warns(TruncationWarning):
        x = adapter.encode("good " * 20)
    assert adapter(x.inputs, *x.forward_args).shape == (1, 2)


def test_a_text_of_just_the_greatest_length_is_not_cut():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer(), max_length=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(adapter.encode("a fine film").tokens[0]) == 5


@pytest.mark.parametrize("kind", ["word pieces", "byte pairs"])
def test_a_text_cut_on_the_left_begins_with_a_whole_word_and_stands_for_itself(kind):
    pieces = kind == "word pieces"
    tokenizer = models.word_piece_tokenizer() if pieces else models.byte_bpe_tokenizer()
    tokenizer.truncation_side = "left"
    model = models.bert() if pieces else models.gpt2()
    text = "unbelievably dull, a fine film with unbelievable acting and it isn't bad"
    inside = 0
    for length in range(6, 14):
        adapter = TextAdapter(model, tokenizer, max_length=length)
        with pytest.warns(TruncationWarning):
            x = adapter.encode(text)
        naive = tokenizer.encode(text, truncation=True, max_length=length)
        inside += x.inputs[0].tolist() != naive
        assert x.inputs.shape[1] <= length
        assert text.endswith(x.texts[0])
        assert x.texts[0].split()[0] in (*text.split(), ",")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the text that is left is not cut again
            again = adapter.encode(x.texts[0])
        assert again.inputs.tolist() == x.inputs.tolist()
        assert [(w.text, w.start, w.end) for w in again.words[0]] == [(w.text, w.start, w.end) for w in x.words[0]]
        with pytest.warns(TruncationWarning):
            whole = adapter.predict_proba(text)
        np.testing.assert_allclose(whole, adapter.predict_proba(x.texts[0]), atol=1e-6)
    assert inside  # some lengths cut inside a word
