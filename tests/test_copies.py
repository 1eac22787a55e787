"""What the package gives out is copied and pickled: adapters, encodings, explanations, comparisons."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import (
    AttentionAttribution,
    ImageAdapter,
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
    compare,
    describe,
    submodular_pick,
)
from captum_attn_lime.lime import pooled
from tests.families import IDS, MASK, bert, build
from tests.models import text as models
from tests.models.small import Mean, Net

COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}
copied_by = pytest.mark.parametrize("how", COPIES)
TEXT = "a fine film with a dull cast"
ROWS = np.random.default_rng(0).normal(size=(60, 4))
SERIES = np.random.default_rng(0).normal(size=(20, 5, 2)).astype(np.float32)
PICTURE = np.random.default_rng(0).integers(0, 255, size=(24, 24, 3)).astype(np.uint8)


def _text():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    return adapter, LimeText(adapter), TEXT


def _row():
    adapter = TabularAdapter(Net(4).eval(), training_data=ROWS)
    return adapter, LimeTabular(adapter), ROWS[0]


def _series():
    adapter = SequenceAdapter(Mean(2).eval(), training_data=SERIES)
    return adapter, LimeSequence(adapter), SERIES[0]


def _picture():
    adapter = ImageAdapter(Mean(3).eval(), mean=[0.5] * 3, std=[0.5] * 3, patch_size=8)
    return adapter, LimeImage(adapter), PICTURE


def _tensors(x):
    return x if isinstance(x, tuple) else (x,)


@copied_by
@pytest.mark.parametrize("make", [_text, _row, _series, _picture], ids=lambda make: make.__name__.strip("_"))
def test_adapters_encodings_and_explanations(how, make):
    adapter, lime, raw = make()
    x = adapter.encode(raw)
    explanation = lime.explain(raw, num_samples=40)
    given = {**x.arguments(lime), "target": 1, "n_samples": 40}
    scores = lime.attribute(**given)
    for _ in range(2):  # what was not used yet, and what was
        other_adapter, other_lime = COPIES[how](adapter), COPIES[how](lime)
        other_x, other = COPIES[how](x), COPIES[how](explanation)
        assert np.array_equal(other_adapter.predict_proba([raw]), adapter.predict_proba([raw]))
        for a, b in zip(_tensors(other_x.inputs), _tensors(x.inputs), strict=True):
            assert torch.equal(a, b)
        assert other_x.feature_names == x.feature_names
        found = other_lime.attribute(**{**other_x.arguments(other_lime), "target": 1, "n_samples": 40})
        assert torch.equal(_tensors(found)[0], _tensors(scores)[0])
        assert other.local_exp == explanation.local_exp
        assert repr(other.diagnostics) == repr(explanation.diagnostics)
        if make is not _picture:
            assert other.as_list() == explanation.as_list()
            assert len(other.as_html()) == len(explanation.as_html())  # lime gives each page an id


@copied_by
def test_replicates_picks_comparisons_and_descriptions(how):
    adapter, lime, text = _text()
    explanation = pooled(lime.explain(text, num_samples=40, seed=seed) for seed in range(3))
    assert COPIES[how](explanation).as_list() == explanation.as_list()
    x, attention = adapter.encode(text), AttentionAttribution(adapter)
    compared = compare({"attention": attention, "lime": lime}, x, target=1)
    other = COPIES[how](compared)
    assert repr(other) == repr(compared)
    assert str(COPIES[how](describe(adapter, x.inputs, x.forward_args))) == str(
        describe(adapter, x.inputs, x.forward_args)
    )
    _, rows, _ = _row()
    picks = submodular_pick(rows, ROWS[:6], num_samples=40)
    assert repr(COPIES[how](picks)) == repr(picks)


@pytest.mark.parametrize("options", [{}, {"method": "raw", "layers": 1}, {"offload": "cpu"}], ids=str)
def test_used_attributions_are_copied_and_pickled(options):
    family = build(bert)
    used = AttentionAttribution(Bert(family.model), **options)
    given = {"additional_forward_args": (MASK,), "query": 0}
    expected = used.attribute(IDS, **given)
    for copied in (copy.deepcopy(used), pickle.loads(pickle.dumps(used)), copy.copy(used)):
        assert torch.equal(copied.attribute(IDS, **given), expected)
        assert torch.equal(copied.attribute(IDS, **given), expected)
    by_module = AttentionAttribution(used.forward_func, layers=used.forward_func.inner.bert.encoder.layer[1])
    expected = by_module.attribute(IDS, **given)
    for copied in (copy.deepcopy(by_module), pickle.loads(pickle.dumps(by_module))):
        assert torch.equal(copied.attribute(IDS, **given), expected)


class Bert(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids, mask):
        return self.inner(ids, attention_mask=mask).logits
