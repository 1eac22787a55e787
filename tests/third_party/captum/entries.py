"""This package's attributions in the form of Captum's test configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution, LimeImage, LimeSequence, LimeTabular, LimeText
from captum_attn_lime.methods import Rollout

N, WIDTH = 5, 8


# Captum's tests build an attribution of a model, or of a model and one of its layers.
class RawAttention(AttentionAttribution):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model, method="raw")


class MaximalRollout(AttentionAttribution):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model, method=Rollout(head_fusion="max"))


class Relevance(AttentionAttribution):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model, method="relevance")


class Words(LimeText):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model)


class Columns(LimeTabular):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
        super().__init__(model, rows.numpy() * 10)


class Steps(LimeSequence):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        series = torch.randn(60, 3, 2, generator=torch.Generator().manual_seed(1))
        super().__init__(model, series.numpy() * 10)


class Segments(LimeImage):
    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__(model)


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


class Table(nn.Module):
    """Logits (B, 2) of one or two tables of three columns; Captum's toy models have the same slopes for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.relu, self.linear2 = nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)

    def forward(self, x: Tensor, other: Tensor | None = None, added: Tensor | None = None, scale: Any = 1) -> Tensor:
        x = x if other is None else x * other + added
        return self.linear2(self.relu(self.linear1(x))) * scale


