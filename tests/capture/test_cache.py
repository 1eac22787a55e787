"""A capture around `model.generate()`: cached steps have the weights that generate reports, and the right kind."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_attn_lime import AttentionMap, capture
from tests.models.language import (
    DECODERS,
    ENCODER_DECODERS,
    LENGTH,
    PROMPT,
    WINDOW,
    bart,
    build,
    eager_steps,
    gemma2,
    generate,
    gpt2,
    llama,
    mistral,
    t5,
)

STATIC = dict(cache_implementation="static", disable_compile=True)
LAYERS, HEADS, N = 3, 4, PROMPT.shape[1]


def _captured(model: nn.Module, ids: Tensor = PROMPT, **options) -> tuple[list[AttentionMap], Tensor]:
    with capture(model) as maps:
        made = generate(model, ids, **options)
    return maps, made.sequences


def _equal(attention: AttentionMap, expected: Tensor, atol: float = 1e-6) -> None:
    """Compare where both have the key: a static cache has room for keys to come, whose weights are zero."""
    dense = attention.dense()
    n = min(dense.shape[-1], expected.shape[-1])
    assert dense.shape[:3] == expected.shape[:3]
    assert not dense[..., n:].any()
    assert not expected[..., n:].any()
    torch.testing.assert_close(dense[..., :n], expected[..., :n], rtol=0, atol=atol)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("make", DECODERS)
def test_steps_of_decoders(make, cache):
    model = build(make)
    options = STATIC if cache == "static" else {}
    steps = eager_steps(model, **options)
    maps, sequences = _captured(model, **options)
    assert torch.equal(sequences, steps.sequences)
    assert len(maps) == LENGTH * LAYERS
    assert {m.kind for m in maps} == {"self"}
    assert {m.shape[:2] for m in maps} == {(1, HEADS)}
    for attention, expected in zip(maps, (x for step in steps.attentions for x in step), strict=True):
        _equal(attention, expected)
    # Each step's layers follow one another, and not those of the step before: its token was chosen, not computed.
    assert [set(m.follows) for m in maps] == [set(range(i - i % LAYERS, i)) for i in range(len(maps))]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("make", ENCODER_DECODERS)
def test_steps_of_encoder_decoders(make, cache):
    model = build(make)
    options = STATIC if cache == "static" else {}
    steps = eager_steps(model, **options)
    maps, sequences = _captured(model, **options)
    assert torch.equal(sequences, steps.sequences)
    assert [m.kind for m in maps] == ["self"] * LAYERS + ["self", "cross"] * LAYERS * LENGTH
    decoder = maps[LAYERS:]
    for own, expected in zip(decoder[::2], (x for s in steps.decoder_attentions for x in s), strict=True):
        _equal(own, expected)
    for cross, expected in zip(decoder[1::2], (x for s in steps.cross_attentions for x in s), strict=True):
        assert cross.shape[3] == N
        _equal(cross, expected, atol=2e-6)  # T5 does not scale its scores: more rounding in both


@pytest.mark.parametrize("make", [llama, mistral, bart])
def test_beams_and_left_padding(make):
    """Beams reorder the cache; a padding mask makes grouped heads of a single query be packed as queries."""
    model = build(make)
    ids = torch.tensor([[0, 0, 2, 17, 33, 8], [2, 17, 9, 8, 51, 64]])
    mask = (ids != 0).long()
    kinds = Counter()
    with torch.no_grad(), capture(model) as maps:
        model.generate(input_ids=ids, attention_mask=mask, num_beams=2, max_new_tokens=3, min_new_tokens=3)
    for attention in maps:
        kinds[attention.kind] += 1
        assert attention.shape[1] == HEADS
        torch.testing.assert_close(attention.dense().sum(-1).amax(-1), torch.ones(attention.shape[:2]))
        if attention.kind == "self" and make is llama:
            assert not attention.rows(-1)[: attention.shape[0] // 2, ..., :2].any(), "padding is not attended to"
    assert kinds == ({"self": 12, "cross": 9} if make is bart else {"self": 9})


@pytest.mark.parametrize("make", [gpt2, llama, mistral, gemma2])
def test_steps_fed_by_hand_are_self_attention_too(make):
    """Ids that were not chosen by the model before carry nothing of it."""
    model = build(make)
    with torch.no_grad():
        with capture(model) as expected:
            model(input_ids=PROMPT, use_cache=False)
        with capture(model) as maps:
            cache = model(input_ids=PROMPT[:, :3], use_cache=True).past_key_values
            cache = model(input_ids=PROMPT[:, 3:5], past_key_values=cache).past_key_values
            model(input_ids=PROMPT[:, 5:], past_key_values=cache)
    assert {m.kind for m in maps} == {"self"}
    for layer in range(LAYERS):
        last = maps[2 * LAYERS + layer].dense()
        torch.testing.assert_close(last, expected[layer].rows(-1)[..., -last.shape[-1] :], rtol=0, atol=1e-6)


def test_the_cross_attention_cache_of_one_pass_is_not_the_next_ones():
    model = build(t5)
    with torch.no_grad(), capture(model) as maps:
        for text in (PROMPT, PROMPT.flip(1)):
            cache = model(input_ids=text, decoder_input_ids=torch.tensor([[0, 5]]), use_cache=True).past_key_values
            model(
                encoder_outputs=model.get_encoder()(text),
                decoder_input_ids=torch.tensor([[6]]),
                past_key_values=cache,
            )
    kinds = ["self"] * LAYERS + ["self", "cross"] * LAYERS
    assert [m.kind for m in maps] == kinds * 4


# ------------------------------------------------------------------ keys put together by hand


class Cached(nn.Module):
    """One attention layer over new tokens and the keys it has kept, in several ways of keeping them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.words = nn.Embedding(20, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.kept: Tensor | None = None
        self.room = torch.zeros(1, 6, 8)
        self.used = 0

    def keep(self, key: Tensor) -> Tensor:
        if self.way == "cat":
            self.kept = key if self.kept is None else torch.cat([self.kept, key], dim=1)
            return self.kept
        start, self.used = self.used, self.used + key.shape[1]
        if self.way == "setitem":
            self.room[:, start : self.used] = key
        elif self.way == "index_copy":
            self.room.index_copy_(1, torch.arange(start, self.used), key)
        else:
            self.room[:, start : self.used].copy_(key)
        return self.room[:, : self.used]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        query, key = self.query(x), self.keep(self.key(x))
        value = torch.ones_like(key)
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])


