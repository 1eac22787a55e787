"""Models that could be explained wrongly without a sign: each is explained rightly, or refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_attn_lime import AttentionAttribution, TextAdapter, capture
from captum_attn_lime.attention import ScoreMap
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.errors import (
    AttentionKindError,
    ReadoutError,
    SelectionError,
    TokenMapError,
    UnreadableAttentionError,
)
from captum_attn_lime.methods import Raw, Rollout


def encoder(layers=2, width=16):
    layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()


def readout(forward, x):
    """The readout of the first run, and of a second that may take the short way through the head alone."""
    model = ExplainedModel(forward)
    first = model.run((x,)).readout.float()
    again = model.run((x,)).readout.float()
    torch.testing.assert_close(again, first, atol=1e-6, rtol=1e-5)
    return first


# --- kernels and layouts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("strided", ["query", "key", "both", "every_second"])
def test_queries_and_keys_whose_last_dimension_is_strided(strided, causal):
    def make(is_strided):
        if not is_strided:
            return torch.randn(1, 2, 64, 16)
        if strided == "every_second":
            return torch.randn(1, 2, 64, 32)[..., ::2]
        return torch.randn(1, 2, 16, 64).transpose(-1, -2)

    query, key = make(strided != "key"), make(strided != "query")
    attention, r = ScoreMap(query, key, is_causal=causal), torch.rand(1, 64)
    expected = torch.einsum("bq,bqk->bk", r, attention.dense().mean(1))
    assert (attention.vecmat(r) - expected).abs().max() < 1e-5


class HeadsFirst(nn.Module):
    """Heads before examples, in several handwritings."""

    def __init__(self, how):
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(16, n) for n in (16, 16, 16, 2))
        self.how = how

    def forward(self, x):
        batch, n, _ = x.shape
        q, k, v = (f(x).view(batch, n, 4, 4).permute(2, 0, 1, 3).contiguous() for f in (self.q, self.k, self.v))
        if self.how == "folded":
            q, k, v = (t.view(-1, n, 4) for t in (q, k, v))
            out = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, 2), v).view(4, batch, n, 4)
        elif self.how == "matmul":
            out = torch.softmax(q @ k.mT / 2, -1) @ v
        else:
            out = torch.einsum("hbqk,hbkd->hbqd", torch.softmax(q @ k.mT / 2, -1), v)
        return self.head(out.permute(1, 2, 0, 3).reshape(batch, n, 16)[:, 0])


@pytest.mark.parametrize("how", ["folded", "matmul", "einsum"])
def test_as_many_heads_as_examples(how):
    model, x = HeadsFirst(how).eval(), torch.randn(4, 5, 16)
    attribution = AttentionAttribution(model, method="raw")
    together = attribution.attribute(x)
    alone = torch.cat([attribution.attribute(x[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_the_batch_is_that_of_the_inputs_however_the_model_is_held():
    model, x = HeadsFirst("einsum").eval(), torch.randn(3, 5, 16)

    class Holder:
        def __init__(self):
            self.model = model

        def predict(self, x):
            return self.model(x)

    def inner(x):
        return model(x)

    def outer(x):
        return inner(x)

    expected = AttentionAttribution(model, method="raw").attribute(x)
    for forward in (Holder().predict, outer, lambda x: model(x)):
        assert torch.equal(AttentionAttribution(forward, method="raw").attribute(x), expected)
        with capture(forward) as maps:
            forward(x)
        assert maps[0].shape == (3, 4, 5, 5)


@pytest.mark.parametrize("written", ["query", "mask", "weights"])
def test_tensors_that_the_model_writes_into_afterwards(written):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(8, 8)

        def forward(self, x):
            q, mask = self.q(x)[:, None], torch.zeros(4, 4)
            if written == "weights":
                weights = torch.softmax(q @ q.mT, -1)
                out = weights @ q
                weights.zero_()
                return out
            out = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
            (q if written == "query" else mask).fill_(1.0)
            return out

    model = Writes()
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(1, 4, 8))
    for verb in (maps[0].dense, lambda: maps[0].vecmat(torch.ones(1, 4))):
        with pytest.raises(UnreadableAttentionError, match="wrote into"):
            verb()


# --- stacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_two_towers_are_not_mixed(shared, method):
    first, embed, head = encoder(), nn.Embedding(90, 16), nn.Linear(32, 2)
    second = first if shared else encoder()
    position = torch.randn(6, 16)

    def tower(side, ids):
        return side(embed(ids) + position)[:, 0]

    def forward(a, b):
        return head(torch.cat([tower(first, a), tower(second, b)], 1))

    a, b = torch.randint(0, 90, (2, 1, 6))
    with pytest.raises(AttentionKindError, match="two stacks"):
        AttentionAttribution(forward, method=method).attribute((a, b))
    for layers, mine, other, side in ((slice(0, 2), 0, 1, first), (slice(2, 4), 1, 0, second)):
        chosen = slice(layers.stop - 1, layers.stop) if method == "raw" else layers
        scores = AttentionAttribution(forward, method=method, layers=chosen).attribute((a, b), query=0)
        alone = AttentionAttribution(lambda ids, side=side: tower(side, ids), method=method)
        assert torch.allclose(scores[mine], alone.attribute((a, b)[mine]), atol=1e-6)
        assert not scores[other].any()


def test_cross_attention_between_streams_of_the_same_projection():
    project, model, head = nn.Linear(4, 16), nn.Transformer(16, 2, 2, 2, 32, batch_first=True).eval(), nn.Linear(16, 2)

    def forward(x):
        return head(model(project(x), project(x))[:, 0])

    with torch.no_grad(), capture(forward) as maps:
        forward(torch.randn(1, 5, 4))
    assert [m.kind for m in maps] == ["self", "self", "self", "cross", "self", "cross"]
    with pytest.raises(AttentionKindError, match="two stacks"):
        AttentionAttribution(forward).attribute(torch.randn(1, 5, 4))


def test_a_layer_that_was_not_seen_to_be_self_attention_is_not_dropped():
    layers, head = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(3)), nn.Linear(16, 2)
    position = torch.randn(5, 16)

    def forward(x):
        for i, layer in enumerate(layers):
            query, key = (x + position, x + position) if i == 1 else (x, x)
            x = x + layer(query, key, x)[0]
        return head(x[:, 0])

    with pytest.raises(AttentionKindError, match=r"layers\.1.*could not be recognised"):
        AttentionAttribution(forward).attribute(torch.randn(1, 5, 16))


def test_scores_whose_product_with_values_is_not_seen_are_not_dropped():
    class Odd(nn.Module):
        def forward(self, x):
            weights = torch.softmax(x @ x.mT, -1)
            return torch.stack([(weights[:, i, :, None] * x).cumsum(1)[:, -1] for i in range(x.shape[1])], 1)

    both = nn.Sequential(encoder(1), Odd())
    with pytest.raises(UnreadableAttentionError, match="exponential in '1'"), capture(both):
        both(torch.randn(1, 4, 16))


@pytest.mark.parametrize("how", ["slice", "sinks", "renormalised", "ellipsis", "keywords"])
def test_weights_that_are_handled_before_they_meet_values(how):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.v = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            q, v = self.q(x)[:, None], self.v(x)[:, None]
            scores = q @ q.mT
            if how == "sinks":
                weights = torch.softmax(torch.cat([scores, torch.ones(*scores.shape[:3], 1)], -1), -1)[..., :-1]
            else:
                weights = torch.softmax(scores, -1)
            if how == "slice":
                weights = weights[:, :, :]
            if how == "renormalised":
                weights = weights / weights.sum(-1, keepdim=True)
            self.weights = weights
            if how == "ellipsis":
                return torch.einsum("...qk,...kd->...qd", weights, v)
            return torch.matmul(input=weights, other=v) if how == "keywords" else weights @ v

    model = Layer().eval()
    with torch.no_grad(), capture(model) as maps:
        model(torch.randn(2, 5, 16))
    assert (maps[0].kind, maps[0].shape) == ("self", (2, 1, 5, 5))
    assert torch.equal(maps[0].dense(), model.weights)


# --- readout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("how", ["plain", "dropout", "plus", "divided", "repeated", "in_place", "relu"])
def test_pooling_by_gates_of_the_tokens_asks_for_a_query(how, seed):
    torch.manual_seed(seed)
    body, gate, head, offset = encoder(), nn.Linear(16, 1), nn.Linear(16, 2), 2 * torch.randn(16)

    def forward(x):
        h = body(x) + offset
        w = torch.sigmoid(gate(h))
        if how == "dropout":
            return head(nn.Dropout(0.1).eval()(w * h).sum(1))
        if how == "plus":
            return head(((w * h) + 0).sum(1))
        if how == "divided":
            return head((h / (1 / w)).sum(1))
        if how == "repeated":
            return head((w.repeat(1, 1, 16) * h).sum(1))
        if how == "in_place":
            y = h.clone()
            y *= w
            return head(y.sum(1))
        return head((w * h).relu().sum(1)) if how == "relu" else head((w * h).sum(1))

    with pytest.raises(ReadoutError, match="query="):
        readout(forward, torch.randn(1, 5, 16))


def test_the_weight_of_a_norm_is_not_taken_for_a_pooling():
    body, weight, head = encoder(), nn.Parameter(torch.rand(16) + 0.5), nn.Linear(16, 2)

    def forward(x):
        h = body(x)
        h = weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))
        return head(h.mean(1))

    assert torch.allclose(readout(forward, torch.randn(2, 5, 16)), torch.full((2, 5), 0.2))


def test_attention_pooling_is_the_readout_only_where_the_output_reads_it_alone():
    body, pool, query = encoder(), nn.MultiheadAttention(16, 2, batch_first=True), torch.randn(1, 1, 16)
    head = nn.Linear(32, 2)

    def pooled(y):
        return pool(query.expand(len(y), -1, -1), y, y)[0][:, 0]

    def unused(x):
        y = body(x)
        pooled(y)
        return head(torch.cat([y[:, 0], y[:, 0]], 1))

    def both(x):
        y = body(x)
        return head(torch.cat([y[:, 0], pooled(y)], 1))

    x = torch.randn(1, 5, 16)
    assert readout(unused, x).tolist() == [[1, 0, 0, 0, 0]]
    with pytest.raises(ReadoutError, match="through another path"):
        readout(both, x)


def test_a_last_layer_computed_for_the_read_token_only():
    """As in the FT-Transformer: raw is that layer's row, rollout goes through it and its residual."""
    first, last, head = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)), None, nn.Linear(16, 2)
    first, last = first

    def short(x):
        x = x + first(x, x, x)[0]
        return head(x[:, 0] + last(x[:, :1], x, x)[0][:, 0])

    def full(x):
        x = x + first(x, x, x)[0]
        return head((x + last(x, x, x)[0])[:, 0])

    x = torch.randn(2, 5, 16)
    for method in ("raw", "rollout", Rollout(residual=0.3), Rollout(head_fusion="max"), Rollout(heads=1), "relevance"):
        found, expected = (AttentionAttribution(f, method=method).attribute(x, 1) for f in (short, full))
        assert torch.allclose(found, expected, atol=1e-6)
    for method in (Raw(), lambda stack, query: stack[0].vecmat(query)):
        attribution = AttentionAttribution(short, method=method, layers=0)
        with pytest.raises(SelectionError, match=r"does not support\. Pass query="):
            attribution.attribute(x)
        expected = AttentionAttribution(full, layers=0, method="raw").attribute(x)
        assert torch.allclose(attribution.attribute(x, query=0), expected)


