"""What is known of each family before it is built: tests are parametrised over the families that a law speaks of.

`test_families.py` holds these lists against the families themselves.
"""

from __future__ import annotations

import pytest

from tests.families import BY_HAND, FAMILIES, TABLES, TORCH
from tests.families.audio import AUDIO
from tests.families.encoder_decoders import ENCODER_DECODERS
from tests.families.hand_written import additive_lstm, flexible, hand_written, learned_query
from tests.families.tables import ft_transformer, tab_transformer
from tests.families.text_decoders import gemma2, gpt_oss, jamba, llama_left_padded, qwen3_next
from tests.families.text_encoders import deberta_v2, mpnet
from tests.families.timm_models import timm_beit, timm_deit_distilled, timm_eva, timm_siglip
from tests.families.torch_modules import (
    mha_bias_kv,
    mha_cross,
    mha_zero_attn,
    torch_decoder,
    torch_encoder,
    torch_transformer,
)
from tests.families.torchvision_models import torchvision_vit
from tests.families.vision import deit, dinov2_registers, siglip_vision
from tests.families.windowed import WINDOWED, swin_v2, timm_sam, torchvision_swin


def _except(*others):
    return [make for make in FAMILIES if make not in others]


# Two ways to compute attention: `eager` is given.
_ONE_WAY = [deberta_v2, mpnet, gemma2, gpt_oss, torchvision_vit, swin_v2, torchvision_swin, torch_encoder, hand_written]
EAGER = _except(*_ONE_WAY, *TORCH, *TABLES, *BY_HAND)
# The prediction reads other than one row, or only a part of the calls is explained: `scores` is given.
SCORED = [gpt_oss, jamba, qwen3_next, *AUDIO, siglip_vision, timm_eva, timm_beit, timm_siglip, *WINDOWED]
SCORED += [torch_decoder, mha_cross, ft_transformer, learned_query, additive_lstm]
# One stack of square self-attention: rollout is the product of the calls.
_NO_STACK = [jamba, qwen3_next, *ENCODER_DECODERS, *(make for make in WINDOWED if make is not timm_sam)]
_NO_STACK += [torch_transformer, mha_bias_kv, mha_zero_attn, mha_cross, additive_lstm]
STACKS = _except(*_NO_STACK)
# What the scores of tokens must be is known, for raw attention at least.
EXPLAINED = [make for make in FAMILIES if make in STACKS or make in SCORED]
# A stack of which one row is explained.
ROWS = [make for make in STACKS if make not in SCORED]
# The prediction reads one token for each example: `reads` is given.
READING = [make for make in ROWS if make not in (deit, dinov2_registers, timm_deit_distilled, tab_transformer)]
READING += [gpt_oss, jamba, qwen3_next, mha_bias_kv, mha_zero_attn]
# Relevance is defined and has a gradient: flex_attention has none on the CPU.
RELEVANT = [make for make in STACKS if make is not flexible]

MODES = [(make, "fused") for make in FAMILIES] + [(make, "eager") for make in EAGER]
# Beside those with rows without a key, which eager code of a float64 model casts to float32: NaN.
FINITE = [pair for pair in MODES if pair != (llama_left_padded, "eager")]


def over(rows, *, beside=None, sample=None):
    """Return the decorator of a test that runs once for each family, or for each pair of one and a value.

    Args:
        rows: Families, or pairs of a family and a value.
        beside: The name of the value.
        sample: With a number, every third row from there on runs each time, and the others with the slow tests: three
            tests with three numbers see every row between them.
    """
    found = []
    for number, row in enumerate(rows):
        values = row if beside else (row,)
        name = "-".join(getattr(value, "__name__", str(value)) for value in values)
        is_quick = sample is None or (number - sample) % 3 == 0
        found.append(pytest.param(*values, id=name, marks=() if is_quick else pytest.mark.slow))
    return pytest.mark.parametrize(("make", beside) if beside else "make", found)


def each_with(families, values):
    """Return all pairs of a family and a value, in an order in which every third pair has another value."""
    n = len(values)
    return [(make, values[(i + j) % n]) for i, make in enumerate(families) for j in range(n)]
