"""`register_attention`: the user tells where a module's weights are."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, capture, register_attention
from captum_attn_lime.errors import InputError, NoAttentionError, UnreadableAttentionError

N, WIDTH = 5, 8


class Sparse(nn.Module):
    """Attention by ReLU instead of softmax: no capture takes that for attention."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def weights(self, x):
        scores = (self.query(x) @ self.key(x).transpose(1, 2)).relu() + 0.01
        return scores / scores.sum(-1, keepdim=True)

    def forward(self, x):
        return self.weights(x) @ self.value(x), "more"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.second = Sparse()
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = x + self.first(x, x, x, need_weights=False)[0]
        return self.head((x + self.second(x)[0])[:, 1])


def _told(module, args, kwargs, output):
    return module.weights(*args)[:, None]


def test_told_weights_take_part_in_everything():
    model = Model().eval()
    x = torch.randn(2, N, WIDTH)
    with torch.no_grad(), register_attention(model.second, _told), capture(model) as maps:
        inside = model(x)
    with torch.no_grad():
        assert torch.allclose(inside, model(x), atol=1e-6)  # without a capture torch has a kernel of its own
        first = model.first(x, x, x, average_attn_weights=True)[1]
        second = model.second.weights(x + model.first(x, x, x)[0])
    assert [m.name for m in maps] == ["first", "second"]
    assert [m.kind for m in maps] == ["self", "self"]
    assert (maps[1].dense()[:, 0] - second).abs().max() < 1e-6
    eye = torch.eye(N)
    rollout = (second + eye) / 2 @ ((first + eye) / 2)
    with register_attention(model.second, _told):
        scores = AttentionAttribution(model).attribute(x)
    assert (scores[:, :, 0] - rollout[:, 1]).abs().max() < 1e-6  # the head reads token 1


def test_without_the_registration_it_is_not_seen_and_products_are_refused():
    model, x = Model().eval(), torch.randn(2, N, WIDTH)
    handle = register_attention(model.second, _told)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert len(maps) == 2
    handle.remove()
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert len(maps) == 1
    with pytest.raises(NoAttentionError, match="register_attention"), capture(model.second):
        model.second(x)


def test_a_seen_softmax_inside_a_told_module_is_not_counted_twice():
    layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    x = torch.randn(2, N, WIDTH)
    even = torch.full((2, 1, N, N), 1 / N)
    with register_attention(layer, lambda *_: even), torch.no_grad(), capture(layer) as maps:
        layer(x, x, x)
    assert len(maps) == 1
    assert torch.equal(maps[0].dense(), even)


def test_the_registration_ends_with_the_module():
    from captum_attn_lime._capture.registered import _registrations

    before = len(_registrations)
    model = Model()
    register_attention(model.second, _told)
    assert len(_registrations) == before + 1
    del model
    import gc

    gc.collect()
    assert len(_registrations) == before


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda *_: torch.ones(2, N, N), r"shape \(2, 5, 5\)"),
        (lambda *_: None, "returned NoneType"),
        (lambda *_: torch.ones(2, 1, 3, N), r"one row per query"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(weights, message):
    model = Model().eval()
    with (
        register_attention(model.second, weights),
        pytest.raises(UnreadableAttentionError, match=message),
        capture(model),
    ):
        model(torch.randn(2, N, WIDTH))
    assert not any(m._forward_hooks for m in model.modules())


def test_bad_arguments():
    with pytest.raises(InputError, match="str"):
        register_attention("second", _told)


def test_a_told_module_that_raises_does_not_hide_what_follows():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("no such kernel")

    class Falling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
            self.failing = Failing()

        def forward(self, x):
            x = x + self.layers[0](x, x, x, need_weights=False)[0]
            with contextlib.suppress(ValueError):
                x = self.failing(x)
            return x + self.layers[1](x, x, x, need_weights=False)[0]

    model = Falling().eval()
    with register_attention(model.failing, _told), torch.no_grad(), capture(model) as maps:
        model(torch.randn(2, N, WIDTH))
    assert [m.name for m in maps] == ["layers.0", "layers.1"]


def test_it_holds_where_the_model_is_reached_through_a_list():
    model, x = Model().eval(), torch.randn(2, N, WIDTH)
    held = [model]
    with register_attention(model.second, _told):
        scores = [AttentionAttribution(f).attribute(x) for f in (model, lambda x: held[0](x))]
    assert torch.equal(*scores)


def test_an_earlier_registration_holds_again_and_an_old_handle_ends_none_but_its_own():
    layer, x = Sparse(), torch.randn(2, N, WIDTH)
    even = torch.full((2, 1, N, N), 1 / N)
    first = register_attention(layer, _told)
    with register_attention(layer, lambda *_: even), torch.no_grad(), capture(layer) as maps:
        layer(x)
    assert torch.equal(maps[0].dense(), even)
    with torch.no_grad(), capture(layer) as maps:
        layer(x)
    assert not torch.equal(maps[0].dense(), even)
    second = register_attention(layer, lambda *_: even)
    first.remove()
    with torch.no_grad(), capture(layer) as maps:
        layer(x)
    assert torch.equal(maps[0].dense(), even)
    second.remove()


def test_named_tuples_stay_what_they_are():
    class Pair(NamedTuple):
        states: torch.Tensor
        more: str

    class Named(Sparse):
        def forward(self, x):
            return Pair(*super().forward(x))

    layer = Named()
    with register_attention(layer, _told), torch.no_grad(), capture(layer):
        output = layer(torch.randn(2, N, WIDTH))
    assert isinstance(output, Pair)


def test_told_cross_attention_is_over_the_second_input():
    class Crossing(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.cross = Sparse(), Sparse()
            self.cross.forward = lambda queries, memory: self.cross.weights(memory) @ memory
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, target, source):
            memory = source + self.own(source)[0]
            return self.head((target + self.cross(target, memory))[:, 0])

    model = Crossing().eval()
    target, source = torch.randn(2, 2, N, WIDTH).unbind(0)
    with (
        register_attention(model.own, _told),
        register_attention(model.cross, lambda m, args, *_: m.weights(args[1])[:, None], kind="cross"),
    ):
        raw = AttentionAttribution(model, method="raw", layers="cross")
        at_target, at_source = raw.attribute((target, source), query=0)
    assert at_target.isnan().all()
    assert torch.allclose(at_source.sum(1), torch.ones(2, WIDTH))


@pytest.mark.parametrize("kind", ["sefl", "unknown"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(InputError, match="'self' or 'cross'"):
        register_attention(Sparse(), _told, kind=kind)
