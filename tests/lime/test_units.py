"""Units and removals of LimeText.explain, each against the official explainer over numbers with one run a row."""

from __future__ import annotations

import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lime.lime_text import IndexedString, LimeTextExplainer

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import InputError, TextError, TruncationWarning
from captum_attn_lime.lime import LimeText, explanation_weights
from captum_attn_lime.lime._draws import text_masks
from captum_attn_lime.lime._text_input import TextInput
from captum_attn_lime.lime._units import UnitText, occurrences, split_spans
from captum_attn_lime.perturb._masks import distinct
from tests.models import heads
from tests.models import text as models
from tests.models.heads import hugging_face

TEXT = "it isn't bad, it is not good; good good film"


def bert(**options) -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(hugging_face("BertForSequenceClassification", num_labels=3), heads.bert_tokenizer(), **options)


def roberta() -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(hugging_face("RobertaForSequenceClassification"), heads.roberta_tokenizer())


def gpt2(**options) -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(models.gpt2(**options), models.byte_bpe_tokenizer())


def by_hand() -> TextAdapter:
    torch.manual_seed(1)
    tokenizer = WordTokenizer.fit(models.CORPUS)
    return TextAdapter(models.MaskedMean(len(tokenizer)).eval(), tokenizer)


FEATURES = {
    "lime": ("lime", lambda x: [m.span() for m in re.finditer(r"\w+", x.texts[0])]),
    "word": ("word", lambda x: [(w.start, w.end) for w in x.words[0]]),
    "token": ("token", lambda x: [s[1:] for s in x.token_spans[0] if s]),
    "pattern": (re.compile(r"\w+|;"), lambda x: [m.span() for m in re.finditer(r"\w+|;", x.texts[0])]),
    "function": (str.split, lambda x: [m.span() for m in re.finditer(r"\S+", x.texts[0])]),
    "spans": (lambda text: [(0, 13), (14, len(text))], lambda x: [(0, 13), (14, len(x.texts[0]))]),
}


def naive(adapter, encoding, spans, *, bow, removal, target, seed=0, num_samples=40, segment=0):
    """Official lime over a text of numbers; each sample's cells are put together one by one and run alone."""
    raw = encoding.texts[0]
    text = raw if isinstance(raw, str) else raw[segment]
    names: dict = {}
    for k, (a, b) in enumerate(spans):
        names.setdefault(text[a:b] if bow else k, []).append((a, b))
    numbers = [next(n for n, own in enumerate(names.values()) if span in own) for span in spans]
    features = list(names.values())
    fill = {"mask": adapter.mask_id, "pad": adapter.pad_id}.get(removal)

    def classify(texts):
        rows = []
        for sample in texts:
            kept = {int(k) for k in sample.split()}
            ids, mask, types = [], [], []
            for cell, span in enumerate(encoding.token_spans[0]):
                here = [n for n, own in enumerate(features) for a, b in own if span and _over(span, segment, a, b)]
                gone = bool(here) and here[0] not in kept
                if gone and removal == "delete":
                    continue
                ids.append(fill if gone and fill is not None else int(encoding.inputs[0, cell]))
                mask.append(0 if gone and removal == "attention" else 1)
                types.append(int(encoding.forward_args[-1][0, cell]) if adapter._tokenizing.types else 0)
            if not ids:
                ids, mask, types = [adapter._reference_for_tests], [1], [0]
            rows.append(_run(adapter, torch.tensor([ids]), torch.tensor([mask]), torch.tensor([types])))
        return np.concatenate(rows)

    explainer = LimeTextExplainer(random_state=seed, feature_selection="none")
    text_of_numbers = " ".join(map(str, numbers))
    found = explainer.explain_instance(text_of_numbers, classify, labels=(target,), num_samples=num_samples)
    weights = explanation_weights(found, target)
    # lime numbers its words as they come, and so are ours: number n is feature n
    return [weights[n] for n in range(len(features))], [text[a:b] for (a, b), *_ in features]


