"""A small model that can be changed in many ways, and used and fresh attributions compared."""

from __future__ import annotations

import torch
from torch import nn

from captum_attn_lime.errors import ExplanationError

N, WIDTH = 9, 16


def layer():
    return nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0)


class Gated(nn.Module):
    """Two layers, and between them a convolution over tokens behind a gate that is shut."""

    def __init__(self, dilation=1):
        super().__init__()
        self.first, self.second = layer(), layer()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.gate = nn.Parameter(torch.tensor(0.0))
        self.head = nn.Linear(WIDTH, 2)
        self.register_buffer("open", torch.zeros(1))
        self.is_open, self.settings, self.mixing = False, {"open": False}, 0

    def forward(self, x, scale=None, *, is_open=False):
        x = self.first(x)
        gate = self.gate + self.open + self.is_open + self.settings["open"] + self.mixing + is_open
        gate = gate if scale is None else gate + scale
        x = x + gate * self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.second(x)[:, 0])


def outcome(attribution, x, **options):
    try:
        return attribution.attribute(x, **options)
    except ExplanationError as error:
        return type(error)


def assert_same(used, fresh, x, **options):
    found, expected = outcome(used, x, **options), outcome(fresh, x, **options)
    if isinstance(expected, type):
        assert found is expected
    else:
        assert not isinstance(found, type), found
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    return expected
