"""Long inputs: what is learnt about a model on a beginning of them is what the whole input would have told."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import captum_attn_lime.attr._model as module
from captum_attn_lime import AttentionAttribution
from captum_attn_lime.attr._inputs import shortened
from captum_attn_lime.errors import AttentionKindError
from tests.families import bert, build, gpt2, hand_written, llama_left_padded, torch_encoder
from tests.families.text_decoders import jamba, qwen3_next

TOKENS, WIDTH = 24, 8


@contextmanager
def beginnings(patch, longer_than, to):
    with patch.context() as inner:
        inner.setattr(module, "_LONG", longer_than)
        inner.setattr(module, "_BEGINNING", to)
        yield


class Watched(nn.Module):
    """A model that notes the lengths at which it is run."""

    def __init__(self, forward):
        super().__init__()
        self.inner, self.lengths = forward, []

    def forward(self, x, *args):
        self.lengths.append(x.shape[1])
        return self.inner(x, *args)


class Block(nn.Module):
    """Attention, and then whatever the test puts there."""

    def __init__(self, then=None):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.then = then

    def forward(self, x, padding=None):
        mixed = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x = x + mixed
        return x if self.then is None else self.then(x, padding)


class Model(nn.Module):
    """Blocks and a head on the first token, or on each token."""

    def __init__(self, *thens, per_token=False):
        super().__init__()
        self.layers = nn.ModuleList(Block(then) for then in thens)
        self.head = nn.Linear(WIDTH, 2)
        self.per_token = per_token

    def forward(self, x, padding=None):
        for layer in self.layers:
            x = layer(x, padding)
        return self.head(x if self.per_token else x[:, -1])


class Recurrence(nn.Module):
    """A recurrence over the tokens that are no padding, as state-space layers have it: padding becomes zeros."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x, padding):
        if padding is None:
            return x + self.rnn(x)[0]
        real = (~padding)[..., None].to(x)
        return x + torch.cumsum(x * real, 1) * real


def both(monkeypatch, forward, inputs, args=(), target=None, method="rollout", **options):
    """Return the scores without and with a beginning tried first."""
    with beginnings(monkeypatch, 10**6, 3):
        plain = AttentionAttribution(forward, method=method).attribute(inputs, target, args, **options)
    with beginnings(monkeypatch, 4, 3):
        tried = AttentionAttribution(forward, method=method).attribute(inputs, target, args, **options)
    return plain, tried


@pytest.mark.parametrize("method", ["raw", "rollout"])
@pytest.mark.parametrize(
    "make", [bert, gpt2, llama_left_padded, torch_encoder, hand_written], ids=lambda make: make.__name__
)
def test_scores_are_those_without_a_beginning(monkeypatch, make, method):
    family = build(make)
    assert shortened(family.tensors, family.args, longer_than=4, to=3) is not None, "a beginning is tried"
    plain, tried = both(monkeypatch, family.forward, family.inputs, family.args, target=0, method=method)
    torch.testing.assert_close(tried, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [jamba, qwen3_next], ids=lambda make: make.__name__)
def test_hybrids_are_refused(monkeypatch, make):
    family = build(make)
    for longer_than in (10**6, 4):
        with beginnings(monkeypatch, longer_than, 3), pytest.raises(AttentionKindError):
            AttentionAttribution(family.forward).attribute(family.inputs, 0, family.args)


@pytest.mark.parametrize("side", ["left", "right", "left of every example"])
@pytest.mark.parametrize("inverted", [False, True])
def test_mixing_is_found_where_the_beginning_is_padding(monkeypatch, side, inverted):
    """Padding shows nothing: recurrences leave it out."""
    model, x = Model(Recurrence(), None, None).eval(), torch.randn(2, TOKENS, WIDTH)
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[0, : TOKENS - 6] = True
    if side == "right":
        padding = padding.flip(1)
    if side == "left of every example":
        padding[1, : TOKENS - 7] = True

    def forward(x, mask):
        return model(x, mask if inverted else ~mask)

    with beginnings(monkeypatch, 12, 8), pytest.raises(AttentionKindError, match="mixes tokens"):
        AttentionAttribution(forward).attribute(x, 0, (padding if inverted else ~padding,), query="last")


