"""Each way of writing attention is seen, exactly; what only looks like attention is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.attention import ScoreMap
from captum_attn_lime.errors import AttentionKindError, NoAttentionError, UnreadableAttentionError

N, HEADS, WIDTH = 6, 4, 16


def _softmax(scores):
    """By hand, as an oracle inside a model must not look like attention."""
    return torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)


class Layer(nn.Module):
    """One attention layer in several handwritings; keeps its weights in (B, H, Q, K) as the oracle."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style, self.weights = style, None
        self.embed = nn.Embedding(50, WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.packed = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, ids):
        x = self.embed(ids)
        return self.o((x + getattr(self, self.style)(x)).mean(1))

    def _split(self, x):
        return [f(x).view(*x.shape[:2], HEADS, -1) for f in (self.q, self.k, self.v)]

    def matmul(self, x):
        q, k, v = (t.transpose(1, 2) for t in self._split(x))
        self.weights = torch.matmul(q, k.transpose(-2, -1)).div(2).softmax(dim=-1)
        return torch.matmul(F.dropout(self.weights, 0.1, self.training), v).transpose(1, 2).flatten(2)

    def packed_projection(self, x):
        q, k, v = self.packed(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        self.weights = (q @ k.mT).div(2).softmax(-1)
        return (self.weights @ v).transpose(1, 2).flatten(2)

    def einsum(self, x):
        q, k, v = self._split(x)
        self.weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(2).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", self.weights, v).flatten(2)

    def einsum_heads_last(self, x):
        q, k, v = self._split(x)
        weights = F.softmax(torch.einsum("bqhd,bkhd->bqkh", q, k) / 2, dim=2)
        self.weights = weights.permute(0, 3, 1, 2)
        return torch.einsum("bqkh,bkhd->bqhd", weights, v).flatten(2)

    def folded_batch_first(self, x):
        q, k, v = (t.transpose(1, 2).reshape(-1, N, WIDTH // HEADS) for t in self._split(x))
        weights = torch.bmm(q, k.transpose(1, 2)).div(2).softmax(-1)
        self.weights = weights.view(-1, HEADS, N, N)
        return torch.bmm(weights, v).view(-1, HEADS, N, 4).transpose(1, 2).flatten(2)

    def folded_heads_first(self, x):
        q, k, v = (t.permute(2, 0, 1, 3).reshape(-1, N, WIDTH // HEADS) for t in self._split(x))
        weights = torch.bmm(q, k.transpose(1, 2)).div(2).softmax(-1)
        self.weights = weights.view(HEADS, -1, N, N).transpose(0, 1)
        return torch.bmm(weights, v).view(HEADS, -1, N, 4).permute(1, 2, 0, 3).flatten(2)

    def folded_sequence_first(self, x):
        x = x.transpose(0, 1)  # (N, B, E)
        batch = x.shape[1]
        q, k, v = (f(x).view(N, batch * HEADS, -1).transpose(0, 1) for f in (self.q, self.k, self.v))
        weights = torch.bmm(q, k.transpose(1, 2)).div(2).softmax(-1)
        self.weights = weights.view(batch, HEADS, N, N)
        return torch.bmm(weights, v).transpose(0, 1).reshape(N, batch, WIDTH).transpose(0, 1)

    def one_head(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = torch.softmax(q @ k.transpose(1, 2) / 4, -1)
        self.weights = weights[:, None]
        return weights @ v

    def columns(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = torch.softmax(k @ q.transpose(1, 2) / 4, 1)
        self.weights = weights.transpose(1, 2)[:, None]
        return (v.transpose(1, 2) @ weights).transpose(1, 2)

    def head_mask(self, x):
        q, k, v = (t.transpose(1, 2) for t in self._split(x))
        weights = (q @ k.mT).div(2).softmax(-1).to(torch.float32)
        self.weights = weights * torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 4, 1, 1)
        return (self.weights @ v).transpose(1, 2).flatten(2)

    def fused(self, x):
        q, k, v = (t.transpose(1, 2) for t in self._split(x))
        self.weights = _softmax((q @ k.mT).div(2))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def fused_one_head(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        self.weights = _softmax((q @ k.mT).div(4))[:, None]
        return F.scaled_dot_product_attention(q, k, v)

    def unprojected(self, x):
        weights = (x @ x.mT).softmax(-1)
        self.weights = weights[:, None]
        return weights @ x


STYLES = [
    name for name, value in vars(Layer).items() if callable(value) and not name.startswith("_") and name != "forward"
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_handwriting_is_read_exactly(style, batch):
    model = Layer(style).eval()
    ids = torch.randint(0, 50, (batch, N))
    with torch.no_grad(), capture(model) as maps:
        model(ids)
    expected = model.weights
    if style in ("fused", "fused_one_head"):
        assert isinstance(maps[-1], ScoreMap)
    assert len(maps) == 1
    assert maps[0].kind == "self"
    assert maps[0].shape == tuple(expected.shape)
    assert (maps[0].dense() - expected).abs().max() <= 1e-6
    fused = expected.detach().mean(1)
    if style != "head_mask":
        rows = (0.5 * fused + 0.5 * torch.eye(N)).mean(1)
        assert (AttentionAttribution(model).attribute(ids, target=1) - rows).abs().max() < 1e-6


class Additive(nn.Module):
    """Bahdanau's attention over an LSTM, in the ways its last step is written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed, self.lstm = nn.Embedding(50, 8), nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.energy, self.score, self.head = nn.Linear(12, 6), nn.Linear(6, 1), nn.Linear(12, 2)

    def forward(self, ids):
        states, _ = self.lstm(self.embed(ids))
        scores = self.score(torch.tanh(self.energy(states)))  # (B, N, 1)
        if self.how == "sum":
            self.weights = torch.softmax(scores, dim=1)
            context = (self.weights * states).sum(dim=1)
        elif self.how == "sum_other_order":
            self.weights = torch.softmax(scores.squeeze(-1), dim=-1).unsqueeze(-1)
            context = torch.sum(states * self.weights, 1)
        else:
            self.weights = torch.softmax(scores.squeeze(-1), -1).unsqueeze(-1)
            context = torch.bmm(self.weights.transpose(1, 2), states).squeeze(1)
        return self.head(context).softmax(-1)


@pytest.mark.parametrize("how", ["sum", "sum_other_order", "bmm"])
def test_additive_attention_over_an_lstm(how):
    model = Additive(how).eval()
    ids = torch.randint(0, 50, (3, N))
    with torch.no_grad(), capture(model) as maps:
        model(ids)
    assert [m.kind for m in maps] == ["pool"]
    expected = model.weights[:, :, 0].clone()
    assert torch.equal(maps[0].dense()[:, 0, 0], expected)
    scores = AttentionAttribution(model, method="raw").attribute(ids, target=0)
    assert torch.allclose(scores, expected)
    with pytest.raises(AttentionKindError, match="pools tokens"):
        AttentionAttribution(model).attribute(ids)


def test_softmaxes_that_are_not_attention():
    class Not(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.classes = nn.Parameter(torch.randn(5, 8))
            self.head = nn.Linear(8, 5)

        def forward(self, x):  # (B, N, 8)
            gates = torch.softmax(self.gate(x), -1)
            x = sum(gates[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
            probabilities = self.head(x).softmax(-1)  # (B, N, 5)
            entropy = -(probabilities * probabilities.log()).sum(-1)
            return (probabilities @ self.classes).mean(1) + entropy.mean()

    with pytest.raises(NoAttentionError, match="no attention was captured while Not ran"), capture(model := Not()):
        model(torch.randn(2, 4, 8))


def test_a_folded_batch_that_was_not_seen_being_folded_is_refused():
    class Folded(nn.Module):
        def forward(self, x):  # (B, N, E), heads folded in by indexing
            q = torch.stack([x, x * 2], 1)[:, [0, 1]]
            q = torch.cat([q[:, 0], q[:, 1]], 0)  # (2 B, N, E)
            return (torch.softmax(q @ q.mT, -1) @ q).sum((0, 1))[None]

    with pytest.raises(UnreadableAttentionError, match="one example at a time"), capture(model := Folded()):
        model(torch.randn(3, 4, 8))


def _decoder():
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True), 2)
    return model, (torch.randn(2, N, WIDTH), torch.randn(2, N, WIDTH)), ["self", "cross"] * 2


def _encoder_decoder(name):
    import transformers

    if name == "T5":
        model = transformers.T5Model(
            transformers.T5Config(vocab_size=50, d_model=16, num_layers=1, num_heads=4, d_kv=4, d_ff=16)
        )
    else:
        sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
                 (("layers", 1), ("attention_heads", 4), ("ffn_dim", 16))}  # fmt: skip
        model = transformers.BartModel(transformers.BartConfig(vocab_size=50, d_model=16, **sizes))
    return model, ["self", "self", "cross"]


def test_kind_is_told_by_projections_not_by_shapes():
    model, inputs, kinds = _decoder()
    with capture(model.eval()) as maps:
        model(*inputs)
    assert [m.kind for m in maps] == kinds
    assert len({m.shape for m in maps}) == 1


@pytest.mark.parametrize("name", ["T5", "Bart"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_kind_in_encoder_decoders(name, implementation):
    model, kinds = _encoder_decoder(name)
    model.eval().set_attn_implementation(implementation)
    ids = torch.randint(5, 50, (2, N))
    with torch.no_grad(), capture(model) as maps:
        model(input_ids=ids, decoder_input_ids=ids)
    assert [m.kind for m in maps] == kinds


def test_products_of_cross_attention_are_refused_by_name():
    model, (target, memory), _ = _decoder()
    model.eval()

    def forward(x, memory):
        return model(x, memory)[:, 0]

    chosen = AttentionAttribution(forward).attribute(target, additional_forward_args=(memory,))
    assert chosen.shape == target.shape  # the decoder's own self-attention
    from captum_attn_lime.methods import Rollout

    with capture(model.eval()) as maps:
        model(target, memory)
    with pytest.raises(AttentionKindError, match=r"layers\.0\.multihead_attn.*cross-attention"):
        Rollout()(maps, torch.ones(2, N) / N)
