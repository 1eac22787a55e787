"""Attention over channels: told from attention over tokens by where the tokens stand, and never explained as one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_attn_lime import AttentionAttribution, capture, describe
from captum_attn_lime.errors import AttentionKindError
from tests.models.small import Stack

# No two sizes are alike, but where a test makes them so.
BATCH, TOKENS, HEADS, SIZE = 2, 5, 3, 4
WIDTH = HEADS * SIZE


class Layer(nn.Module):
    """softmax(QKᵀ)V over tokens or over channels, in several handwritings."""

    def __init__(self, how: str, over: str, width: int = WIDTH):
        super().__init__()
        self.qkv, self.out, self.convolution = nn.Linear(width, 3 * width), nn.Linear(width, width), None
        if how == "convolution":
            self.convolution = nn.Conv1d(width, 3 * width, 1)
        self.how, self.over = how, over

    def forward(self, x):
        batch, n, width = x.shape
        if self.convolution is not None:
            folded = self.convolution(x.mT).reshape(batch, 3, HEADS, -1, n)  # (B, 3, H, d, N)
        else:
            folded = self.qkv(x).reshape(batch, n, 3, HEADS, -1).permute(0, 2, 3, 4, 1)
        q, k, v = (t if self.over == "channels" else t.mT for t in folded.unbind(1))
        if self.how == "fused":
            out = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            out = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        elif self.how == "turned":  # valueᵀ times weightsᵀ
            out = (v.mT @ (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1).mT).mT
        elif self.how == "folded":
            q, k, v = (t.reshape(batch * HEADS, *t.shape[2:]) for t in (q, k, v))
            out = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).reshape(batch, HEADS, *v.shape[1:])
        else:
            out = (q @ k.mT).softmax(-1) @ v
        out = out if self.over == "tokens" else out.mT  # (B, H, N, d)
        return self.out(out.transpose(1, 2).reshape(batch, n, width))


@pytest.mark.parametrize("tokens", [TOKENS, SIZE, 2])
@pytest.mark.parametrize("batch", [1, BATCH, HEADS])
@pytest.mark.parametrize("over", ["tokens", "channels"])
@pytest.mark.parametrize("how", ["matmul", "fused", "einsum", "turned", "folded", "convolution"])
def test_channels_are_told_from_tokens(how, over, batch, tokens):
    model = Stack(Layer(how, over), Layer(how, over), width=WIDTH).eval()
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(batch, tokens, WIDTH))
    assert [m.kind for m in maps] == ["self" if over == "tokens" else "channel"] * 2
    n = tokens if over == "tokens" else SIZE
    assert [m.shape for m in maps] == [(batch, HEADS, n, n)] * 2


@pytest.mark.parametrize("method", ["raw", "rollout", lambda maps, query, **_: maps[-1].vecmat(query)])
@pytest.mark.parametrize("query", ["auto", 0])
def test_attention_over_channels_is_refused_by_name(method, query):
    model, x = Stack(Layer("matmul", "channels"), width=WIDTH).eval(), torch.randn(BATCH, TOKENS, WIDTH)
    with pytest.raises(AttentionKindError, match=r"'layers\.0' is attention over channels"):
        AttentionAttribution(model, method=method).attribute(x, query=query)
    described = describe(model, x)
    assert [layer.kind for layer in described.layers] == ["channel"]
    assert described.query is None
    assert "over channels" in described.problems[0]


def test_among_layers_over_tokens_it_is_not_explained():
    model = Stack(Layer("matmul", "tokens"), Layer("matmul", "channels"), Layer("fused", "tokens"), width=WIDTH).eval()
    x = torch.randn(BATCH, TOKENS, WIDTH)
    assert [layer.explained for layer in describe(model, x).layers] == [True, False, True]
    with torch.no_grad(), capture(model) as maps:
        model(x)
    found = AttentionAttribution(model, method="raw").attribute(x)[:, :, 0]
    assert torch.allclose(found, maps[2].dense().mean(dim=(1, 2)), atol=1e-6)
    with pytest.raises(AttentionKindError, match="other than attention mixes tokens"):
        AttentionAttribution(model).attribute(x)
    with pytest.raises(AttentionKindError, match=r"'layers\.1' is attention over channels"):
        AttentionAttribution(model, method="raw", layers="layers.1").attribute(x, query=0)


def test_where_tokens_and_features_were_not_seen_the_kind_says_nothing_of_channels():
    """Without a projection (B, N, D) and (B, D, N) look alike."""

    class Bare(nn.Module):
        def forward(self, x):
            return (x @ x.mT).softmax(-1) @ x

    model = Bare()
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(BATCH, TOKENS, WIDTH))
    assert maps[0].kind == "self"


# Calls of each kind: XCiT's last two layers are of the CLS token alone, DaViT has windows and channels by turns, and
# EdgeNeXt joins convolved parts of the channels before its attention.
@pytest.mark.parametrize(
    ("name", "size", "kinds"),
    [
        ("xcit_nano_12_p16_224", 64, ["channel"] * 12 + ["unknown"] * 2),
        ("davit_tiny", 64, ["windowed", "channel"] * 6),
        ("edgenext_xx_small", 64, ["channel"] * 3),
    ],
)
def test_kinds_in_models_of_timm(name, size, kinds):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=2).eval()
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(2, 3, size, size))
    assert [m.kind for m in maps] == kinds
