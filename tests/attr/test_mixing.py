"""What mixes tokens beside attention is found, and products of layers over it are refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, describe
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.attr._passes import Request
from captum_attn_lime.attr._probing import mixed_layers
from captum_attn_lime.errors import AttentionKindError
from tests.families import build
from tests.families.facts import STACKS, over

N, WIDTH = 9, 8


class Block(nn.Module):
    def __init__(self, mixer=None):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.mixer = mixer

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x if self.mixer is None else self.mixer(x)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x):
        return x + self.convolution(x.transpose(1, 2)).transpose(1, 2)


class Recurrence(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return x + self.rnn(x)[0]


class Gate(nn.Module):
    """Features scaled by their mean over tokens, as squeeze-and-excitation does."""

    def forward(self, x):
        return x * x.mean(1, keepdim=True).sigmoid()


class IntoFirst(nn.Module):
    """The mean of all tokens goes into the first alone."""

    def forward(self, x):
        return torch.cat([x[:, :1] + x[:, 1:].mean(1, keepdim=True), x[:, 1:]], 1)


class Linear(nn.Module):
    """Linear attention: no softmax, no matrix."""

    def forward(self, x):
        q = x.softmax(-1) + 0.1
        return x + q @ (q.transpose(1, 2) @ x) / N


def _model(*mixers):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Block(m) for m in mixers)
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.head(x[:, 0])

    return Model().eval()


@pytest.mark.parametrize("mixer", [Convolution, Recurrence, Gate, Linear, IntoFirst])
def test_products_over_mixed_tokens_are_refused_and_what_lies_behind_is_not(mixer):
    model, x = _model(None, mixer(), None, None), torch.randn(2, N, WIDTH)
    assert mixed_layers(model, (x,), (), [0, 1, 2, 3]) == {2, 3}
    with pytest.raises(AttentionKindError, match=r"'layers.0.attention' and 'layers.2.attention'.*layers="):
        AttentionAttribution(model).attribute(x)
    # Below the mixing, above it, and without products, all is well.
    AttentionAttribution(model, layers=slice(0, 2)).attribute(x, query=0)
    token_map = torch.arange(N)[:, None]
    AttentionAttribution(model, layers=slice(2, 4)).attribute(x, token_map=token_map)
    AttentionAttribution(model, method="raw").attribute(x, token_map=token_map)


def test_what_keeps_tokens_apart_is_not_mixing():
    tokenwise = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
    model, x = _model(tokenwise, nn.LayerNorm(WIDTH), nn.Dropout(0.5)), torch.randn(2, N, WIDTH)
    assert mixed_layers(model, (x,), (), [0, 1, 2]) == set()
    # A random model cannot be tried out; nothing is claimed of it.
    assert mixed_layers(model.train(), (x,), (), [0, 1, 2]) == set()


@over(STACKS, sample=1)
def test_no_family_mixes_tokens_but_by_attention(make):
    family = build(make)
    inputs = family.inputs if isinstance(family.inputs, tuple) else (family.inputs,)
    done = ExplainedModel(family.forward).run(inputs, family.args, Request(readout=False))
    calls = [m.index for m in done.maps]
    assert mixed_layers(family.forward, inputs, family.args, calls) == set()


def test_the_decoder_of_an_encoder_decoder_is_not_said_to_be_mixed():
    """Its tokens are other ones than the encoder's, which reach it by cross-attention."""
    from tests.families.encoder_decoders import bart

    family = build(bart)
    described = describe(family.forward, family.inputs, family.args)
    assert [layer.mixed for layer in described.layers] == [False] * len(described.layers)
    assert "cross" in [layer.kind for layer in described.layers]


def test_a_mask_as_further_argument_is_not_repeated():
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(N)
    scores = AttentionAttribution(lambda x, m: encoder(x, mask=m)[:, -1]).attribute(
        torch.randn(2, N, WIDTH), additional_forward_args=(mask,)
    )
    assert torch.allclose(scores[:, :, 0].sum(1), torch.ones(2))


def test_an_argument_that_switches_mixing_on_is_tried_by_itself():
    model, x = _model(None, None), torch.randn(2, N, WIDTH)

    def forward(x, mixes):
        x = model.layers[0](x)
        return model.head(model.layers[1](x.cumsum(1) if mixes else x)[:, 0])

    attribution = AttentionAttribution(forward)
    attribution.attribute(x, additional_forward_args=(False,))
    with pytest.raises(AttentionKindError, match="mixes tokens"):
        attribution.attribute(x, additional_forward_args=(True,))
    attribution.attribute(x, additional_forward_args=(False,))
