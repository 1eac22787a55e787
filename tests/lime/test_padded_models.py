"""LIME of models whose answers depend on padding equals plain lime, one copy at a time with the same seed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from lime.lime_text import LimeTextExplainer

from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import LimeWarning, PaddingWarning
from captum_attn_lime.lime import LimeText
from tests.models import text as models
from tests.models.padded import CASES, TEXTS, by_hand, make


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("text", TEXTS[:2])
def test_lime_equals_plain_lime_one_copy_at_a_time(name, text):
    adapter = TextAdapter(*make(name))

    def one_by_one(texts):
        model = make(name)[0]
        rows = []
        for item in texts:
            if name == "bigbird":  # which would stay with what a short copy turned it to
                model.bert.set_attention_type("block_sparse")
            rows.append(by_hand(model, item).double().softmax(dim=0).numpy())
        return np.stack(rows)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaddingWarning)
        warnings.simplefilter("ignore", LimeWarning)
        found = dict(LimeText(adapter, seed=0).explain(text, target=1, num_samples=120).as_list())
    plain = LimeTextExplainer(random_state=0)
    expected = dict(plain.explain_instance(text, one_by_one, num_samples=120, num_features=20).as_list())
    assert found == pytest.approx(expected, abs=1e-5)


def test_token_types_are_those_of_each_copy():
    import torch

    torch.manual_seed(0)
    tokenizer = models.word_level_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model = models.bert(num_labels=2)
    text, other = "it is not good", "a dull film"

    def one_by_one(texts):
        rows = []
        for item in texts:
            encoded = tokenizer(item, other, return_tensors="pt", return_token_type_ids=True)
            with torch.no_grad():
                rows.append(model(**encoded).logits[0].double().softmax(dim=0).numpy())
        return np.stack(rows)

    lime = LimeText(TextAdapter(model, tokenizer), seed=0)
    found = dict(lime.explain((text, other), target=1, explained_text="first", num_samples=120).as_list())
    plain = LimeTextExplainer(random_state=0)
    expected = dict(plain.explain_instance(text, one_by_one, num_samples=120, num_features=20).as_list())
    assert found == pytest.approx(expected, abs=1e-5)
