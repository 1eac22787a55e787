"""This package's attributions in the form of Captum's test configuration."""

from __future__ import annotations

from typing import Any

import torch
from captum.testing.helpers.basic_models import BasicModel_MultiLayer, BasicModel_MultiLayer_MultiInput
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution, LimeTabular, LimeText

N, WIDTH = 5, 8


# Captum's tests build an attribution of a model, or of a model and one of its layers.
class RawAttention(AttentionAttribution):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model, method="raw")


class Rollout(AttentionAttribution):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model, method="rollout", head_fusion="max")


class Words(LimeText):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model)


class Columns(LimeTabular):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
        super().__init__(model, rows.numpy() * 10)


class Encoder(nn.Module):
    """Attention over states (B, N, D), ids (B, N), or the columns of two tables; logits (B, 3) or (B, 2, 3)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(20, WIDTH)
        self.columns = nn.Parameter(torch.randn(2 * N, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor, other: Tensor | None = None, scale: Any = None) -> Tensor:
        if self.kind == "ids":
            x = self.embed(x)
        elif self.kind == "tables":
            x = torch.cat([x, other], 1)[:, :, None] * self.columns
        logits = self.head(self.encoder(x).mean(1)) * (1 if scale is None else scale)
        return logits.unflatten(1, (2, 3)) if self.kind == "pairs" else logits


def model(kind: str) -> Encoder:
    torch.manual_seed(7)
    return Encoder(kind).eval()


STATES = torch.randn(4, N, WIDTH, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([[2, 7, 4, 9, 3], [5, 5, 8, 1, 2], [9, 1, 6, 2, 2], [3, 3, 8, 4, 7]])
TABLES = tuple(torch.randn(4, N, generator=torch.Generator().manual_seed(k)) for k in (3, 4))
ATTENTION = [RawAttention, Rollout]

ENTRIES: list[dict[str, Any]] = [
    {
        "name": "states_list",
        "algorithms": ATTENTION,
        "model": model("states"),
        "attribute_args": {"inputs": STATES, "target": [0, 1, 2, 1]},
    },
    {
        "name": "states_tensor",
        "algorithms": ATTENTION,
        "model": model("states"),
        "attribute_args": {"inputs": STATES, "target": torch.tensor([0, 1, 2, 1])},
    },
    {
        "name": "states_single_target",
        "algorithms": ATTENTION,
        "model": model("states"),
        "attribute_args": {"inputs": STATES, "target": torch.tensor([1])},
    },
    {
        "name": "pairs_tuples",
        "algorithms": ATTENTION,
        "model": model("pairs"),
        "attribute_args": {"inputs": STATES, "target": [(0, 1), (1, 2), (0, 0), (1, 1)]},
    },
    {
        "name": "ids_list",
        "algorithms": ATTENTION,
        "model": model("ids"),
        "attribute_args": {"inputs": IDS, "target": [0, 1, 2, 1]},
    },
    {
        "name": "tables_list_and_forward_args",
        "algorithms": ATTENTION,
        "model": model("tables"),
        "attribute_args": {"inputs": TABLES, "additional_forward_args": (2.0,), "target": [0, 1, 2, 1]},
    },
    {
        "name": "noise_tunnel",
        "algorithms": ATTENTION,
        "model": model("states"),
        "noise_tunnel": True,
        "attribute_args": {"inputs": STATES, "target": [0, 1, 2, 1], "stdevs": 0.0, "nt_samples": 3},
    },
    {
        "name": "failing_layer",
        "algorithms": [type("RawAttentionOfLayer", (RawAttention,), {}), type("RolloutOfLayer", (Rollout,), {})],
        "model": model("states"),
        "layer": "encoder.layers.1.linear1",
        "attribute_args": {"inputs": STATES, "target": [0, 1, 2, 1]},
    },
    {
        "name": "lime_words",
        "algorithms": [Words],
        "model": BasicModel_MultiLayer(),
        "attribute_args": {"inputs": torch.randn(4, 3) + 2, "target": [0, 1, 1, 0], "n_samples": 60},
    },
    {
        "name": "lime_words_tensor_and_two_inputs",
        "algorithms": [Words],
        "model": BasicModel_MultiLayer_MultiInput(),
        "attribute_args": {
            "inputs": (torch.randn(4, 3) + 2, torch.randn(4, 3) + 2),
            "additional_forward_args": (torch.randn(4, 3), 2),
            "feature_mask": (torch.tensor([[0, 1, 2]]), torch.tensor([[3, 3, 4]])),
            "target": torch.tensor([0, 1, 1, 0]),
            "n_samples": 60,
        },
    },
    {
        "name": "lime_columns",
        "algorithms": [Columns],
        "model": BasicModel_MultiLayer(),
        "attribute_args": {"inputs": 10 * torch.randn(4, 3), "target": [0, 1, 1, 0], "n_samples": 200},
    },
    {
        "name": "lime_failing_layer",
        "algorithms": [type("WordsOfLayer", (Words,), {}), type("ColumnsOfLayer", (Columns,), {})],
        "model": BasicModel_MultiLayer(),
        "layer": "linear2",
        "attribute_args": {"inputs": torch.randn(4, 3) + 2, "target": [0, 1, 1, 0], "n_samples": 60},
    },
]
