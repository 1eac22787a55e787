"""Layers that take over an earlier layer's keys and values: they stay in the stack, and are not multiplied."""

from __future__ import annotations

import pytest
import torch

from captum_attn_lime import AttentionAttribution, describe
from captum_attn_lime._capture import capture
from captum_attn_lime.errors import AttentionKindError
from tests.families import IDS, MASK
from tests.families.base import SIZES, sharpen


def _gemma3n(implementation: str):
    """Its last two layers use the keys and values of the first two."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig(
        **(SIZES | {"num_hidden_layers": 4, "num_key_value_heads": 2}), vocab_size_per_layer_input=70, head_dim=8,
        hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=2, sliding_window=4, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    model = Gemma3nForCausalLM(config).eval()
    sharpen(model)
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_layers_with_keys_of_an_earlier_layer_are_not_left_out(implementation):
    model = _gemma3n(implementation)
    last = MASK.sum(1) - 1

    def forward(ids, mask):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[torch.arange(len(ids)), mask.sum(1) - 1]

    with torch.no_grad(), capture(model) as maps:
        model(input_ids=IDS, attention_mask=MASK, use_cache=False)
    assert [m.kind for m in maps] == ["self", "self", "unknown", "unknown"]
    described = describe(forward, IDS, MASK)
    assert [layer.explained for layer in described.layers] == [True] * 4
    assert described.query.argmax(dim=1).tolist() == last.tolist()

    model.set_attn_implementation("eager")
    with torch.no_grad():
        told = model(input_ids=IDS, attention_mask=MASK, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    raw = AttentionAttribution(forward, method="raw").attribute(IDS, additional_forward_args=MASK)
    assert torch.allclose(raw, told[-1].mean(1)[torch.arange(2), last], atol=1e-5)
    # The keys' tokens are states of before the layers between, which a product would put between them.
    with pytest.raises(AttentionKindError, match=r"model\.layers\.2"):
        AttentionAttribution(forward).attribute(IDS, additional_forward_args=MASK)
