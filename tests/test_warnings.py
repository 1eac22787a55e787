"""Every warning points at the user's line, whatever of the package it comes up in."""

from __future__ import annotations

import warnings

import pytest
import torch

from captum_attn_lime import AttentionAttribution, LimeText, TextAdapter
from captum_attn_lime.errors import DropoutWarning, PaddingWarning, TruncationWarning
from tests.families import IDS, HandWritten
from tests.models import text as models
from tests.models.padded import TEXTS, make


def adapter():
    """An adapter for a model that reads padding, though it takes a mask."""
    return TextAdapter(*make("mask ignored"))


def short():
    return TextAdapter(models.bert(num_labels=2), models.word_level_tokenizer(), max_length=4)


def attention_in_training_mode():
    noisy = torch.nn.Sequential(HandWritten(), torch.nn.Dropout(0.1)).train()
    AttentionAttribution(noisy).attribute(IDS, query=0)


CALLS = {
    "answers": (PaddingWarning, lambda: adapter().logits(TEXTS)),
    "LIME": (PaddingWarning, lambda: LimeText(adapter()).explain(TEXTS[0], num_samples=20)),
    "encoding": (TruncationWarning, lambda: short().encode("a film that is not good at all")),
    "answers to cut texts": (TruncationWarning, lambda: short().logits(["a film that is not good at all"])),
    "attention": (DropoutWarning, attention_in_training_mode),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_warning_points_at_the_user(call):
    category, run = CALLS[call]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    places = [w.filename for w in seen if w.category is category]
    assert places
    assert set(places) == {__file__}
