"""Windowed attention put back on the grid of tokens: by what it may see, whatever way it was cut into windows.

The oracle knows nothing of views and shifts. It is told which tokens share a window, computes every score from the
token's own projections, and counts the places of a window that padding fills.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime._capture.session import record
from captum_attn_lime.errors import AttentionKindError, SelectionError, TokenMapError, UnreadableAttentionError
from captum_attn_lime.methods import Rollout
from tests.families.base import build
from tests.families.checks import captured
from tests.families.windowed import PADDED, PATCH, pixels, plain_product, spread_out, swin, timm_swin, torchvision_swin
from tests.reference.attention import fuse

HEADS, WIDTH, DIM = 2, 3, 8


def _cut(x: Tensor) -> Tensor:
    """(B, rows, columns, C) to (B * windows, w * w, C)."""
    b, rows, columns, c = x.shape
    x = x.view(b, rows // WIDTH, WIDTH, columns // WIDTH, WIDTH, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WIDTH * WIDTH, c)


def _joined(x: Tensor, rows: int, columns: int) -> Tensor:
    x = x.view(-1, rows // WIDTH, columns // WIDTH, WIDTH, WIDTH, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, x.shape[-1])


class Attention(nn.Module):
    """Attention over (X, w, C), written in one of several ways."""

    def __init__(self, how: str = "fused") -> None:
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.qkv(x).chunk(3, dim=-1))

    def attend(self, *projected: Tensor) -> Tensor:
        groups, w, _ = projected[0].shape
        q, k, v = (p.reshape(groups, w, HEADS, -1).transpose(1, 2) for p in projected)
        if self.how == "fused":
            out = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "eager":
            out = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        else:  # heads folded into the windows, behind or before them
            q, k, v = (p if self.how == "folded" else p.transpose(0, 1) for p in (q, k, v))
            q, k, v = (p.reshape(groups * HEADS, w, -1) for p in (q, k, v))
            out = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
            out = out.reshape(groups, HEADS, w, -1) if self.how == "folded" else out.reshape(HEADS, groups, w, -1)
            out = out if self.how == "folded" else out.transpose(0, 1)
        return out.transpose(1, 2).reshape(groups, w, DIM)


class Layer(nn.Module):
    """A residual layer whose attention works in windows that ``way`` cuts and joins."""

    def __init__(self, way: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor], how: str = "fused") -> None:
        super().__init__()
        self.way, self.norm, self.attention = way, nn.LayerNorm(DIM), Attention(how)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.way(self.norm(x), self.attention)


def plain(x, attention):
    return _joined(attention(_cut(x)), *x.shape[1:3])


def shifted(x, attention):
    x = torch.roll(x, (-1, -2), dims=(1, 2))
    return torch.roll(_joined(attention(_cut(x)), *x.shape[1:3]), (1, 2), dims=(1, 2))


def padded(x, attention):
    rows, columns = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -columns % WIDTH, 0, -rows % WIDTH))
    return _joined(attention(_cut(x)), *x.shape[1:3])[:, :rows, :columns]


def over_columns(x, attention):
    b, rows, columns, c = x.shape
    out = attention(x.permute(0, 2, 1, 3).reshape(b * columns, rows, c))
    return out.reshape(b, columns, rows, c).permute(0, 2, 1, 3)


def on_a_coarse_grid(x, attention):
    b, rows, columns, c = x.shape
    x = x.view(b, WIDTH, rows // WIDTH, WIDTH, columns // WIDTH, c).permute(0, 2, 4, 1, 3, 5)
    out = attention(x.reshape(-1, WIDTH * WIDTH, c)).view(b, rows // WIDTH, columns // WIDTH, WIDTH, WIDTH, c)
    return out.permute(0, 3, 1, 4, 2, 5).reshape(b, rows, columns, c)


def windows_before_examples(x, attention):
    b, rows, columns, c = x.shape
    cut = _cut(x).view(b, -1, WIDTH * WIDTH, c).transpose(0, 1).reshape(-1, WIDTH * WIDTH, c)
    out = attention(cut).view(-1, b, WIDTH * WIDTH, c).transpose(0, 1).reshape(-1, WIDTH * WIDTH, c)
    return _joined(out, rows, columns)


def projected_on_the_grid(x, attention):
    parts = attention.qkv(x).split(DIM, dim=-1)
    return _joined(attention.attend(*(_cut(p) for p in parts)), *x.shape[1:3])


def channels_first(x, attention):
    x = x.permute(0, 3, 1, 2).contiguous()  # (B, C, rows, columns)
    return plain(x.permute(0, 2, 3, 1), attention)


def _square(row: int, column: int) -> tuple[int, int]:
    return row // WIDTH, column // WIDTH


# The way, the grid, and which cells share a window.
WAYS: dict[str, tuple[Callable, tuple[int, int], Callable[[int, int], tuple[int, int]]]] = {
    "plain": (plain, (6, 9), _square),
    "shifted": (shifted, (6, 9), lambda r, c: _square((r - 1) % 6, (c - 2) % 9)),
    "padded": (padded, (5, 7), _square),
    "padded to one window": (padded, (2, 3), _square),
    "over columns": (over_columns, (4, 4), lambda r, c: (0, c)),
    "on a coarse grid": (on_a_coarse_grid, (6, 9), lambda r, c: (r % 2, c % 3)),
    "windows before examples": (windows_before_examples, (6, 9), _square),
    "projected on the grid": (projected_on_the_grid, (6, 9), _square),
    "channels first": (channels_first, (6, 9), _square),
}


def _expected(layer: Layer, x: Tensor, window_of: Callable[[int, int], tuple[int, int]], places: int) -> np.ndarray:
    batch, rows, columns, _ = x.shape
    with torch.no_grad():
        at_tokens = layer.attention.qkv(layer.norm(x)).reshape(batch, rows * columns, 3, HEADS, -1).numpy()
    at_padding = layer.attention.qkv.bias.detach().reshape(3, HEADS, -1).numpy()
    windows = [window_of(r, c) for r in range(rows) for c in range(columns)]
    out = np.zeros((batch, HEADS, rows * columns, rows * columns))
    for b in range(batch):
        for h in range(HEADS):
            for i, window in enumerate(windows):
                query = at_tokens[b, i, 0, h] / np.sqrt(DIM // HEADS)
                shared = [j for j, other in enumerate(windows) if other == window]
                powers = np.exp([query @ at_tokens[b, j, 1, h] for j in shared])
                total = powers.sum() + (places - len(shared)) * np.exp(query @ at_padding[1, h])
                out[b, h, i, shared] = powers / total
    return out


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("how", ["fused", "eager", "folded", "folded, heads first"])
@pytest.mark.parametrize("batch", [1, 2, 3])  # with two, as many examples as heads
def test_the_map_is_over_all_tokens_of_an_example(name, how, batch):
    way, grid, window_of = WAYS[name]
    torch.manual_seed(batch)
    layer = Layer(way, how).double()
    nn.init.normal_(layer.attention.qkv.weight, std=1.0)
    x = torch.randn(batch, *grid, DIM, dtype=torch.float64)
    with torch.no_grad(), capture(layer) as maps:
        layer(x)
    places = grid[0] if name == "over columns" else WIDTH * WIDTH
    expected = _expected(layer, x, window_of, places)
    assert [m.kind for m in maps] == ["windowed"]
    assert maps[0].shape == expected.shape
    assert np.abs(maps[0].dense().numpy() - expected).max() < 1e-13


@pytest.mark.parametrize("name", WAYS)
def test_values_and_outputs_are_in_the_order_of_tokens(name):
    way, grid, _ = WAYS[name]
    layer = Layer(way).double()
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    with torch.no_grad(), record(layer, leaf_at=0, values_at=(0,)) as recorder:
        out = layer(x)
        value = layer.attention.qkv(layer.norm(x))[..., -DIM:].reshape(2, -1, HEADS, DIM // HEADS).transpose(1, 2)
    assert torch.allclose(recorder.values[0], value, atol=1e-14)
    gradient = torch.autograd.grad((out * x).sum(), recorder.leaf)[0]
    by_token = recorder.leaf_rows(gradient)  # the gradient at each token's own attention output is what x holds there
    assert torch.equal(by_token, x.reshape(2, -1, HEADS, DIM // HEADS).transpose(1, 2))


class Stack(nn.Module):
    """Two layers over a grid, and a mean over its tokens."""

    def __init__(self, *ways: Callable, always_shifted: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(way) for way in ways)
        self.always_shifted = always_shifted

    def forward(self, x: Tensor) -> Tensor:
        if self.always_shifted:
            x = torch.roll(x, 1, dims=1)
        for layer in self.layers:
            x = layer(x)
        return x.mean(dim=(1, 2))


@pytest.mark.parametrize("always_shifted", [False, True])
def test_layers_of_different_windows_are_over_the_same_tokens(always_shifted):
    """Also where the grid is shifted once for all layers: the tokens stay those that came."""
    model = Stack(plain, shifted, always_shifted=always_shifted).double()
    x = torch.randn(2, 6, 9, DIM, dtype=torch.float64)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    down = 1 if always_shifted else 0
    first, second = model.layers
    moved = torch.roll(x, down, dims=1)
    to_rows = np.arange(54).reshape(6, 9)
    order = np.roll(to_rows, down, axis=0).flatten()  # which token stands in each cell
    expected = np.zeros((2, HEADS, 54, 54))
    expected[:, :, order[:, None], order] = _expected(first, moved, WAYS["plain"][2], 9)
    assert np.abs(maps[0].dense().numpy() - expected).max() < 1e-13
    with torch.no_grad():
        expected[:, :, order[:, None], order] = _expected(second, first(moved), WAYS["shifted"][2], 9)
    assert np.abs(maps[1].dense().numpy() - expected).max() < 1e-13


def test_rollout_over_windows_and_a_shift_reads_the_mean():
    model = Stack(plain, shifted, padded).double()
    x = torch.randn(2, 6, 9, DIM, dtype=torch.float64)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    expected = plain_product([m.dense().numpy() for m in maps]).mean(axis=1)
    tokens = torch.arange(54).reshape(6, 9, 1)
    found = AttentionAttribution(model).attribute(x, token_map=tokens)
    assert np.abs(found[..., 0].reshape(2, 54).numpy() - expected).max() < 1e-13


def by_index(x, attention):
    """The tokens are picked one by one: nothing is known of their places then."""
    b, rows, columns, c = x.shape
    order = torch.arange(rows * columns).flip(0)
    out = attention(x.reshape(b, -1, c)[:, order].reshape(-1, WIDTH * WIDTH, c))
    return out.reshape(b, -1, c)[:, order].reshape(b, rows, columns, c)


def by_a_join(x, attention):
    """A shift written as a join of two parts."""
    x = torch.cat([x[:, 1:], x[:, :1]], dim=1)
    out = _joined(attention(_cut(x)), *x.shape[1:3])
    return torch.cat([out[:, -1:], out[:, :-1]], dim=1)


def overlapping(x, attention):
    """Every token is in two windows."""
    b, rows, columns, c = x.shape
    twice = torch.stack([x, x], dim=1).reshape(2 * b, rows, columns, c)
    return _joined(attention(_cut(twice)), rows, columns).reshape(b, 2, rows, columns, c).sum(1)


def reflected(x, attention):
    """Padding that repeats tokens."""
    rows, columns = x.shape[1:3]
    x = F.pad(x.permute(0, 3, 1, 2), (0, -columns % WIDTH, 0, -rows % WIDTH), mode="reflect").permute(0, 2, 3, 1)
    return _joined(attention(_cut(x)), *x.shape[1:3])[:, :rows, :columns]


def across_examples(x, attention):
    """Windows of the first row of every example."""
    b, rows, columns, c = x.shape
    out = attention(x.permute(1, 0, 2, 3).reshape(rows, b * columns, c))
    return out.reshape(rows, b, columns, c).permute(1, 0, 2, 3)


@pytest.mark.parametrize("way", [by_index, by_a_join, overlapping, reflected, across_examples])
def test_where_tokens_cannot_be_told_the_call_is_left_as_it_is_and_explanations_refuse_it(way):
    grid = (5, 8) if way is reflected else (6, 9)
    model = Stack(way)
    x = torch.randn(2, *grid, DIM)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert [m.kind for m in maps] == ["self"]
    assert maps[0].shape[0] not in (1, 2)
    with pytest.raises(AttentionKindError, match=r"'layers\.0\.attention' runs over \d+ groups of tokens"):
        AttentionAttribution(model).attribute(x, token_map=torch.arange(grid[0] * grid[1]).reshape(*grid, 1))


def test_windows_of_multihead_attention_are_told_unless_their_number_is_their_length():
    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.attention = width, nn.MultiheadAttention(DIM, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.reshape(-1, self.width, DIM)
            return self.attention(windows, windows, windows)[0].reshape(x.shape).mean(1)

    x = torch.randn(2, 8, DIM)
    model = Model(2).eval()
    with torch.no_grad(), capture(model) as maps:
        model(x)
        expected = model.attention(*[x.reshape(-1, 2, DIM)] * 3, average_attn_weights=False)[1]
    blocks = torch.stack([torch.stack([torch.block_diag(*w) for w in e.transpose(0, 1)]) for e in expected.split(4)])
    assert maps[0].kind == "windowed"
    assert torch.allclose(maps[0].dense(), blocks, atol=1e-6)
    model = Model(4).eval()  # four windows of four: (4, 4, C) may be either way round
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert maps[0].shape == (4, HEADS, 4, 4)


@pytest.mark.parametrize("make", [swin, timm_swin, torchvision_swin], ids=lambda f: f.__name__)
def test_stages_are_explained_one_by_one(make):
    family = build(make, torch.float64)
    layers = family.recompute()
    with pytest.raises(AttentionKindError, match=r"tokens merge\)\. Choose layers= over the same tokens"):
        AttentionAttribution(family.forward, method="rollout").attribute(family.inputs)
    for chosen, side in ((slice(0, 2), PATCH), (slice(2, 4), 2 * PATCH)):
        stage = layers[chosen]
        n, size = stage[0].shape[-1], family.inputs.shape[2:]
        tokens = pixels(tuple(size), (-(-size[0] // side), -(-size[1] // side)), side).numpy()
        assert tokens.max() == n - 1
        query = torch.rand(2, n, dtype=torch.float64)
        expected = np.einsum("bq,bqk->bk", query.numpy(), plain_product(stage))[:, tokens]
        attribution = AttentionAttribution(family.forward, method="rollout", layers=chosen)
        found = attribution.attribute(family.inputs, query=query)
        assert np.abs(found.numpy() - expected[:, None]).max() < 1e-12
        expected = plain_product(stage).mean(axis=1)[:, tokens]
        query = "auto" if side > PATCH else "mean"
        found = attribution.attribute(family.inputs, query=query)
        assert np.abs(found.numpy() - expected[:, None]).max() < 1e-12
    with pytest.raises(SelectionError, match="pass query="):
        AttentionAttribution(family.forward, layers=[0, 1]).attribute(family.inputs)


def test_layers_of_two_stages_may_be_read_raw_but_not_multiplied():
    family = build(swin)
    with pytest.raises(AttentionKindError, match="Choose layers="):
        Rollout()(captured(family), torch.rand(2, 30))


def _swin_over(stem: nn.Module) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=3)
    model.features[0][0] = stem
    return spread_out(model)


@pytest.mark.parametrize(
    ("stem", "match"),
    [
        (nn.Conv2d(3, 8, 7, stride=4, padding=3), "patches that do not overlap"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, padding=1)), "depends on several"),
    ],
)
def test_tokens_that_are_no_blocks_of_patches_ask_for_a_token_map(stem, match):
    model = _swin_over(stem)
    x = torch.randn(2, 3, *PADDED)
    attribution = AttentionAttribution(model, method="raw")
    with pytest.raises(TokenMapError, match=match):
        attribution.attribute(x)
    assert attribution.attribute(x, token_map=pixels(PADDED, (5, 6), 8)).shape == x.shape


def test_grid_attention_of_maxvit_is_told_in_timm_and_refused_by_name_in_torchvision():
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
    from torchvision.models.maxvit import MaxVit

    attention = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), grid_size=(4, 4))
    sizes = {"embed_dim": (16, 32), "depths": (1, 1), "block_type": ("M", "M"), "stem_width": 8}
    model = spread_out(MaxxVit(MaxxVitCfg(**sizes, transformer_cfg=attention), img_size=64, num_classes=3))
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(2, 3, 64, 64))
    assert [(m.kind, m.shape[2]) for m in maps] == [("windowed", 256)] * 2 + [("windowed", 64)] * 2
    row, column = np.divmod(np.arange(256), 16)
    for attention_map, groups in ((maps[0], (row // 4) * 4 + column // 4), (maps[1], (row % 4) * 4 + column % 4)):
        seen = fuse(attention_map.dense().numpy(), "mean") > 0
        assert (seen == (groups[:, None] == groups)).all()
    options = {"stem_channels": 8, "partition_size": 4, "block_channels": [16], "block_layers": [1], "head_dim": 8}
    model = MaxVit(input_size=(32, 32), stochastic_depth_prob=0.0, num_classes=3, **options).eval()
    with pytest.raises(UnreadableAttentionError, match=r"B G H I J.*'blocks\.0\.layers\.0\.layers\.window_attention"):
        AttentionAttribution(model).attribute(torch.randn(2, 3, 32, 32))


def test_keys_that_stand_in_another_order_than_queries_are_not_self_attention():
    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            q, k, v = (f(x).unflatten(2, (2, 4)).transpose(1, 2) for f in self.project)
            return torch.nn.functional.scaled_dot_product_attention(q, k.roll(1, 2), v.roll(1, 2))

    model = Rolled().eval()
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(3, 6, 8))
    assert [m.kind for m in maps] == ["unknown"]