IN_INFERENCE_MODE = [(way, torch.inference_mode) for way in ("cat", "setitem", "index_copy")]


@pytest.mark.parametrize(
    ("way", "mode"), [*IN_INFERENCE_MODE, *((way, torch.no_grad) for way in ("cat", "setitem", "index_copy", "copy"))]
)
def test_keys_are_read_as_they_were_at_their_step(way, mode):
    model, ids = Cached(way), torch.tensor([[3, 7, 1, 9, 4, 2]])
    with mode(), capture(model) as maps:
        for part in ids.split([3, 1, 2], dim=1):
            model(part)
    with torch.no_grad():
        x = model.words(ids)
        scores = model.query(x) @ model.key(x).mT / 8**0.5
    assert [m.kind for m in maps] == ["self"] * 3
    for attention, rows, n in zip(maps, (slice(3), slice(3, 4), slice(4, 6)), (3, 4, 6), strict=True):
        expected = scores[:, rows, :n].double().exp()
        expected = expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(attention.dense()[0, 0].double(), expected[0], rtol=0, atol=1e-6)


class Joined(nn.Module):
    """CLS before the projection, or a memory of other tokens beside or instead of the own keys after it."""

    def __init__(self, keys: str) -> None:
        super().__init__()
        self.keys = keys
        self.words, self.cls = nn.Embedding(20, 8), nn.Parameter(torch.zeros(1, 1, 8))
        self.query, self.key, self.other = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        x = torch.cat([self.cls, self.words(ids)], dim=1)
        read = F.scaled_dot_product_attention(memory[:, None], memory[:, None], memory[:, None])[:, 0]
        key = {
            "own": lambda: self.key(x),
            "memory": lambda: self.other(read),
            "memory and own": lambda: torch.cat([self.other(read), self.key(x)], dim=1),
        }[self.keys]()
        return F.scaled_dot_product_attention(self.query(x)[:, None], key[:, None], key[:, None])


@pytest.mark.parametrize(("keys", "kind"), [("own", "self"), ("memory", "cross"), ("memory and own", "self")])
def test_what_is_joined_before_and_after_the_projection(keys, kind):
    model = Joined(keys)
    with torch.no_grad(), capture(model) as maps:
        model(torch.tensor([[1, 2, 3]]), torch.randn(1, 4, 8))
    assert maps[1].kind == kind


def test_heads_packed_as_queries_are_unpacked():
    """What a window's single token was packed into must not be taken for queries."""
    query, key = torch.randn(2, 6, 1, 4), torch.randn(2, 3, 5, 4)
    mask = torch.rand(2, 6, 1, 5) > 0.3
    mask[..., 0] = True

    class Packed(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            packed = q.reshape(2, 3, 2, 4)
            return F.scaled_dot_product_attention(packed, key, key, attn_mask=mask.reshape(2, 3, 2, 5))

    with capture(Packed()) as maps:
        Packed()(query)
    scores = (query @ key.repeat_interleave(2, dim=1).mT / 2).masked_fill(~mask, float("-inf"))
    assert maps[0].shape == (2, 6, 1, 5)
    torch.testing.assert_close(maps[0].dense(), scores.softmax(-1))


def test_windows_are_shorter_than_the_text():
    """Or the tests above show nothing of sliding."""
    maps, _ = _captured(build(mistral))
    assert {m.shape[3] for m in maps[LAYERS:]} == {WINDOW}