def _over(span, segment, a, b) -> bool:
    return span[0] == segment and min(b, span[2]) > max(a, span[1])


def _run(adapter, ids, mask, types):
    model = adapter.model
    if "GPT2" in type(model).__name__:  # the last token that is not hidden, whatever its id
        with torch.no_grad():
            states = model.transformer(ids, attention_mask=mask).last_hidden_state
            return model.score(states[:, int(mask[0].nonzero()[-1])]).double().softmax(1).numpy()
    named = {"input_ids": ids, "attention_mask": mask} if hasattr(model, "config") else {"ids": ids, "mask": mask}
    if adapter._tokenizing.types:
        named["token_type_ids"] = types
    with torch.no_grad():
        out = model(**named)
    return getattr(out, "logits", out).double().softmax(1).numpy()


def weights_of(found, target):
    weights = explanation_weights(found, target)
    return [weights[k] for k in range(len(weights))]


@pytest.mark.parametrize("bow", [True, False], ids=["bag", "positions"])
@pytest.mark.parametrize("removal", ["delete", "mask", "pad", "attention"])
@pytest.mark.parametrize("features", FEATURES)
def test_features_and_removals_are_lime_run_naively(features, removal, bow):
    adapter = bert()
    x = adapter.encode(TEXT)
    given, spans = FEATURES[features]
    expected, names = naive(adapter, x, spans(x), bow=bow, removal=removal, target=2)
    lime = LimeText(adapter, features=given, removal=removal, bow=bow)
    found = lime.explain(TEXT, 2, num_samples=40)
    np.testing.assert_allclose(weights_of(found, 2), expected, atol=1e-6)
    assert [found.domain_mapper.indexed_string.word(k) for k in range(len(names))] == names
    assert found.domain_mapper.indexed_string.raw == TEXT
    assert max(map(abs, expected)) > 1e-3


@pytest.mark.parametrize("removal", ["delete", "mask", "pad", "attention"])
@pytest.mark.parametrize("make", [roberta, gpt2, by_hand], ids=lambda f: f.__name__)
def test_other_tokenizers_and_models(make, removal):
    adapter = make()
    x = adapter.encode(TEXT)
    if removal == "attention" and make is by_hand:  # all tokens are of words, and all could be hidden
        with pytest.raises(InputError, match="hide every token"):
            LimeText(adapter, features="word", removal=removal).explain(TEXT, 1, num_samples=40)
        return
    adapter._reference_for_tests = {"gpt2": 0, "by_hand": 1}.get(make.__name__)  # bos; unknown
    spans = [(w.start, w.end) for w in x.words[0]]
    expected, _ = naive(adapter, x, spans, bow=True, removal=removal, target=1)
    found = LimeText(adapter, features="word", removal=removal).explain(TEXT, 1, num_samples=40)
    np.testing.assert_allclose(weights_of(found, 1), expected, atol=1e-6)


@pytest.mark.parametrize("removal", ["delete", "mask", "pad", "attention"])
def test_a_causal_classifier_reads_the_last_token_that_is_not_hidden(removal):
    adapter = gpt2(pad_token_id=7)
    assert adapter.pad_id == 7
    x = adapter.encode(TEXT)
    spans = [m.span() for m in re.finditer(r"\w+", TEXT)]
    expected, _ = naive(adapter, x, spans, bow=True, removal=removal, target=1)
    found = LimeText(adapter, removal=removal).explain(TEXT, 1, num_samples=40)
    np.testing.assert_allclose(weights_of(found, 1), expected, atol=1e-6)
    assert adapter.mask_id != 7
    assert adapter.model.config.pad_token_id == 7


