"""A softmax over the taps of a dynamic convolution is no attention; the attention beside it is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution
from captum_attn_lime._capture import capture
from captum_attn_lime.errors import AttentionKindError
from captum_attn_lime.testing import check_model
from tests.families import IDS, MASK
from tests.families.base import SIZES, sharpen


def _convbert() -> nn.Module:
    from transformers import ConvBertConfig, ConvBertForSequenceClassification

    config = ConvBertConfig(**SIZES, embedding_size=16, conv_kernel_size=3, max_position_embeddings=16, pad_token_id=0)
    model = ConvBertForSequenceClassification(config).eval()
    for layer in model.convbert.encoder.layer:
        nn.init.normal_(layer.attention.self.key_conv_attn_layer.bias)
    sharpen(model)
    return model


@pytest.mark.parametrize("examples", [1, 2])
def test_beside_a_dynamic_convolution_the_attention_is_read(examples):
    model = _convbert()

    def forward(ids, mask):
        return model(input_ids=ids, attention_mask=mask).logits

    ids, mask = IDS[:examples], MASK[:examples]
    with torch.no_grad(), capture(model) as maps:
        reported = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert [m.kind for m in maps] == ["self"] * 3
    for found, expected in zip(maps, reported, strict=True):
        assert torch.allclose(found.dense(), expected, atol=1e-6)
    assert check_model(forward, ids, mask, show=False).passed
    raw = AttentionAttribution(forward, method="raw").attribute(ids, additional_forward_args=mask)
    assert torch.allclose(raw, reported[-1].mean(1)[:, 0], atol=1e-6)
    # The convolution mixes tokens beside the attention: layers are not multiplied.
    with pytest.raises(AttentionKindError, match="other than attention mixes tokens"):
        AttentionAttribution(forward).attribute(ids, additional_forward_args=mask)


@pytest.mark.parametrize("examples", [1, 3])
def test_scores_of_a_linear_layer_over_tokens_are_attention(examples):
    """Pooling by learned scores looks much the same, but its softmax is over tokens."""

    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            weights = self.scores(x).transpose(1, 2).softmax(-1)  # (B, 1, N)
            return self.head((weights @ x).squeeze(1))

    model, x = Pooling().eval(), torch.randn(examples, 5, 8)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    expected = model.scores(x).squeeze(-1).softmax(-1)
    assert torch.allclose(maps[0].dense()[:, 0, 0], expected, atol=1e-6)
