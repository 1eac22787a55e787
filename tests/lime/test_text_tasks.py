"""LimeText over pairs of texts and language models: official lime run naively gives the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lime.lime_text import LimeTextExplainer

from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import InputError, TargetError, TextError, TruncationWarning
from captum_attn_lime.lime import LimeText, explanation_weights, word_weights
from tests.models import heads
from tests.models import text as models
from tests.models.heads import CASES, hugging_face

FIRST, SECOND = "a fine film, good cast", "it isn't bad; it is not good"
TEXT = "it isn't bad, it is not good film"


def pair_adapter(**options) -> TextAdapter:
    torch.manual_seed(2)
    model = hugging_face("BertForSequenceClassification", num_labels=3)
    return TextAdapter(model, heads.bert_tokenizer(), **options)


@pytest.mark.parametrize("segment", ["first", "second"])
@pytest.mark.parametrize("bow", [True, False])
def test_one_text_of_a_pair_is_lime_run_naively(segment, bow):
    adapter = pair_adapter()

    def naive(texts):  # one pair at a time, the other text as it is
        pairs = [(text, SECOND) if segment == "first" else (FIRST, text) for text in texts]
        rows = [adapter.tokenizer([a], [b], return_tensors="pt") for a, b in pairs]
        with torch.no_grad():
            return np.concatenate([adapter.model(**row).logits.softmax(1).numpy() for row in rows])

    text = FIRST if segment == "first" else SECOND
    official = LimeTextExplainer(random_state=3, feature_selection="none", bow=bow)
    expected = official.explain_instance(text, naive, labels=(1,), num_samples=100)
    found = LimeText(adapter, seed=3, bow=bow).explain((FIRST, SECOND), 1, explained_text=segment, num_samples=100)
    one, two = explanation_weights(expected, 1), explanation_weights(found, 1)
    assert one.keys() == two.keys()
    np.testing.assert_allclose([two[k] for k in one], list(one.values()), atol=1e-5)
    assert found.domain_mapper.indexed_string.raw == text
    assert max(map(abs, two.values())) > 1e-3


def test_the_predicted_class_of_a_pair_and_its_words():
    adapter = pair_adapter(class_names=["a", "b", "c"])
    lime = LimeText(adapter)
    found = lime.explain((FIRST, SECOND), explained_text="second", num_samples=40)
    assert list(found.local_exp) == [int(adapter.predict_proba((FIRST, SECOND)).argmax())]
    assert found.class_names == ["a", "b", "c"]
    x = adapter.encode((FIRST, SECOND), explained_text="second")
    weights = word_weights(found, x.words[0]).numpy()
    assert np.isnan(weights[x.feature_names[0].index(";")])
    assert np.isfinite(weights[x.feature_names[0].index("bad")])


def test_only_what_the_model_sees_of_a_pair_is_explained():
    adapter = pair_adapter(max_length=12)
    with pytest.warns(TruncationWarning):
        (seen,) = adapter.encode((FIRST, SECOND)).texts
    with pytest.warns(TruncationWarning):
        found = LimeText(adapter).explain((FIRST, SECOND), 0, explained_text="first", num_samples=40)
    assert found.domain_mapper.indexed_string.raw == seen[0] != FIRST
    again = LimeText(adapter).explain(seen, 0, explained_text="first", num_samples=40)  # no warning: nothing is cut
    assert explanation_weights(again) == explanation_weights(found)


@pytest.mark.parametrize(
    ("raw", "options", "error", "message"),
    [
        ((FIRST, SECOND), {}, InputError, "explained_text='first' or 'second'"),
        ((FIRST, SECOND), dict(explained_text="third"), InputError, "'third'"),
        (FIRST, dict(explained_text="first"), InputError, "but got str"),
        ((FIRST, ""), dict(explained_text="first"), TextError, "the second text of pair 0 is empty"),
        ((FIRST, SECOND), dict(explained_text="first", target=3), TargetError, "target 3"),
        ([FIRST, SECOND], dict(explained_text="first"), InputError, "a list of 2"),
    ],
)
def test_bad_calls_with_pairs(raw, options, error, message):
    with pytest.raises(error, match=message):
        LimeText(pair_adapter()).explain(raw, **options)


@pytest.mark.parametrize("output", ["probability", "logits"])
def test_the_next_token_is_lime_run_naively_over_the_whole_vocabulary(output):
    adapter = CASES["gpt2_next"].adapter()
    target = 17

    def naive(texts):
        rows = []
        for text in texts:
            ids = adapter.tokenizer.encode(text) or [0]
            with torch.no_grad():
                row = adapter.model(torch.tensor([ids])).logits[0, -1].double()
            rows.append((row.softmax(0) if output == "probability" else row).numpy())
        return np.stack(rows)

    official = LimeTextExplainer(random_state=0, feature_selection="none")
    expected = official.explain_instance(TEXT, naive, labels=(target,), num_samples=80)
    found = LimeText(adapter).explain(TEXT, target, output=output, num_samples=80)
    one, two = explanation_weights(expected), explanation_weights(found, target)
    np.testing.assert_allclose([two[k] for k in one], list(one.values()), atol=1e-5, rtol=1e-4)
    # lime was asked about two classes, not about 300
    assert found.class_names == ["any other token", adapter.class_name(target)]
    assert found.predict_proba.shape == (2,)
    assert found.predict_proba[1] == pytest.approx(expected.predict_proba[target], rel=1e-4)
    if output == "probability":
        assert found.predict_proba.sum() == pytest.approx(1)
    assert dict(found.as_list()) == pytest.approx(dict(expected.as_list(target)), rel=1e-3, abs=1e-5)
    with pytest.raises(TargetError, match="token 1 was not explained; the explanation is of token 17"):
        explanation_weights(found, 1)


def test_the_likeliest_next_token_is_explained_by_default():
    adapter = CASES["llama_next"].adapter()
    found = LimeText(adapter).explain(TEXT, num_samples=30)
    likeliest = int(adapter.predict_proba(TEXT).argmax())
    assert found.class_names[1] == adapter.class_name(likeliest)
    assert explanation_weights(found) == explanation_weights(LimeText(adapter).explain(TEXT, likeliest, num_samples=30))
    with pytest.raises(TargetError, match="300 classes"):
        LimeText(adapter).explain(TEXT, 300)


def test_no_batch_of_the_whole_vocabulary_is_kept():
    adapter = CASES["gpt2_next"].adapter()
    shapes = []
    run = adapter.predict_proba

    def watched(raw, **options):
        found = run(raw, **options)
        shapes.append(found.shape)
        return found

    adapter.predict_proba = watched
    LimeText(adapter).explain(TEXT, 5, num_samples=60)
    assert shapes[0] == (1, 300)  # whether there is such a token
    assert all(shape[1] == 1 for shape in shapes[1:])
    assert sum(n for n, _ in shapes[1:]) == 60


def test_single_texts_are_marked_and_read_as_before():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    found = LimeText(adapter).explain(TEXT, 1, num_samples=30)
    assert found.text == TEXT
    assert found.token is None
    assert list(explanation_weights(found, 1)) == list(explanation_weights(found))