class Cells(nn.Module):
    """Logits (B, 2) of all numbers of an input, in whatever shape they come."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.linear1, self.relu, self.linear2 = nn.Linear(cells, 16), nn.ReLU(), nn.Linear(16, 2)

    def forward(self, x: Tensor, scale: Any = 1) -> Tensor:
        return self.linear2(self.relu(self.linear1(x.flatten(1)))) * scale


def cells(n: int) -> Cells:
    torch.manual_seed(7)
    return Cells(n).eval()


def table() -> Table:
    torch.manual_seed(7)
    return Table().eval()


def model(kind: str) -> Encoder:
    torch.manual_seed(7)
    return Encoder(kind).eval()


STATES = torch.randn(4, N, WIDTH, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([[2, 7, 4, 9, 3], [5, 5, 8, 1, 2], [9, 1, 6, 2, 2], [3, 3, 8, 4, 7]])
TABLES = tuple(torch.randn(4, N, generator=torch.Generator().manual_seed(k)) for k in (3, 4))
ROWS = 10 * torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
POSITIVE = tuple(torch.randn(4, 3, generator=torch.Generator().manual_seed(k)) + 2 for k in (6, 7, 8))
SERIES = 10 * torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(9))
PICTURES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(10))
QUARTERS = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).expand(1, 3, 4, 4)
ATTENTION = [RawAttention, MaximalRollout, Relevance]
LIST, TENSOR = [0, 1, 2, 1], torch.tensor([0, 1, 2, 1])
PAIRS = [(0, 1), (1, 2), (0, 0), (1, 1)]
STILL = {"stdevs": 0.0, "nt_samples": 3}


def entry(
    name: str,
    algorithms: list[type],
    model: nn.Module,
    *,
    layer: str | None = None,
    noise_tunnel: bool = False,
    **arguments: Any,
) -> dict[str, Any]:
    # Captum tests the hooks of each class once, so each entry has classes of its own.
    own = [type(algorithm.__name__, (algorithm,), {}) for algorithm in algorithms]
    out = {"name": name, "algorithms": own, "model": model, "noise_tunnel": noise_tunnel, "attribute_args": arguments}
    return out if layer is None else {**out, "layer": layer}


ENTRIES: list[dict[str, Any]] = [
    entry("states_list", ATTENTION, model("states"), inputs=STATES, target=LIST),
    entry("states_tensor", ATTENTION, model("states"), inputs=STATES, target=TENSOR),
    entry("states_single_target", ATTENTION, model("states"), inputs=STATES, target=torch.tensor([1])),
    entry("states_tuple_of_one", ATTENTION, model("states"), inputs=(STATES,), target=LIST),
    entry("pairs_tuples", ATTENTION, model("pairs"), inputs=STATES, target=PAIRS),
    entry("ids_list", ATTENTION, model("ids"), inputs=IDS, target=LIST),
    entry("ids_tensor", ATTENTION, model("ids"), inputs=IDS, target=TENSOR),
    entry("tables", ATTENTION, model("tables"), inputs=TABLES, target=LIST, additional_forward_args=(2.0,)),
    entry("noise_tunnel", ATTENTION, model("states"), noise_tunnel=True, inputs=STATES, target=LIST, **STILL),
    entry("noise_tunnel_tables", ATTENTION, model("tables"), noise_tunnel=True, inputs=TABLES, target=LIST, **STILL),
    entry("layer", ATTENTION, model("states"), layer="encoder.layers.1.linear1", inputs=STATES, target=LIST),
    entry("layer_of_ids", ATTENTION, model("ids"), layer="embed", inputs=IDS, target=TENSOR),
    entry("layer_behind_attention", ATTENTION, model("states"), layer="head", inputs=STATES, target=LIST),
    entry("words", [Words], table(), inputs=POSITIVE[0], target=[0, 1, 1, 0], n_samples=60),
    entry(
        "words_two_inputs",
        [Words],
        table(),
        inputs=POSITIVE[:2],
        additional_forward_args=(POSITIVE[2], 2),
        feature_mask=(torch.tensor([[0, 1, 2]]), torch.tensor([[3, 3, 4]])),
        target=torch.tensor([0, 1, 1, 0]),
        n_samples=60,
    ),
    entry("words_baselines", [Words], table(), inputs=ROWS, baselines=ROWS.flip(1), target=[0, 1, 1, 0]),
    entry(
        "words_noise_tunnel",
        [Words],
        table(),
        noise_tunnel=True,
        inputs=POSITIVE[0],
        target=[0, 1, 1, 0],
        n_samples=60,
        **STILL,
    ),
    entry("columns", [Columns], table(), inputs=ROWS, target=[0, 1, 1, 0], n_samples=200),
    entry("columns_tensor", [Columns], table(), inputs=ROWS, target=torch.tensor([1, 0, 0, 1])),
    entry("columns_tuple", [Columns], table(), inputs=(ROWS,), target=[0, 1, 1, 0], n_samples=200),
    entry(
        "columns_noise_tunnel",
        [Columns],
        table(),
        noise_tunnel=True,
        inputs=ROWS,
        target=[0, 1, 1, 0],
        n_samples=60,
        **STILL,
    ),
    entry(
        "layer_of_lime",
        [Words, Columns],
        table(),
        layer="linear2",
        inputs=POSITIVE[0],
        target=[0, 1, 1, 0],
        n_samples=60,
    ),
    entry("steps", [Steps], cells(6), inputs=SERIES, target=[0, 1, 1, 0], n_samples=60),
    entry("steps_tensor", [Steps], cells(6), inputs=SERIES, target=torch.tensor([1, 0, 0, 1]), n_samples=60),
    entry(
        "steps_tuple",
        [Steps],
        cells(6),
        inputs=(SERIES,),
        additional_forward_args=(2.0,),
        target=[0, 1, 1, 0],
        n_samples=60,
    ),
    entry(
        "steps_noise_tunnel",
        [Steps],
        cells(6),
        noise_tunnel=True,
        inputs=SERIES,
        target=[0, 1, 1, 0],
        n_samples=60,
        **STILL,
    ),
    entry(
        "segments",
        [Segments],
        cells(48),
        inputs=PICTURES,
        feature_mask=QUARTERS,
        target=[0, 1, 1, 0],
        n_samples=60,
    ),
    entry("segments_pixels", [Segments], cells(48), inputs=PICTURES, target=torch.tensor([1, 0, 0, 1]), n_samples=60),
    entry(
        "segments_noise_tunnel",
        [Segments],
        cells(48),
        noise_tunnel=True,
        inputs=PICTURES,
        feature_mask=QUARTERS,
        target=[0, 1, 1, 0],
        n_samples=60,
        **STILL,
    ),
]
