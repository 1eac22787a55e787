"""Attention that people wrote by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.base import HEADS, IDS, LAYERS, MASK, Family, allowed_keys, from_linear_layers


class HandWritten(nn.Module):
    """softmax(QKᵀ/√d)V written out, in a residual block, reading the first token."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            batch, n, _ = x.shape
            query, key, value = (
                f(x).view(batch, n, HEADS, 8).transpose(1, 2) for f in (self.query, self.key, self.value)
            )
            scores = query @ key.transpose(-2, -1) / 8**0.5
            if mask is not None:
                scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
            return self.out((torch.softmax(scores, dim=-1) @ value).transpose(1, 2).reshape(batch, n, 32))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(70, 32)
        self.layers = nn.ModuleList(HandWritten.Attention() for _ in range(LAYERS))
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, mask)
        return self.head(x[:, 0])


def hand_written() -> Family:
    model = HandWritten().eval()
    names = [f"layers.{i}" for i in range(LAYERS)]

    oracle, hooked = from_linear_layers(names, allowed_keys(MASK, 7, causal=False))
    return Family("hand_written", model, model, IDS, (MASK,), [0, 0], oracle, hooked)
