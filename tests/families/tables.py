"""Attention over the columns of a table."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tests.families.base import HEADS, LAYERS, Family, output_of
from tests.families.hand_written import HandWritten
from tests.families.readouts import last_layer_of_one_query
from tests.reference.attention import softmax_rows, split_heads

N_NUMERIC, CARDINALITIES = 4, [3, 5, 2]


def columns() -> tuple[Tensor, Tensor]:
    """Return two rows of four numbers, of very different size, and three categories."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randn(2, N_NUMERIC, generator=generator) * torch.tensor([1.0, 50.0, 0.1, 3.0])
    return numbers, torch.tensor([[0, 3, 1], [2, 4, 0]])


def ft_transformer() -> Family:
    """Tokens are CLS, the numbers, the categories; the last layer is computed for CLS only."""
    from rtdl_revisiting_models import FTTransformer

    model = FTTransformer(
        n_cont_features=N_NUMERIC, cat_cardinalities=CARDINALITIES, d_out=2, n_blocks=LAYERS, d_block=32,
        attention_n_heads=HEADS, attention_dropout=0.1, ffn_d_hidden=None, ffn_d_hidden_multiplier=1.5,
        ffn_dropout=0.1, residual_dropout=0.0,
    ).eval()  # fmt: skip
    names = [f"backbone.blocks.{i}.attention.{which}" for i in range(LAYERS) for which in ("W_q", "W_k")]

    def oracle(seen: dict) -> list[np.ndarray]:
        parts = [split_heads(output_of(seen, name), HEADS) for name in names]
        return [softmax_rows(query, key) for query, key in zip(parts[::2], parts[1::2], strict=True)]

    numbers, categories = torch.arange(N_NUMERIC) + 1, torch.arange(len(CARDINALITIES)) + 1 + N_NUMERIC
    return Family(
        "ft_transformer",
        model,
        model,
        columns(),
        oracle=oracle,
        hooked=names,
        title="FT-Transformer (rtdl)",
        group="table",
        prefix=1,
        kinds=["self"] * (LAYERS - 1) + ["pool"],
        token_of_cell=(numbers, categories),
        scores=last_layer_of_one_query,
    )


class TabTransformer(nn.Module):
    """Only the categories attend to one another; the numbers join them, all side by side, before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 32) for n in CARDINALITIES)
        self.layers = nn.ModuleList(HandWritten.Attention() for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(N_NUMERIC)
        width = 32 * len(CARDINALITIES) + N_NUMERIC
        self.head = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        x = torch.stack([table(categories[:, i]) for i, table in enumerate(self.tables)], dim=1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x), None)
        return self.head(torch.cat([x.flatten(1), self.norm(numbers)], dim=1))


def tab_transformer() -> Family:
    """The head reads every column by weights of its own: which to explain is the user's choice."""
    model = TabTransformer().eval()
    names = [f"layers.{i}.{which}" for i in range(LAYERS) for which in ("query", "key")]

    def oracle(seen: dict) -> list[np.ndarray]:
        parts = [split_heads(output_of(seen, name), HEADS) for name in names]
        return [softmax_rows(query, key) for query, key in zip(parts[::2], parts[1::2], strict=True)]

    return Family(
        "tab_transformer",
        model,
        model,
        columns(),
        oracle=oracle,
        hooked=names,
        title="TabTransformer (hand-written)",
        group="table",
        token_of_cell=(torch.full((N_NUMERIC,), -1), torch.arange(len(CARDINALITIES))),
    )
