"""compare over pairs of texts, and with the targets of models that predict by token."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from lime.lime_text import LimeTextExplainer

from captum_attn_lime import AttentionAttribution, compare
from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import pool
from captum_attn_lime.lime import LimeText, word_weights
from tests.models import heads
from tests.models.heads import CASES, hugging_face

QUESTION, CONTEXT = "is a good film long", "it is a dull film, and a fine cast"


def classifier() -> TextAdapter:
    torch.manual_seed(2)
    return TextAdapter(hugging_face("BertForSequenceClassification", num_labels=3), heads.bert_tokenizer())


@pytest.mark.parametrize("name", ["bert_spans", "bert_tokens"])
def test_a_target_at_a_position(name, tmp_path):
    adapter = CASES[name].adapter()
    x = adapter.encode((QUESTION, CONTEXT))
    target = (x.find("fine", in_text="second")[0], 1)
    rollout = AttentionAttribution(adapter, method="rollout")
    methods = {
        "rollout": rollout.attribute(**x.arguments(rollout), target=target, query=target[0]),
        "ablation": captum.attr.FeatureAblation(adapter),
        "gradients": captum.attr.LayerIntegratedGradients(adapter, adapter.embedding),
    }
    lime = LimeText(adapter).attribute(**x.arguments(LimeText(adapter)), target=target, n_samples=40)
    found = compare({**methods, "LIME": lime}, x, target=target)
    assert list(found.scores.index) == [w.text for w in x.words[0]]
    ablation = methods["ablation"].attribute(**x.arguments(methods["ablation"]), target=target)
    expected = pool(ablation, x.feature_mask, "first")[0, :-1]
    np.testing.assert_allclose(found.scores["ablation"], expected)
    assert np.isfinite(found.scores.to_numpy()).all()
    page = found.save_html(tmp_path / "page.html", title=f"Target {target}").read_text()
    assert f"Target {target}" in page
    assert len(found.plot(title=str(target)).axes) >= 2


def test_lime_of_one_text_has_no_value_for_the_other():
    adapter = classifier()
    both = adapter.encode((QUESTION, CONTEXT))
    lime = {
        s: LimeText(adapter).explain((QUESTION, CONTEXT), 1, explained_text=s, num_samples=60)
        for s in ("first", "second")
    }
    ablation = captum.attr.FeatureAblation(adapter)
    found = compare({"ablation": ablation, **lime}, both, target=1)
    of = np.array(both.text_indices[0])
    for k, segment in enumerate(("first", "second")):
        assert found.scores[segment][of != k].isna().all()
        own = [w for w, s in zip(both.words[0], of, strict=True) if s == k]
        np.testing.assert_array_equal(found.scores[segment][of == k], word_weights(lime[segment], own))
    alone = adapter.encode((QUESTION, CONTEXT), explained_text="first")
    part = compare({"ablation": ablation, "LIME": lime["first"]}, alone, target=1)
    assert list(part.scores.index) == QUESTION.split()
    assert part.scores.notna().all(axis=None)
    with pytest.raises(InputError, match="of the second text, whose words are not features"):
        compare({"LIME": lime["second"]}, alone, target=1)


def test_explanations_of_other_pairs_and_of_equal_texts():
    adapter = classifier()
    x = adapter.encode((QUESTION, CONTEXT))
    other = LimeText(adapter).explain((QUESTION, "a dull cast"), 1, explained_text="first", num_samples=30)
    with pytest.raises(InputError, match="of another text"):  # the same question, beside another context
        compare({"LIME": other}, x, target=1)
    twice = (QUESTION, QUESTION)
    y = adapter.encode(twice)
    marked = LimeText(adapter).explain(twice, 1, explained_text="second", num_samples=30)
    scores = compare({"LIME": marked}, y, target=1).scores["LIME"]
    assert scores[:5].isna().all()
    assert scores[5:].notna().all()
    official = LimeTextExplainer(random_state=0)
    plain = official.explain_instance(
        QUESTION, lambda texts: adapter.predict_proba([(t, QUESTION) for t in texts]), labels=(1,), num_samples=30
    )
    with pytest.raises(InputError, match="either text of the pair"):
        compare({"LIME": plain}, y, target=1)
    unmarked = official.explain_instance(
        QUESTION, lambda texts: adapter.predict_proba([(t, CONTEXT) for t in texts]), labels=(1,), num_samples=30
    )
    assert compare({"LIME": unmarked}, x, target=1).scores["LIME"].notna().sum() == 5


def test_the_next_token():
    adapter = CASES["gpt2_next"].adapter()
    text, target = "it is a fine film", 1  # a token whose id is a label of lime's own
    x = adapter.encode(text)
    lime = LimeText(adapter).explain(text, target, num_samples=60)
    found = compare({"ablation": captum.attr.FeatureAblation(adapter), "LIME": lime}, x, target=target)
    np.testing.assert_array_equal(found.scores["LIME"], word_weights(lime, x.words[0], target))
    with pytest.raises(ValueError, match="token 2 was not explained"):
        compare({"LIME": lime}, x, target=2)
