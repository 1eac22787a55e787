"""Attention that people wrote by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from tests.families.base import HEADS, IDS, LAYERS, MASK, Family, allowed_keys, from_linear_layers, output_of
from tests.families.readouts import attention_pooling, first_row_alone
from tests.reference.attention import softmax_rows, split_heads

ALLOWED = allowed_keys(MASK, 7, causal=False)


class HandWritten(nn.Module):
    """softmax(QKᵀ/√d)V written out, in a residual block, reading the first token."""

    class Attention(nn.Module):
        """Written with `@`; other handwritings replace `mix`."""

        key_heads = HEADS

        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(32, 32)
            self.key, self.value = (nn.Linear(32, 8 * self.key_heads) for _ in range(2))
            self.out = nn.Linear(32, 32)

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            # (B, N, H, d)
            query, key, value = (f(x).view(*x.shape[:2], -1, 8) for f in (self.query, self.key, self.value))
            return self.out(self.mix(query, key, value, None if mask is None else mask[:, None, None, :] == 0))

        def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            weights = masked_softmax(query @ key.transpose(-2, -1) / 8**0.5, hidden)
            return (weights @ value).transpose(1, 2).flatten(2)

    def __init__(self, attention: type[HandWritten.Attention] | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(70, 32)
        self.layers = nn.ModuleList((attention or HandWritten.Attention)() for _ in range(LAYERS))
        self.head = nn.Linear(32, 3)

    def states(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, mask)
        return x

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.states(ids, mask)[:, 0])


def masked_softmax(scores: Tensor, hidden: Tensor | None) -> Tensor:
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1)


def _family(name: str, title: str, model: nn.Module, **options: Any) -> Family:
    if "oracle" not in options:
        oracle, hooked = from_linear_layers([f"layers.{i}" for i in range(LAYERS)], ALLOWED)
        options |= {"oracle": oracle, "hooked": hooked}
    options = {"reads": [0, 0], "group": "hand-written"} | options
    model = model.eval()
    return Family(name, model, model, IDS, (MASK,), title=title, **options)


def hand_written() -> Family:
    return _family("hand_written", "softmax(QKᵀ/√d) @ V", HandWritten())


class Einsum(HandWritten.Attention):
    """Letters for heads, which stay behind the tokens."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        weights = masked_softmax(torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5, hidden)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)


def einsum_heads() -> Family:
    return _family("einsum_heads", "einsum with a letter for heads", HandWritten(Einsum))


class Folded(HandWritten.Attention):
    """Heads and examples in one dimension, for bmm."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        batch, n, heads, d = query.shape
        query, key, value = (x.transpose(1, 2).reshape(batch * heads, n, d) for x in (query, key, value))
        if hidden is not None:
            hidden = hidden.expand(batch, heads, n, n).reshape(batch * heads, n, n)
        weights = masked_softmax(torch.bmm(query, key.transpose(1, 2)) / d**0.5, hidden)
        return torch.bmm(weights, value).view(batch, heads, n, d).transpose(1, 2).reshape(batch, n, heads * d)


def bmm_folded() -> Family:
    return _family("bmm_folded", "bmm with heads folded into the batch", HandWritten(Folded))


def _turned(x: Any, angles: Any, join: Any) -> Any:
    """Rotate the first half of the features against the second by angles (N, d / 2); x is (..., N, d)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = (np.cos, np.sin) if isinstance(x, np.ndarray) else (torch.cos, torch.sin)
    return join([first * cos(angles) - second * sin(angles), first * sin(angles) + second * cos(angles)], -1)


class Flexible(HandWritten.Attention):
    """flex_attention, which compiles itself; the mask is a function of positions."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        query, key, value = (x.transpose(1, 2).contiguous() for x in (query, key, value))
        batch, _, n, _ = query.shape
        block_mask = None
        if hidden is not None:
            allowed = ~hidden[:, 0, 0]
            block_mask = create_block_mask(lambda b, h, i, j: allowed[b, j], batch, None, n, n, device=query.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is slow uncompiled
            return flex_attention(query, key, value, block_mask=block_mask).transpose(1, 2).flatten(2)


def flexible() -> Family:
    return _family("flexible", "flex_attention", HandWritten(Flexible))


class Exponentials(HandWritten.Attention):
    """The softmax written out."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scores = query @ key.mT / 8**0.5
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        if hidden is not None:
            powers = powers * ~hidden
        return (powers / powers.sum(-1, keepdim=True) @ value).transpose(1, 2).flatten(2)


def exponentials() -> Family:
    return _family("exponentials", "softmax written out with exponentials", HandWritten(Exponentials))