@pytest.mark.parametrize("removal", ["delete", "mask", "attention"])
@pytest.mark.parametrize("segment", ["first", "second"])
def test_one_text_of_a_pair(segment, removal):
    adapter = bert()
    pair = ("a fine film, good cast", "it isn't bad; it is bad")
    k = ("first", "second").index(segment)
    x = adapter.encode(pair, explained_text=segment)
    spans = [(w.start, w.end) for w in x.words[0]]
    expected, _ = naive(adapter, x, spans, bow=True, removal=removal, target=0, segment=k)
    found = LimeText(adapter, features="word", removal=removal).explain(pair, 0, explained_text=segment, num_samples=40)
    np.testing.assert_allclose(weights_of(found, 0), expected, atol=1e-6)
    assert found.domain_mapper.indexed_string.raw == pair[k]


@pytest.mark.parametrize("removal", [None, "mask"])
def test_a_text_that_is_cut_is_perturbed_within_what_is_seen(removal):
    adapter = bert(max_length=9)
    with pytest.warns(TruncationWarning):
        found = LimeText(adapter, features="word", removal=removal).explain(TEXT, 0, num_samples=40)
    with pytest.warns(TruncationWarning):
        x = adapter.encode(TEXT)
    assert found.domain_mapper.indexed_string.raw == x.texts[0] != TEXT
    spans = [(w.start, w.end) for w in x.words[0]]
    expected, _ = naive(adapter, x, spans, bow=True, removal=removal or "delete", target=0)
    np.testing.assert_allclose(weights_of(found, 0), expected, atol=1e-6)


# ---------------------------------------------------------------- lime's way, by tokens and by texts


def ways(monkeypatch) -> list[str]:
    """Return a list that notes which way each later explanation takes."""
    taken: list[str] = []
    masks, texts = TextInput.scores_of_masks, TextInput.scores

    def of_texts(self, items):
        if len(items) > 1:  # one text is only looked at for its class
            taken.append("texts")
        return texts(self, items)

    monkeypatch.setattr(TextInput, "scores_of_masks", lambda *a, **k: (taken.append("tokens"), masks(*a, **k))[1])
    monkeypatch.setattr(TextInput, "scores", of_texts)
    return taken


SENTENCES = [
    TEXT,
    "Good. Good? good good -- it isn't... (1.50) [MASK] film_film naïve",
    "很好的电影 it is 不好 😀 good",
    "cafe\u0301 अच्छा film \u200b\x07 film",
    "film",
]


@pytest.mark.parametrize("options", [{}, {"bow": False}, {"bow": False, "mask_string": "[MASK]"}], ids=str)
@pytest.mark.parametrize("text", SENTENCES)
def test_limes_own_way_by_tokens_gives_what_tokenising_gives(text, options, monkeypatch):
    adapter = bert()

    def classify(texts):  # one text at a time
        rows = [adapter.tokenizer(t, return_tensors="pt") for t in texts]
        with torch.no_grad():
            return np.concatenate([adapter.model(**row).logits.double().softmax(1).numpy() for row in rows])

    official = LimeTextExplainer(random_state=4, feature_selection="none", **options)
    expected = explanation_weights(official.explain_instance(text, classify, labels=(0,), num_samples=60), 0)
    taken = ways(monkeypatch)
    found = LimeText(adapter, seed=4, **options).explain(text, 0, num_samples=60)
    np.testing.assert_allclose(weights_of(found, 0), [expected[k] for k in range(len(expected))], atol=1e-6)
    # "[MASK]" is one token of a word and the signs around it; an accent left alone joins what then stands before it
    by_texts = "[MASK]" in text or ("\u0301" in text and options != {"bow": False})
    assert taken == (["texts"] if by_texts else ["tokens"])
    string = IndexedString(text, bow=options.get("bow", True))
    assert [found.domain_mapper.indexed_string.word(k) for k in range(string.num_words())] == string.inverse_vocab


