"""predict_proba: what a HuggingFace configuration says about the problem decides what probabilities there are."""

from __future__ import annotations

import numpy as np
import pytest

from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime import LimeText
from tests.models import text as models


def _adapter(**options):
    return TextAdapter(models.bert(**options), models.word_level_tokenizer())


def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each():
    adapter = _adapter(problem_type="multi_label_classification")
    logits = adapter.logits("a fine film")
    np.testing.assert_allclose(adapter.predict_proba("a fine film"), 1 / (1 + np.exp(-logits)), atol=1e-12)
    assert LimeText(adapter).explain("a fine film", target=2, num_samples=30).local_exp


def test_regression_has_no_probabilities_and_points_to_logits():
    adapter = _adapter(problem_type="regression", num_labels=1)
    with pytest.raises(InputError, match=r"configured for regression.*use logits"):
        adapter.predict_proba("a fine film")
    assert adapter.logits("a fine film").shape == (1, 1)
    for options in ({}, dict(output="logits"), dict(target=0)):
        found = LimeText(adapter).explain("a fine film", num_samples=30, **options)
        assert found.explained.unit == "prediction"
        assert found.predicted_value == pytest.approx(adapter.logits("a fine film")[0, 0])
    with pytest.raises(TargetError, match="one output"):
        LimeText(adapter).explain("a fine film", target=1)


@pytest.mark.parametrize("options", [{}, {"problem_type": "multi_label_classification"}])
def test_a_single_logit_gives_two_columns(options):
    adapter = _adapter(num_labels=1, **options)
    p = 1 / (1 + np.exp(-adapter.logits("a fine film")[0, 0]))
    np.testing.assert_allclose(adapter.predict_proba("a fine film"), [[1 - p, p]], atol=1e-12)
