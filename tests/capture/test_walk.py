"""Remembered walks: a second capture says what the first did, and notices whatever has changed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attn_lime import capture
from captum_attn_lime._capture import register_attention
from captum_attn_lime._capture.session import record
from captum_attn_lime._capture.walk import _KEPT, walks_of
from tests.families import FAMILIES, build
from tests.families.facts import over


def _run(forward, inputs, args=()):
    with torch.no_grad(), record(forward) as recorder:
        output = forward(*inputs, *args)
    return recorder, output


def _facts(recorder):
    return [(m.name, m.kind, m.index, m.follows, m.reads, m.shape, type(m)) for m in recorder.maps]


def _inputs(family):
    return family.inputs if isinstance(family.inputs, tuple) else (family.inputs,)


@over(FAMILIES, sample=2)
def test_the_second_and_third_capture_of_every_family_say_what_the_first_did(make):
    family = build(make)
    first, plain = _run(family.forward, _inputs(family), family.args)
    for _ in range(2):
        again, output = _run(family.forward, _inputs(family), family.args)
        assert _facts(again) == _facts(first)
        assert torch.equal(output, plain)
        for a, b in zip(again.maps, first.maps, strict=True):
            torch.testing.assert_close(a.dense(), b.dense(), rtol=0, atol=0, equal_nan=True)
        assert len(again.awaited) == len(first.awaited)
        assert again.unread == first.unread


def test_most_families_take_their_walk_again():
    replayed = []
    for make in FAMILIES[::3]:
        family = build(make)
        for _ in range(2):
            recorder, _ = _run(family.forward, _inputs(family), family.args)
        replayed.append(recorder.trace.is_replayed)
    assert sum(replayed) > 0.6 * len(replayed)


class Switched(nn.Module):
    """One layer of attention whose keys come from x or from y: the same operations, the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.cross, self.later, self.scale = False, None, 1.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        other = y if self.cross else x
        parts = (self.query(x), self.key(other), self.value(other))
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in parts)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) * self.scale
        if self.later is not None:
            other = self.query(self.later(out, x))
            return F.scaled_dot_product_attention(other[:, None], other[:, None], other[:, None])
        return out


def _kinds(model, *inputs):
    with torch.no_grad(), capture(model) as maps:
        model(*inputs)
    return [(m.kind, sorted(m.follows)) for m in maps]


def test_keys_from_elsewhere_by_the_same_operations_are_noticed():
    model, x, y = Switched(), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    for _ in range(3):
        model.cross = False
        assert _kinds(model, x, y) == [("self", [])]
        assert _kinds(model, x, y) == [("self", [])]
        model.cross = True
        assert _kinds(model, x, y)[0][0] != "self"
        assert _kinds(model, x, y)[0][0] != "self"


@pytest.mark.parametrize("later", [lambda out, x: out, lambda out, x: x, lambda out, x: out + x])
def test_what_comes_behind_a_walk_is_followed_from_what_was_known(later):
    """The walk ends where another layer is added; that layer still knows what its tokens passed through."""
    x = torch.randn(3, 5, 8)
    fresh = Switched()
    fresh.later = later
    expected = _kinds(fresh, x, x)
    model = Switched()
    for _ in range(2):
        _kinds(model, x, x)
    model.later = later
    for _ in range(3):
        assert _kinds(model, x, x) == expected


def test_a_changed_number_or_shape_is_noticed_and_names_stay():
    model, x = nn.ModuleDict({"a": Switched()}), torch.randn(3, 5, 8)
    forward = lambda x: model["a"](x, x)  # noqa: E731
    runner = nn.Module()
    runner.inner = model
    runner.forward = forward
    names = []
    for scale, n in ((1.0, 5), (1.0, 5), (2.0, 5), (2.0, 4), (2.0, 4), (1.0, 5)):
        model["a"].scale = scale
        with torch.no_grad(), capture(runner) as maps:
            runner(x[:, :n])
        names.append((maps[0].name, maps[0].shape))
    assert names == [("inner.a", (3, 2, n, n)) for n in (5, 5, 5, 4, 4, 5)]


def test_an_active_dropout_is_still_seen_on_a_walk_without():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    for _ in range(2):
        recorder, _ = _run(layer, (x,))
        assert not recorder.is_random
    recorder, _ = _run(layer.train(), (x,))
    assert recorder.is_random


def test_a_told_module_is_never_remembered():
    model, x = Switched(), torch.randn(3, 5, 8)
    for _ in range(2):
        _kinds(model, x, x)
    uniform = torch.full((3, 1, 5, 5), 0.2)
    with register_attention(model, lambda *_: uniform), torch.no_grad(), capture(model) as maps:
        model(x, x)
    assert torch.equal(maps[0].dense(), uniform)
    assert _kinds(model, x, x) == [("self", [])]


def test_walks_keep_nothing_alive_and_are_few():
    model, x = Switched(), torch.randn(3, 5, 8)
    for n in range(1, _KEPT + 4):
        _kinds(model, torch.randn(2, n, 8), torch.randn(2, n, 8))
    assert len(walks_of(model)) == _KEPT
    _kinds(model, x, x)
    kept = [weakref.ref(x), weakref.ref(model), weakref.ref(model.query.weight)]
    del model, x
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_an_exception_in_the_middle_leaves_no_walk_behind():
    model, x = Switched(), torch.randn(3, 5, 8)

    def fail(out, x):
        raise ValueError("on purpose")

    model.later = fail
    with pytest.raises(ValueError, match="on purpose"):
        _kinds(model, x, x)
    assert not len(walks_of(model))
    model.later = None
    assert _kinds(model, x, x) == [("self", [])]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_two_passes_in_one_capture():
    model, x = Switched(), torch.randn(3, 5, 8)
    for passes in (2, 2, 1, 3, 2):
        with torch.no_grad(), capture(model) as maps:
            for _ in range(passes):
                model(x, x)
        assert [(m.kind, m.index) for m in maps] == [("self", i) for i in range(passes)]