@pytest.mark.parametrize("name", ["first", "mean", "last"])
def test_named_queries_with_a_sliding_window(name):
    from transformers import MistralConfig, MistralForSequenceClassification

    sizes = dict(vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    config = MistralConfig(**sizes, num_key_value_heads=2, sliding_window=3, pad_token_id=0)
    model = MistralForSequenceClassification(config).eval()
    ids = torch.randint(5, 90, (1, 8))
    attribution = AttentionAttribution(lambda ids: model(input_ids=ids).logits, method="raw")
    rows = torch.cat([attribution.attribute(ids, query=i) for i in range(8)])
    expected = {"first": rows[0], "last": rows[-1], "mean": rows.mean(0)}[name]
    assert torch.allclose(attribution.attribute(ids, query=name)[0], expected, atol=1e-6)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_the_tensor_that_carries_the_tokens_is_found_not_guessed():
    embed, body, head = nn.Embedding(90, 16), encoder(), nn.Linear(16, 2)

    def forward(mask, ids):
        return head(body(embed(ids), src_key_padding_mask=mask == 0)[:, 0])

    ids = torch.tensor([[71, 22, 83, 4]])
    on_mask, on_ids = AttentionAttribution(forward).attribute((torch.ones(1, 4, dtype=torch.long), ids))
    assert not on_mask.any()
    assert torch.allclose(on_ids.sum(), torch.tensor(1.0))


def test_an_adapter_that_writes_over_padding():
    """GPT-2 without a padding token, the first text of the batch shorter than the second."""
    from tests.models.text import byte_bpe_tokenizer, gpt2

    adapter = TextAdapter(gpt2(), byte_bpe_tokenizer())
    x = adapter.encode(["a fine film", "a fine film with a fine cast"])
    together = AttentionAttribution(adapter).attribute(x.inputs, additional_forward_args=x.forward_args)
    for i, text in enumerate(x.texts):
        one = adapter.encode(text)
        alone = AttentionAttribution(adapter).attribute(one.inputs, additional_forward_args=one.forward_args)[0]
        assert torch.allclose(together[i, : len(alone)], alone, atol=1e-6)
        assert not together[i, len(alone) :].any()


def test_lengths_that_fit_another_tensor():
    """One to one for ids once does not make every tensor of as many positions the ids."""
    embed, body, head = nn.Embedding(90, 16), encoder(), nn.Linear(16, 2)
    attribution = AttentionAttribution(lambda other, ids: head(body(embed(ids))[:, 0]) + other[:, :1])
    for n, m in ((4, 4), (5, 4), (4, 5)):
        on_other, on_ids = attribution.attribute((torch.ones(1, n, dtype=torch.long), torch.randint(70, 90, (1, m))))
        assert not on_other.any()
        assert torch.allclose(on_ids.sum(), torch.tensor(1.0))


def test_tokens_in_another_order_than_the_input():
    embed, body, head = nn.Embedding(90, 16), encoder(), nn.Linear(16, 2)
    ids = torch.tensor([[71, 22, 83, 4]])
    plain = AttentionAttribution(lambda ids: head(body(embed(ids))[:, 0])).attribute(ids.flip(1))
    found = AttentionAttribution(lambda ids: head(body(embed(ids.flip(1)))[:, 0])).attribute(ids)
    assert torch.allclose(found, plain.flip(1), atol=1e-6)


@pytest.mark.parametrize("order", ["rows", "columns", "windows"])
def test_patches_in_any_order(order):
    convolution, body, head = nn.Conv2d(3, 16, 4, 4), encoder(), nn.Linear(16, 2)

    def tokens(image):
        grid = convolution(image)  # (B, 16, 4, 6)
        if order == "columns":
            grid = grid.transpose(2, 3)
        if order == "windows":
            grid = grid.unflatten(3, (3, 2)).unflatten(2, (2, 2)).permute(0, 1, 2, 4, 3, 5)
        return grid.flatten(2).transpose(1, 2)

    image = torch.randn(1, 3, 16, 24)
    scores = AttentionAttribution(lambda x: head(body(x)[:, 0])).attribute(tokens(image).detach())[0, :, 0]
    places = {
        "rows": scores.view(4, 6),
        "columns": scores.view(6, 4).T,
        "windows": scores.view(2, 3, 2, 2).permute(0, 2, 1, 3).reshape(4, 6),
    }
    cells = AttentionAttribution(lambda x: head(body(tokens(x))[:, 0])).attribute(image)
    assert torch.allclose(cells[0, 1, 1::4, 2::4], places[order], atol=1e-6)


def test_words_and_patches_together():
    embed, convolution, body, head = nn.Embedding(90, 16), nn.Conv2d(3, 16, 4, 4), encoder(), nn.Linear(16, 2)

    def forward(ids, image):
        return head(body(torch.cat([embed(ids), convolution(image).flatten(2).transpose(1, 2)], 1))[:, 0])

    on_ids, on_image = AttentionAttribution(forward).attribute((torch.tensor([[71, 22, 83]]), torch.randn(1, 3, 8, 8)))
    assert bool((on_ids > 0).all())
    assert torch.allclose(on_ids.sum() + on_image[0, 0, ::4, ::4].sum(), torch.tensor(1.0))


def test_channels_are_not_taken_for_time():
    convolution, body, head = nn.Conv1d(8, 16, 4, 4), encoder(), nn.Linear(16, 2)
    with pytest.raises(TokenMapError, match="token_map="):
        AttentionAttribution(lambda x: head(body(convolution(x).transpose(1, 2)).mean(1))).attribute(
            torch.randn(1, 8, 32)
        )
