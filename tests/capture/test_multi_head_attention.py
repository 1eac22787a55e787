"""nn.MultiheadAttention in all its settings, against its own need_weights=True."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from captum_attn_lime import capture

B, Q, K, E, H = 3, 5, 7, 16, 4


def _masks(kind: str, queries: int, keys: int):
    generator = torch.Generator().manual_seed(5)
    padding = torch.zeros(B, keys, dtype=torch.bool)
    padding[1, 4:] = True
    causal = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    per_head = torch.randn(B * H, queries, keys, generator=generator)
    per_head[..., 0] = 0.0  # some key stays allowed: torch gives NaN where none is
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "float_padding": {"key_padding_mask": torch.zeros(B, keys).masked_fill(padding, -1e9)},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": per_head[0]},
        "per_head": {"attn_mask": per_head},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "both_per_head": {"attn_mask": per_head > 0.5, "key_padding_mask": padding},
    }[kind]


MASKS = ["none", "padding", "float_padding", "bool", "float", "per_head", "both", "both_per_head"]


@pytest.mark.parametrize(
    ("mask", "need_weights", "batch_first"), list(itertools.product(MASKS, [True, False], [True, False]))
)
def test_masks_and_modes(mask, need_weights, batch_first):
    layer = nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    x = torch.randn(B, Q, E)
    x = x if batch_first else x.transpose(0, 1)
    masks = _masks(mask, Q, Q)
    expected_output, expected = layer(x, x, x, average_attn_weights=False, **masks)
    with capture(layer) as maps:
        output, _ = layer(x, x, x, need_weights=need_weights, **masks)
    assert (output - expected_output).abs().max() < 1e-6
    assert (maps[0].kind, maps[0].shape) == ("self", (B, H, Q, Q))
    assert (maps[0].dense() - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("extra", "need_weights"), list(itertools.product(["kdim", "bias_kv", "zero_attn"], [True, False]))
)
def test_other_settings(extra, need_weights):
    options = {"kdim": {"kdim": 6, "vdim": 10}, "bias_kv": {"add_bias_kv": True}, "zero_attn": {"add_zero_attn": True}}
    layer = nn.MultiheadAttention(E, H, batch_first=True, **options[extra]).eval()
    query = torch.randn(B, Q, E)
    key, value = (torch.randn(B, K, n) for n in ((6, 10) if extra == "kdim" else (E, E)))
    masks = _masks("both", Q, K)
    _, expected = layer(query, key, value, average_attn_weights=False, **masks)
    with capture(layer) as maps:
        layer(query, key, value, need_weights=need_weights, **masks)
    assert maps[0].kind != "self"
    assert maps[0].shape == (B, H, Q, K + (extra != "kdim"))
    assert (maps[0].dense() - expected).abs().max() < 1e-6


def test_unbatched():
    layer = nn.MultiheadAttention(E, H).eval()
    x = torch.randn(Q, E)
    _, expected = layer(x, x, x, average_attn_weights=False)
    with capture(layer) as maps:
        layer(x, x, x)
    assert (maps[0].dense()[0] - expected).abs().max() < 1e-6


def test_masks_are_kept_apart_and_shared():
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    masks = _masks("both", Q, Q)
    with torch.no_grad(), capture(encoder) as maps:
        encoder(torch.randn(B, Q, E), mask=masks["attn_mask"], src_key_padding_mask=masks["key_padding_mask"])
    assert len({m.masks[0].data_ptr() for m in maps}) == 1  # one (Q, K) mask for all layers
    assert all(m.masks[1].numel() == B * Q for m in maps)