class Rotary(HandWritten.Attention):
    """Queries and keys turned by their positions."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        angles = torch.arange(query.shape[2])[:, None] * 10.0 ** -torch.arange(4, dtype=query.dtype)
        query, key = (_turned(x, angles, torch.cat) for x in (query, key))
        return (masked_softmax(query @ key.mT / 8**0.5, hidden) @ value).transpose(1, 2).flatten(2)


def rotary() -> Family:
    angles = np.arange(7)[:, None] * 10.0 ** -np.arange(4)

    def oracle(seen: dict) -> list[np.ndarray]:
        parts = [
            [_turned(split_heads(output_of(seen, f"layers.{i}.{p}"), HEADS), angles, np.concatenate) for p in QK]
            for i in range(LAYERS)
        ]
        return [softmax_rows(*qk, ALLOWED) for qk in parts]

    model = HandWritten(Rotary)
    return _family("rotary", "rotary positions by hand", model, oracle=oracle, hooked=_query_and_key())


QK = ("query", "key")


def _query_and_key() -> list[str]:
    return [f"layers.{i}.{p}" for i in range(LAYERS) for p in QK]


class Normed(HandWritten.Attention):
    """Queries and keys of one length, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(6.0))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        query, key = (nn.functional.normalize(x, dim=-1).transpose(1, 2) for x in (query, key))
        weights = masked_softmax(query @ key.mT * self.temperature, hidden)
        return (weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2)


def qk_norm() -> Family:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).sum(-1, keepdims=True))

    def oracle(seen: dict) -> list[np.ndarray]:
        parts = [[unit(split_heads(output_of(seen, f"layers.{i}.{p}"), HEADS)) for p in QK] for i in range(LAYERS)]
        # softmax_rows divides by the root of d = 8; the model multiplies with its temperature.
        return [softmax_rows(query * 6 * 8**0.5, key, ALLOWED) for query, key in parts]

    return _family("qk_norm", "QK-norm", HandWritten(Normed), oracle=oracle, hooked=_query_and_key())


class MultiQuery(HandWritten.Attention):
    """One key and value head, which all query heads share."""

    key_heads = 1


def multi_query() -> Family:
    def oracle(seen: dict) -> list[np.ndarray]:
        return [
            softmax_rows(
                split_heads(output_of(seen, f"layers.{i}.query"), HEADS),
                split_heads(output_of(seen, f"layers.{i}.key"), 1),
                ALLOWED,
            )
            for i in range(LAYERS)
        ]

    return _family("multi_query", "multi-query", HandWritten(MultiQuery), oracle=oracle, hooked=_query_and_key())


class LearnedQuery(HandWritten):
    """The tokens pooled by attention from one learned query per head."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.randn(1, HEADS, 1, 8))
        self.pool_key, self.pool_value = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.states(ids, mask)
        key, value = (f(x).view(*x.shape[:2], HEADS, 8).transpose(1, 2) for f in (self.pool_key, self.pool_value))
        hidden = None if mask is None else mask[:, None, None, :] == 0
        weights = masked_softmax(self.asked @ key.transpose(-2, -1) / 8**0.5, hidden)
        return self.head((weights @ value).flatten(1))


def learned_query() -> Family:
    model = LearnedQuery()
    below, hooked = from_linear_layers([f"layers.{i}" for i in range(LAYERS)], ALLOWED)

    def oracle(seen: dict) -> list[np.ndarray]:
        asked = model.asked.detach().double().expand(2, -1, -1, -1).numpy()
        return [*below(seen), softmax_rows(asked, split_heads(output_of(seen, "pool_key"), HEADS), ALLOWED[:, :1])]

    return _family(
        "learned_query",
        "attention pooling by a learned query",
        model,
        oracle=oracle,
        hooked=[*hooked, "pool_key"],
        reads=None,
        kinds=["self"] * LAYERS + ["pool"],
        scores=attention_pooling,
    )


class Additive(nn.Module):
    """Bahdanau's attention over a bidirectional LSTM, as in "Attention is not Explanation"."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(70, 12)
        self.lstm = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.project_key, self.score, self.head = nn.Linear(16, 16), nn.Linear(16, 1, bias=False), nn.Linear(16, 2)
        nn.init.normal_(self.score.weight, std=3.0)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1).cpu()
        packed = rnn.pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=ids.shape[1])
        scores = self.score(torch.tanh(self.project_key(states)))
        if mask is not None:
            scores = scores.masked_fill(mask[:, :, None] == 0, float("-inf"))
        return self.head((torch.softmax(scores, dim=1) * states).sum(dim=1))


def additive_lstm() -> Family:
    def oracle(seen: dict) -> list[np.ndarray]:
        scores = output_of(seen, "score")[:, None, None, :, 0]  # (B, 1, 1, N)
        # With keys of width 1 and a query of 1, softmax_rows is the softmax of the scores.
        return [softmax_rows(np.ones((2, 1, 1, 1)), scores.swapaxes(2, 3), ALLOWED[:, :1])]

    return _family(
        "additive_lstm",
        "additive attention over an LSTM",
        Additive(),
        oracle=oracle,
        hooked=["score"],
        reads=None,
        kinds=["pool"],
        products=False,
        scores=first_row_alone,
    )