@pytest.mark.parametrize("make", [roberta, gpt2], ids=lambda f: f.__name__)
def test_tokenizers_whose_words_depend_on_their_neighbours_get_texts(make, monkeypatch):
    taken = ways(monkeypatch)
    LimeText(make()).explain(TEXT, 1, num_samples=10)
    assert taken == ["texts"]


def test_joined_signs_that_are_one_token_get_texts(monkeypatch):
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    taken = ways(monkeypatch)
    lime = LimeText(adapter)
    lime.explain("good film, bad film", 1, num_samples=10)
    lime.explain("good, film; bad", 1, num_samples=10)  # without "film", " ," and " ;" stay apart
    lime.explain("good,film;bad", 1, num_samples=10)  # without it, ",;" is one token
    assert taken == ["tokens", "tokens", "texts"]


def test_adapters_that_answer_in_their_own_way_get_texts(monkeypatch):
    class Calibrated(TextAdapter):
        def predict_proba(self, raw, **options):
            return super().predict_proba(raw, **options) ** 2

    adapter = Calibrated(hugging_face("BertForSequenceClassification"), heads.bert_tokenizer())
    taken = ways(monkeypatch)
    LimeText(adapter).explain(TEXT, 1, num_samples=10)
    assert taken == ["texts"]
    with pytest.raises(InputError, match="overrides predict_proba"):
        LimeText(adapter, removal="mask").explain(TEXT, 1, num_samples=10)