def test_mixing_is_found_where_the_ids_begin_with_padding(monkeypatch):
    """The model knows by itself which ids are padding."""
    model, embed = Model(Recurrence(), None, None).eval(), nn.Embedding(9, WIDTH)
    ids = torch.randint(1, 9, (2, TOKENS))
    ids[:, : TOKENS - 5] = 0
    with beginnings(monkeypatch, 12, 8), pytest.raises(AttentionKindError, match="mixes tokens"):
        AttentionAttribution(lambda ids: model(embed(ids), ids == 0)).attribute(ids, 0, query="last")


def test_what_one_token_tells_is_not_taken_for_longer_inputs():
    """Nothing can mix a single token."""
    model, x = Model(Recurrence(), None).eval(), torch.randn(2, TOKENS, WIDTH)
    attribution = AttentionAttribution(model)
    attribution.attribute(x[:, :1], query="last")
    with pytest.raises(AttentionKindError, match="mixes tokens"):
        attribution.attribute(x, query="last")


@pytest.mark.parametrize("method", ["raw", "rollout"])
@pytest.mark.parametrize("make", [bert, gpt2, llama_left_padded, torch_encoder], ids=lambda make: make.__name__)
def test_a_model_runs_over_the_whole_input_once(monkeypatch, make, method):
    family = build(make)
    model = Watched(family.forward)
    with beginnings(monkeypatch, 4, 3):
        attribution = AttentionAttribution(model, method=method)
        attribution.attribute(family.inputs, 0, family.args)
        assert model.lengths.count(7) == 1
        assert set(model.lengths) == {3, 7}
        model.lengths.clear()
        attribution.attribute(family.inputs, 1, family.args)
        assert model.lengths == [7]
    with beginnings(monkeypatch, 10**6, 3):
        model.lengths.clear()
        AttentionAttribution(model, method=method).attribute(family.inputs, 0, family.args)
        assert model.lengths.count(7) > 1, "without a beginning the facts cost passes over the whole"


@pytest.mark.parametrize("argument", ["square mask", "positions", "mask by example"])
def test_arguments_by_token_are_cut_too(monkeypatch, argument):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    place = nn.Embedding(TOKENS, WIDTH)

    def forward(x, extra):
        if argument == "positions":
            return encoder(x + place(extra))[:, 0]
        name = "mask" if argument == "square mask" else "src_key_padding_mask"
        return encoder(x, **{name: extra})[:, 0]

    extra = {
        "square mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(3),
        "positions": torch.arange(TOKENS),
        "mask by example": torch.zeros(3, TOKENS, dtype=torch.bool),
    }[argument]
    model, x = Watched(forward), torch.randn(3, TOKENS, WIDTH)
    plain, tried = both(monkeypatch, model, x, (extra,))
    torch.testing.assert_close(tried, plain, rtol=1e-5, atol=1e-7)
    model.lengths.clear()
    with beginnings(monkeypatch, 12, 5):
        AttentionAttribution(model).attribute(x, additional_forward_args=(extra,))
    assert model.lengths.count(TOKENS) == 1


def test_embeddings_as_wide_as_the_text_is_long(monkeypatch):
    """Only tokens are cut, not features."""
    model, x = Watched(Model(None, None).eval()), torch.randn(3, WIDTH, WIDTH)
    plain, tried = both(monkeypatch, model, x)
    torch.testing.assert_close(tried, plain, rtol=1e-5, atol=1e-7)
    model.lengths.clear()
    with beginnings(monkeypatch, 4, 3):
        AttentionAttribution(model).attribute(x)
    assert model.lengths.count(WIDTH) == 1


