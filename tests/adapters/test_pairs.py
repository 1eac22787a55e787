"""TextAdapter on pairs of texts: the tokenizer's ids, the bare model's numbers, one segment explained at a time."""

from __future__ import annotations

import re
import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.adapters.text._pairs import shares
from captum_attn_lime.errors import InputError, TextError, TokenizerError, TruncationWarning
from captum_attn_lime.lime import LimeText
from tests.models import heads
from tests.models import text as models
from tests.models.heads import hugging_face

PAIRS = [
    ("a fine film", "it isn't bad; it is not good"),
    ("it is long", "a dull cast"),
    ("unbelievably bad", "good good film, a fine one and not a bad one"),
]


class PairReader(nn.Module):
    """Compares the words before the separator (id 2) with those after it."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.word = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids) if mask is None else mask
        second = (ids == 2).cumsum(1).clamp(max=1)
        one, two = ((self.word(ids) * (part * mask).unsqueeze(2)).sum(1) for part in (1 - second, second))
        return self.head(torch.tanh(one * two))


FAMILIES = {
    "bert": (lambda: hugging_face("BertForSequenceClassification", num_labels=3), heads.bert_tokenizer),
    "roberta": (lambda: hugging_face("RobertaForSequenceClassification", num_labels=3), heads.roberta_tokenizer),
    "bert_spans": (lambda: hugging_face("BertForQuestionAnswering"), heads.bert_tokenizer),
    "distilbert_spans": (lambda: hugging_face("DistilBertForQuestionAnswering"), heads.bert_tokenizer),
    "bart": (lambda: hugging_face("BartForSequenceClassification"), heads.closing_tokenizer),
    "t5": (lambda: hugging_face("T5ForSequenceClassification"), heads.closing_tokenizer),
    "by_hand": (lambda: PairReader(70), heads.words),
}
CLASSIFIERS = [name for name in FAMILIES if not name.endswith("spans")]


def make(name: str, **options) -> TextAdapter:
    model, tokenizer = FAMILIES[name]
    torch.manual_seed(3)
    return TextAdapter(model().eval(), tokenizer(), **options)


def bare(adapter: TextAdapter, pair) -> torch.Tensor:
    """The oracle: one pair, tokenised by its own tokenizer, without a batch."""
    if isinstance(adapter.tokenizer, WordTokenizer):
        first, second = (adapter.tokenizer.encode(text) for text in pair)
        arguments = {"ids": torch.tensor([[*first, 2, *second]])}
    else:
        # a list of one: without it, a pair with an empty second text would be tokenised as a single text
        arguments = dict(adapter.tokenizer([pair[0]], [pair[1]], return_tensors="pt"))
        if adapter._binding.types is None:
            arguments.pop("token_type_ids", None)
    with torch.no_grad():
        out = adapter.model(**arguments)
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], dim=2)[0]
    return getattr(out, "logits", out)[0]


def find_names(text: str) -> list[str]:
    return text.replace(",", " ,").split()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_pairs_gives_what_each_pair_gets_alone(name):
    adapter = make(name)
    x = adapter.encode(PAIRS)
    assert x.texts == tuple(PAIRS)
    with torch.no_grad():
        found = adapter(x.inputs, *x.forward_args)
    for i, pair in enumerate(PAIRS):
        expected = bare(adapter, pair)
        row = found[i, : len(expected)] if adapter.task == "spans" else found[i]
        torch.testing.assert_close(row, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_of_pairs(name):
    adapter = make(name, batch_tokens=40)
    pairs = [*PAIRS, PAIRS[0], PAIRS[0][::-1], ("", "a fine film"), ("a fine film", "")]
    found = adapter.predict_proba(pairs)
    expected = torch.stack([bare(adapter, pair) for pair in pairs]).double().softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_array_equal(found[0], found[3])
    assert np.abs(found[0] - found[4]).max() > 1e-4 or name == "by_hand"  # which text is first matters
    np.testing.assert_allclose(adapter.predict_proba(PAIRS[0]), found[:1], atol=1e-6)  # a tuple of two is one pair


def test_one_sequence_of_ids_may_be_two_pairs():
    # "a" + "fine film" and "a fine" + "film" have the same ids here, and other types.
    class Joined(WordTokenizer):
        model_input_names = ("input_ids", "token_type_ids")
        is_fast = True

        def __call__(self, first, second=None, **options):
            rows = list(zip(first, second, strict=True)) if isinstance(first, list) else [(first, second)]
            ids = [[i for text in row for i in self.encode(text)] for row in rows]
            types = [[k for k, text in enumerate(row) for _ in self.encode(text)] for row in rows]
            return {"input_ids": ids, "token_type_ids": types}

    class Typed(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.kind = nn.Embedding(70, 2), nn.Embedding(2, 2)

        def forward(self, ids, token_type_ids):
            return (self.word(ids) * self.kind(token_type_ids)).sum(1)

    adapter = TextAdapter(Typed(), Joined.fit(models.CORPUS))
    one, two = adapter.logits([("a", "fine film"), ("a fine", "film")])
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_ids_types_words_and_segments(name):
    adapter = make(name)
    first, second = PAIRS[2]
    x = adapter.encode(PAIRS[2])
    given = adapter.tokenizer(first, second)
    assert x.inputs[0].tolist() == given["input_ids"]
    assert [a[0].tolist() for a in x.forward_args] == [
        given[key] for key in ("attention_mask", "token_type_ids") if key in given
    ]
    assert x.feature_names[0] == ("unbelievably", "bad", *find_names(second))
    assert x.text_indices[0] == (0, 0, *[1] * 12)
    for word, segment in zip(x.words[0], x.text_indices[0], strict=True):
        assert x.texts[0][segment][word.start : word.end] == word.text
    special = [k for k, token in enumerate(x.tokens[0]) if token in ("[CLS]", "[SEP]", "<s>", "</s>", "Ġ")]
    assert (x.feature_mask[0] == 14).nonzero().flatten().tolist() == special
    assert x.baselines[0, special].tolist() == x.inputs[0, special].tolist()
    rest = [k for k in range(x.inputs.shape[1]) if k not in special]
    assert (x.baselines[0, rest] == adapter.tokenizer.mask_token_id).all()


@pytest.mark.parametrize("name", ["bert", "roberta", "by_hand", "t5"])
def test_one_text_of_a_pair_is_explained_while_the_other_stays(name):
    adapter = make(name)
    both = adapter.encode(PAIRS[:2])
    for k, name in enumerate(("first", "second")):
        x = adapter.encode(PAIRS[:2], explained_text=name)
        assert x.inputs.tolist() == both.inputs.tolist()
        for i in range(2):
            own = [w.text for w, of in zip(both.words[i], both.text_indices[i], strict=True) if of == k]
            assert x.feature_names[i] == tuple(own)
            assert set(x.text_indices[i]) == {k}
        is_other = torch.tensor([[s is not None and s[0] != k for s in row] for row in x.token_spans])
        is_own = torch.tensor([[s is not None and s[0] == k for s in row] for row in x.token_spans])
        is_own &= torch.tensor([[token != "Ġ" for token in row] for row in x.tokens])  # a space of its own is no word
        assert (x.feature_mask == x.feature_mask.max())[is_other].all()
        assert torch.equal(x.baselines[~is_own], x.inputs[~is_own])
        assert (x.baselines[is_own] != x.inputs[is_own]).all()
        ablation, lime = captum.attr.FeatureAblation(adapter), LimeText(adapter)
        for method, options in ((ablation, {}), (lime, dict(n_samples=40))):
            out = method.attribute(**x.arguments(method), target=1, **options)
            assert (out[~is_own] == 0).all()
            assert (out[is_own] != 0).any(), method
        ig = captum.attr.LayerIntegratedGradients(adapter, adapter.embedding)
        out = ig.attribute(**x.arguments(ig), target=1, n_steps=8)
        assert out[is_own].abs().sum() > 0


def test_ablation_of_one_text_is_the_bare_models_difference():
    adapter = make("bert")
    first, second = "a fine film", "dull"
    x = adapter.encode((first, second), explained_text="first")
    ablation = captum.attr.FeatureAblation(adapter)
    found = ablation.attribute(**x.arguments(ablation), target=2)[0]
    whole = bare(adapter, (first, second))[2]
    for k, without in enumerate(["[MASK] fine film", "a [MASK] film", "a fine [MASK]"]):
        difference = whole - bare(adapter, (without, second))[2]
        torch.testing.assert_close(
            found[list(x.positions(k))], difference.expand(len(x.positions(k))), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", ["bert_spans", "distilbert_spans"])
def test_an_answer_in_the_context_explained_by_the_question(name):
    adapter = make(name)
    question, context = "is a good film long", "it is a dull film, and a fine cast"
    x = adapter.encode((question, context), explained_text="first")
    (position, *_) = x.find("film", in_text="second")
    assert x.find("film") == x.positions(3)
    assert x.find("film", occurrence=1) == x.find("film", in_text="second")
    assert adapter.tokenizer.decode(x.inputs[0, position]) == "film"
    assert x.token_spans[0][position] == (1, 13, 17)
    out = bare(adapter, (question, context))
    ablation = captum.attr.FeatureAblation(adapter)
    found = ablation.attribute(**x.arguments(ablation), target=(position, 1))[0]
    changed = bare(adapter, (question.replace("good", "[MASK]"), context))
    expected = out[position, 1] - changed[position, 1]
    torch.testing.assert_close(found[x.find("good")[0]], expected, atol=1e-4, rtol=0)
    ig = captum.attr.LayerIntegratedGradients(adapter, adapter.embedding)
    total = ig.attribute(**x.arguments(ig), target=(position, 1), n_steps=200).sum()
    with torch.no_grad():
        gap = out[position, 1] - adapter(x.baselines, *x.forward_args)[0, position, 1]
    torch.testing.assert_close(total.float(), gap, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("name", "side"),
    [("bert", "right"), ("bert", "left"), ("roberta", "right"), ("roberta", "left"), ("by_hand", "right")],
)
def test_a_pair_that_is_too_long(name, side):
    first, second = "a fine film", "good good film, unbelievably good acting and it isn't bad; it is not good"
    uncut = make(name).encode((first, second))
    whole = uncut.inputs.shape[1]
    for length in range(whole - 1, whole - 11, -1):
        adapter = make(name, max_length=length)
        if name != "by_hand":
            adapter.tokenizer.truncation_side = side
        with pytest.warns(TruncationWarning, match=rf"pair 0 has {whole} tokens .* {length}: .* second text") as caught:
            x = adapter.encode((first, second))
        assert len(caught) == 1
        assert x.inputs.shape[1] <= length
        assert x.texts[0][0] == first
        assert (second.startswith if side == "right" else second.endswith)(x.texts[0][1])
        assert 0 < len(x.texts[0][1]) < len(second)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what is left is not cut again
            again = adapter.encode(x.texts[0])
            alone = adapter.logits(x.texts[0])
        assert again.inputs.tolist() == x.inputs.tolist()
        assert again.words == x.words
        with pytest.warns(TruncationWarning, match="1 of 2 texts"):
            found = adapter.logits([(first, second), ("a", "film")])
        np.testing.assert_allclose(found[:1], alone, atol=1e-5)
    assert x.words[0][0].text == "a"


def test_both_texts_of_a_pair_are_cut_where_both_are_long():
    adapter = make("bert", max_length=9)
    with pytest.warns(TruncationWarning, match=r"the words of the first text from number 4 on \(good .*the second"):
        x = adapter.encode(("good good film good good", "dull film and dull cast"))
    assert x.texts == (("good good film", "dull film and"),)
    for length in (4, 3, 2):
        for run in ("encode", "predict_proba"):
            with pytest.raises(TextError, match=r"5 and 5 tokens"):
                getattr(make("bert", max_length=length), run)(("good good film good good", "dull film and dull cast"))
    with pytest.warns(TruncationWarning):  # an empty text has nothing to lose
        assert make("bert", max_length=5).predict_proba(("", "dull film and dull cast")).shape == (1, 3)


@pytest.mark.parametrize("sizes", [(3, 9), (9, 3), (8, 9), (9, 9), (1, 20), (20, 1)])
def test_shares_are_those_of_the_official_truncation(sizes):
    tokenizer = models.word_level_tokenizer(special=False)
    for room in range(2, sum(sizes)):
        kept = tokenizer("a " * sizes[0], "film " * sizes[1], truncation="longest_first", max_length=room)["input_ids"]
        film, a = (tokenizer.convert_tokens_to_ids(t) for t in ("film", "a"))
        found = shares(*sizes, room)
        assert sum(found) == room
        assert abs(found[0] - kept.count(a)) <= 1  # which of two equal ones gives way is a matter of taste
        assert abs(found[1] - kept.count(film)) <= 1


def test_words_by_hand_with_a_separator():
    tokenizer = WordTokenizer.fit(["a fine film"], separator="<sep>")
    assert tokenizer.sep_token_id == 2
    x = TextAdapter(PairReader(20), tokenizer).encode(("a film", "fine"))
    assert x.inputs.tolist() == [[*tokenizer.encode("a film"), 2, *tokenizer.encode("fine")]]
    assert x.feature_mask.tolist() == [[0, 1, 3, 2]]
    without = TextAdapter(PairReader(20), WordTokenizer.fit(["a fine film"]))
    for run in (without.encode, without.predict_proba):
        with pytest.raises(TokenizerError, match="separator='<sep>'"):
            run(("a film", "fine"))


@pytest.mark.parametrize(
    ("raw", "options", "error", "message"),
    [
        (("a", "b", "c"), {}, InputError, "a tuple of two texts is a pair, but this tuple holds str, str, str"),
        (("a",), {}, InputError, "pass several texts or pairs as a list"),
        (("a", 3), {}, InputError, "holds str, int"),
        ([("a", "b"), "c"], {}, InputError, "item 0 and item 1 are a single text and a pair"),
        ([["a", "b"]], {}, InputError, "item 0 is list.*tuple of two str"),
        (("fine", " "), {}, TextError, "the second text of pair 0 is blank"),
        ([("fine", "film"), ("", "film")], {}, TextError, "the first text of pair 1 is empty"),
        (("fine", "film"), dict(explained_text="third"), InputError, "'both', 'first', 'second'.*'third'"),
        ("fine", dict(explained_text="first"), InputError, "these are single texts"),
        (
            ("fine", "!!"),
            dict(explained_text="second", features=re.compile(r"\w+")),
            TextError,
            "no word that matches",
        ),
    ],
)
def test_bad_pairs(raw, options, error, message):
    adapter = TextAdapter(models.bert(), heads.bert_tokenizer())
    with pytest.raises(error, match=message):
        adapter.encode(raw, **options)


def test_a_language_model_continues_one_text():
    adapter = heads.CASES["gpt2_next"].adapter()
    for run in (adapter.encode, adapter.predict_proba):
        with pytest.raises(InputError, match="continues one text"):
            run(("a", "film"))


def test_token_types_that_the_model_does_not_have():
    adapter = TextAdapter(hugging_face("RobertaForSequenceClassification"), heads.bert_tokenizer())
    assert adapter.predict_proba("a film").shape == (1, 2)
    for run in (adapter.encode, adapter.predict_proba):
        with pytest.raises(TokenizerError, match="type id 1, but RobertaForSequenceClassification has 1"):
            run(("a", "film"))