def test_replacements_that_would_be_cut_get_texts(monkeypatch):
    taken = ways(monkeypatch)
    short = "good film bad film"
    size = len(bert().tokenizer(short)["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        LimeText(bert(max_length=size), bow=False, mask_string="it is not").explain(short, 1, num_samples=10)
    LimeText(bert(max_length=size)).explain(short, 1, num_samples=10)
    assert taken == ["texts", "tokens"]


# ---------------------------------------------------------------- what runs, and how often


def counted(adapter) -> list[bytes]:
    """Return a list that will hold every row that the model runs on, padding left out."""
    rows: list[bytes] = []

    def note(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        rows.extend(i[m != 0].numpy().tobytes() for i, m in zip(ids, mask, strict=True))

    adapter.model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@pytest.mark.parametrize(("bow", "features"), [(True, "lime"), (False, "word")])
def test_no_distinct_copy_runs_twice(bow, features):
    adapter = bert()
    adapter.encode(TEXT)  # the first time, the embedding is looked for by a run of the model
    rows = counted(adapter)
    LimeText(adapter, features=features, bow=bow).explain("good good film good", 1, num_samples=500)
    assert len(rows) == len(set(rows))
    # a bag of two words; positions: 0 to 2 "good" before "film" and 0 to 1 after it, or 0 to 3 without "film"
    assert len(rows) == (4 if bow else 3 * 2 + 4)


def test_batches_hold_no_more_tokens_than_asked_for():
    adapter = bert(batch_tokens=64)
    sizes = []
    adapter.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    LimeText(adapter, removal="mask").explain(TEXT, 1, num_samples=60)
    LimeText(adapter).explain(TEXT, 1, num_samples=60)
    assert len(sizes) > 20
    assert max(sizes) <= 64


def test_copies_of_long_texts_come_in_few_widths():
    """Batches of ever other shapes would leave the process's memory in pieces, more of it with every batch."""
    adapter, widths = by_hand(), set()
    text = " ".join(["good bad film acting"] * 16)  # as many words as the model has positions
    plain = LimeTextExplainer(random_state=0, feature_selection="none", bow=False, mask_string="")
    expected = plain.explain_instance(text, adapter.predict_proba, labels=(1,), num_samples=150)
    adapter.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.add((*args, *kwargs.values())[0].shape[1]), with_kwargs=True
    )
    lime = LimeText(adapter, features="word", bow=False)
    lime.explain(text, 1, num_samples=2)  # the adapter tries a new model out
    widths.clear()
    found = lime.explain(text, 1, num_samples=150)
    assert explanation_weights(found) == pytest.approx(explanation_weights(expected), abs=1e-6)
    assert len(widths) > 3
    assert all(width % 8 == 0 for width in widths), widths


def test_the_model_is_left_as_it_was_and_runs_in_eval_mode():
    adapter = bert()
    adapter.model.train()
    one, two = (LimeText(adapter, removal="mask").explain(TEXT, 1, num_samples=30) for _ in range(2))
    assert explanation_weights(one) == explanation_weights(two)
    assert all(m.training for m in adapter.model.modules())


def test_logits_and_a_language_model_by_tokens():
    adapter = bert()
    x = adapter.encode(TEXT)
    logits = LimeText(adapter, features="word", removal="mask").explain(TEXT, 1, output="logits", num_samples=50)
    lime = LimeText(adapter)
    tensor = lime.attribute(**x.arguments(lime), target=1, n_samples=50)
    # the words of this text that occur once are features of both; a bag of words has other draws
    positional = LimeText(adapter, features="word", removal="mask", bow=False)
    found = weights_of(positional.explain(TEXT, 1, output="logits", num_samples=50), 1)
    own = [float(tensor[0][x.feature_mask[0] == k][0]) for k in range(len(found))]
    np.testing.assert_allclose(found, own, atol=1e-4)
    assert len(explanation_weights(logits)) < len(found)
    model = heads.CASES["gpt2_next"].adapter()
    lime = LimeText(model, features="word", removal="mask")
    next_token = lime.explain(TEXT, 17, num_samples=40)
    assert next_token.class_names == ["any other token", model.class_name(17)]
    assert next_token.predict_proba[1] == pytest.approx(float(model.predict_proba(TEXT)[0, 17]), rel=1e-5)


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize("d", [1, 2, 7, 143])
def test_masks_are_drawn_as_lime_draws_them(d):
    seen = []
    answer = lambda texts: seen.extend(texts) or np.full((len(texts), 2), 0.5)  # noqa: E731
    explainer = LimeTextExplainer(random_state=3, feature_selection="none")
    explainer.explain_instance(" ".join(map(str, range(d))), answer, num_samples=50)
    expected = [[str(k) in text.split() for k in range(d)] for text in seen]
    np.testing.assert_array_equal(text_masks(3, d, 50), expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_attribute_gives_the_official_explainers_weights(metric):
    """On the mask itself as the input: what the model answers is equal, and so are the weights to 1e-12."""

    def scores(kept):
        return kept @ np.array([1.0, 2.0, 4.0, 8.0]) + 3 * kept[:, 0] * kept[:, 1]

    def classify(texts):
        kept = np.array([[float(str(k) in text.split()) for k in range(4)] for text in texts])
        return scores(kept)[:, None]

    official = LimeTextExplainer(random_state=1, feature_selection="none")
    found = official.explain_instance("0 1 2 3", classify, labels=(0,), num_samples=50, distance_metric=metric)
    expected = explanation_weights(found)
    lime = LimeText(lambda x: torch.from_numpy(scores(x.numpy()))[:, None], distance_metric=metric, seed=1)
    weights = lime.attribute(torch.ones(1, 4, dtype=torch.float64), target=0, n_samples=50)[0]
    assert max(abs(expected[k] - float(weights[k])) for k in range(4)) <= 1e-12
    assert max(map(abs, expected.values())) > 1e-3


@settings(max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=30))
def test_distinct_rows(rows):
    masks = np.array(rows)
    first, where = distinct(masks)
    np.testing.assert_array_equal(masks[first][where], masks)
    assert len(first) == len({tuple(row) for row in rows})


@settings(max_examples=100)
@given(st.text(alphabet="ab ,é\u0301很😀\n", min_size=1, max_size=20), st.booleans())
def test_a_unit_text_is_limes_indexed_string(text, bow):
    spans = [m.span() for m in re.finditer(r"\w+", text)]
    if not spans:
        return
    mine, theirs = UnitText(text, spans, bow=bow), IndexedString(text, bow=bow)
    assert "".join(mine.as_list) == text
    assert mine.inverse_vocab == [str(word) for word in theirs.inverse_vocab]
    assert occurrences(mine) == occurrences(theirs)
    for k in range(mine.num_words()):
        assert mine.string_position(k).tolist() == theirs.string_position(k).reshape(-1).astype(int).tolist()
        if bow:
            assert mine.inverse_removing([k]) == theirs.inverse_removing([k])


def test_signs_emoji_and_chinese_characters_are_units():
    adapter = bert()
    text = "cafe\u0301 电影 😀 good!"
    found = LimeText(adapter, features="word").explain(text, 1, num_samples=20)
    names = [name for name, _ in found.as_list(1)]
    assert sorted(names) == sorted(["cafe\u0301", "电", "影", "😀", "good", "!"])


def test_units_that_have_no_token_are_left_out():
    text = "good\u200b film"
    found = LimeText(bert(), features=re.compile(r"\w+|\u200b")).explain(text, 1, num_samples=20)
    assert sorted(name for name, _ in found.as_list(1)) == ["film", "good"]
    with pytest.raises(TextError, match="none of the 1 units has a token"):
        LimeText(bert(), features=re.compile("\u200b")).explain(text, 1, num_samples=20)


def test_a_function_gives_substrings_or_spans():
    text = "One. Two two."
    assert split_spans(text, lambda t: t.split(" ")) == [(0, 4), (5, 8), (9, 13)]
    assert split_spans(text, lambda t: [(0, 4), [5, 13]]) == [(0, 4), (5, 13)]
    for bad, message in [
        (lambda t: ["one"], "'one', which is not in the text"),
        (lambda t: ["Two", "One"], "'One', which is not in the text from character 8"),
        (lambda t: [(0, 4), (3, 6)], r"\(3, 6\), which is not"),
        (lambda t: [(0, 99)], "which is not"),
        (lambda t: [3], "returned int"),
    ]:
        with pytest.raises(InputError, match=message):
            split_spans(text, bad)
    with pytest.raises(TextError, match="found nothing"):
        split_spans(text, re.compile("x"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(features="words"), "features must be 'lime'"),
        (dict(features=3), "not int"),
        (dict(removal="hide"), "removal must be None or one of"),
        (dict(bow=False, mask_string="x", removal="mask"), "mask_string requires features"),
        (dict(bow=False, mask_string="x", features="word"), "mask_string requires features"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        LimeText(bert(), **options)


def test_removals_that_the_model_does_not_allow():
    tokenizer = WordTokenizer.fit(models.CORPUS)
    bag = TextAdapter(models.BagOfWords(len(tokenizer)), tokenizer)
    with pytest.raises(InputError, match="BagOfWords does not accept"):
        LimeText(bag, removal="attention").explain(TEXT, 1, num_samples=10)
    with pytest.raises(InputError, match="capturing group"):
        LimeText(bert(), removal="mask", split_expression=r"(\W)+").explain(TEXT, 1, num_samples=10)


def test_explanations_can_be_pickled():
    found = LimeText(bert(), features="word", removal="mask").explain(TEXT, 1, num_samples=20)
    again = pickle.loads(pickle.dumps(found))
    assert again.as_list(1) == found.as_list(1)
    assert again.as_list(1, positions=True) == found.as_list(1, positions=True)
    assert "it" in again.as_html()


@pytest.mark.parametrize("text", ["good\0 film it is", "good\0film a", "\0good film\0 bad", " good\0\0 film \0 it"])
def test_a_nul_moves_no_spans(text):
    from captum_attn_lime.lime._units import lime_string

    string = lime_string(text, r"\W+", bow=True, mask_string=None)
    for k in range(string.num_words()):
        word = string.word(k)
        assert all(text[p : p + len(word)] == word for p in string.string_position(k).tolist())
