"""Adapters and encodings in a notebook: one short line each."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from captum_attn_lime.adapters import ImageAdapter, SequenceAdapter, TabularAdapter, TextAdapter, WordTokenizer
from tests.models import text as models

TOKENIZER = WordTokenizer.fit(["a fine film"])


def text() -> TextAdapter:
    return TextAdapter(models.MaskedMean(), TOKENIZER, class_names=["rotten", "fresh"])


def image() -> ImageAdapter:
    model = nn.Sequential(nn.Conv2d(3, 9, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageAdapter(model, mean=0.5, std=0.5, size=16, class_names=[str(k) for k in range(9)])


def series() -> SequenceAdapter:
    return SequenceAdapter(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))


def table() -> TabularAdapter:
    return TabularAdapter(nn.Linear(3, 1), task="regression")


@pytest.mark.parametrize(
    ("adapter", "raw", "options", "of_adapter", "of_encoding"),
    [
        (
            text,
            "a fine film",
            {},
            "TextAdapter(MaskedMean, task='classification', classes=['rotten', 'fresh'])",
            "TextEncoding(1 text, 3 tokens, 3 features)",
        ),
        (text, ["a", "a film"], {}, None, "TextEncoding(2 texts, 2 tokens, 1 to 2 features)"),
        (
            image,
            np.zeros((9, 9, 3), dtype=np.uint8),
            {},
            "ImageAdapter(Sequential, size=(16, 16), patch_size=(8, 8), "
            "classes=['0', '1', '2', '3', '4', '5', '6', '7', ...])",
            "ImageEncoding(1 picture of 16 x 16, 4 features)",
        ),
        (
            series,
            np.zeros((2, 3, 2)),
            {"features": "step"},
            "SequenceAdapter(Sequential, task='classification')",
            "SequenceEncoding(2 sequences of 3 x 2, 3 features)",
        ),
        (
            table,
            np.zeros((2, 3)),
            {"features": [[0, 1, 2]]},
            "TabularAdapter(Linear, task='regression')",
            "TabularEncoding(2 rows of 3 columns, 1 feature)",
        ),
    ],
)
def test_one_short_line(adapter, raw, options, of_adapter, of_encoding):
    made = adapter()
    assert repr(made.encode(raw, **options)) == of_encoding
    assert of_adapter is None or repr(made) == of_adapter


def test_a_tokenizer_by_hand():
    assert repr(TOKENIZER) == "WordTokenizer(5 words)"