@pytest.mark.parametrize("target", [(20, 1), [(20, 1), (0, 0), (5, 1)]])
def test_an_output_per_token(monkeypatch, target):
    model, x = Watched(Model(None, None, None, per_token=True).eval()), torch.randn(3, TOKENS, WIDTH)
    plain, tried = both(monkeypatch, model, x, target=target)
    torch.testing.assert_close(tried, plain, rtol=1e-5, atol=1e-7)
    if isinstance(target, list):  # each example by its own position
        alone = AttentionAttribution(model).attribute(x[1:2], (0, 0))
        torch.testing.assert_close(tried[1:2], alone, rtol=1e-5, atol=1e-7)
    model.lengths.clear()
    with beginnings(monkeypatch, 12, 5):
        AttentionAttribution(model).attribute(x, target)
    assert model.lengths.count(TOKENS) == 1


def test_a_model_that_takes_one_length_only(monkeypatch):
    """As a table's columns: its beginning cannot be run, and nothing is lost."""
    model, column = Watched(Model(None, None).eval()), nn.Parameter(torch.randn(TOKENS, WIDTH))

    def forward(values):
        return model(values[..., None] * column)

    values = torch.randn(2, TOKENS)
    plain, tried = both(monkeypatch, forward, values)
    torch.testing.assert_close(tried, plain, rtol=1e-5, atol=1e-7)
    assert set(model.lengths) == {TOKENS}


def test_other_layers_at_other_lengths(monkeypatch):
    """Short texts skip a layer: what the beginning told of the stack does not hold, and is learnt anew."""
    model, x = Model(None, None, None).eval(), torch.randn(2, TOKENS, WIDTH)

    def forward(x):
        for layer in model.layers[: 3 if x.shape[1] > 12 else 2]:
            x = layer(x)
        return model.head(x[:, -1])

    plain, tried = both(monkeypatch, forward, x)
    torch.testing.assert_close(tried, plain, rtol=1e-5, atol=1e-7)


def test_hooks_and_mode_are_left_as_found(monkeypatch):
    family = build(bert)
    before = [dict(m._forward_hooks) for m in family.model.modules()]
    with beginnings(monkeypatch, 4, 3):
        AttentionAttribution(family.forward).attribute(family.inputs, 0, family.args)
    assert [dict(m._forward_hooks) for m in family.model.modules()] == before
    assert not family.model.training


def test_what_is_long():
    ids, rows = torch.zeros(2, 20), torch.zeros(2, 20, 4)
    assert shortened((ids,), (), longer_than=20, to=5) is None
    assert shortened((torch.zeros(2, 3, 20, 20),), (), longer_than=10, to=5) is None, "an image has no beginning"
    assert shortened((ids, torch.zeros(2, 30)), (), longer_than=10, to=5) is None, "tensors of several lengths"
    (short, long), (number, name) = shortened((ids, rows), (3, "name"), longer_than=19, to=5)
    assert (short.shape, long.shape, number, name) == ((1, 5), (1, 5, 4), 3, "name")


def test_a_part_that_is_not_mere_padding_is_taken():
    ids = torch.arange(1, 21).repeat(2, 1)
    mask = torch.ones(2, 20)
    mask[0, :12] = 0
    (short,), (kept,) = shortened((ids,), (mask,), longer_than=10, to=6)
    assert short.tolist() == [[10, 11, 12, 13, 14, 15]], "around the place where padding ends"
    assert kept.tolist() == [[0, 0, 0, 1, 1, 1]]
    # Right padding, padding that only the ids show, and a mask without a single zero.
    assert shortened((ids,), (1 - mask,), longer_than=10, to=6)[1][0].tolist() == [[1, 1, 1, 0, 0, 0]]
    padded = torch.where(mask == 0, 0, ids)
    assert shortened((padded,), (), longer_than=10, to=6)[0][0].tolist() == [[0, 0, 0, 13, 14, 15]]
    assert shortened((ids,), (mask[1:].repeat(2, 1),), longer_than=10, to=6)[0][0].tolist() == [[1, 2, 3, 4, 5, 6]]
    # Two kinds of flags that no one part shows: the whole is tried.
    kinds = torch.zeros(2, 20)
    kinds[:, 18:] = 1
    assert shortened((ids[:1],), (mask[:1], kinds[:1]), longer_than=10, to=6) is None
