"""Every method of the table against its oracle, and what all methods have in common."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_attn_lime.attention import DenseMap, OneRowMap, ScoreMap
from captum_attn_lime.errors import AttentionKindError, InputError, SelectionError
from captum_attn_lime.methods import (
    METHODS,
    LayerMethod,
    Needs,
    Raw,
    Relevance,
    Rollout,
    StackMethod,
    get_method,
)
from tests.reference.methods import ORACLES
from tests.reference.relevance import gated_softmaxes

FUSIONS = ["mean", "max", "min"]
by_name = pytest.mark.parametrize("name", sorted(METHODS))
by_layers = pytest.mark.parametrize("name", sorted(n for n, kind in METHODS.items() if issubclass(kind, LayerMethod)))


def stack_of(seed, layers, n, heads, key_heads, *, is_fused):
    """Maps of a stack of attention in residual connections, with gradients of its first output; and the same dense."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width = 3 * heads
    projections = [[random(width, 3 * h) for h in (heads, key_heads, key_heads)] for _ in range(layers)]
    x, head = random(2, n, width), random(width)
    calls = []

    def run(keep=None):
        state = x
        for of_layer in projections:
            q, k, v = ((state @ w).unflatten(-1, (-1, 3)).transpose(1, 2) for w in of_layer)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            if keep is not None:
                keep.append((q, k, v, out))
                if out.requires_grad:
                    out.retain_grad()
            state = state + out.transpose(1, 2).flatten(2)
        return state[:, 0] @ head

    for of_layer in projections:
        for w in of_layer:
            w.requires_grad_()
    dense = gated_softmaxes(run, torch.sum)
    run(calls).sum().backward()
    maps = []
    for layer, (q, k, v, out) in zip(dense, calls, strict=True):
        weights = torch.from_numpy(layer.weights)
        attention = ScoreMap(q.detach(), k.detach(), kind="self") if is_fused else DenseMap(weights, kind="self")
        attention.value, attention.output_gradient = v.detach(), out.grad
        maps.append(attention)
    return maps, dense


def near(found, expected, tolerance=1e-10):
    return np.abs(found.numpy() - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def test_every_method_has_an_oracle():
    assert set(METHODS) == set(ORACLES)


@by_name
@given(data=st.data())
def test_a_method_equals_its_oracle(name, data):
    draw = data.draw
    heads = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
    n, seed = draw(st.integers(1, 6)), draw(st.integers(0, 1 << 16))
    maps, dense = stack_of(seed, draw(st.integers(1, 4)), n, *heads, is_fused=draw(st.booleans()))
    fusion = draw(st.sampled_from(FUSIONS))
    chosen = draw(st.sampled_from([None, [0, heads[0] - 1]])) if heads[0] > 1 else None
    more = {"residual": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))} if name == "rollout" else {}
    method = METHODS[name](head_fusion=fusion, heads=chosen, **more)
    query = np.random.default_rng(seed).uniform(size=(2, n))
    found = method(maps, torch.from_numpy(query))
    assert near(found, ORACLES[name](dense, query, fusion, chosen, **more))
    assert method.signed or bool((found >= 0).all())


@by_name
def test_several_queries_at_once_are_the_queries_one_by_one(name):
    maps, dense = stack_of(0, 3, 5, 2, 2, is_fused=True)
    queries = torch.rand(2, 3, 5, dtype=torch.float64)
    together = METHODS[name]()(maps, queries)
    for r in range(3):
        assert near(together[:, r], ORACLES[name](dense, queries[:, r].numpy(), "mean", None))


@by_layers
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_last_layer_of_one_query_is_one_more_step(name, fusion, is_fused):
    """A model may compute its last layer for the token that it reads only; that explains nothing otherwise."""
    (layer,), _ = stack_of(3, 1, 5, 4, 2, is_fused=is_fused)
    method = METHODS[name](head_fusion=fusion, heads=[0, 2])
    for read in range(5):
        row = DenseMap(layer.rows(read), kind="pool")
        row.value, row.output_gradient = layer.value, layer.output_gradient[:, :, read : read + 1]
        r = torch.eye(5, dtype=torch.float64)[[read, read]]
        assert near(method.step(OneRowMap(row), r), method.step(layer, r).numpy(), 1e-13)


@by_name
def test_methods_are_values(name):
    one, same = METHODS[name](), METHODS[name](head_fusion="mean", heads=None)
    assert one == same
    assert hash(one) == hash(same)
    assert repr(one) == f"{METHODS[name].__name__}()"
    other = METHODS[name](head_fusion="max", heads=[0, -1])
    assert repr(other) == f"{METHODS[name].__name__}(head_fusion='max', heads=(0, -1))"
    assert other not in (one, copy.copy(one))
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert copied == other
    with pytest.raises(FrozenInstanceError):
        one.heads = 0
    assert get_method(name) == one
    assert get_method(other) is other


@by_name
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head_fusion": "sum"}, InputError, "mean, max, min"),
        ({"heads": []}, SelectionError, "heads is empty"),
        ({"heads": True}, SelectionError, "is not valid"),
        ({"heads": [0, 1.5]}, SelectionError, "is not valid"),
        ({"heads": "all"}, SelectionError, "is not valid"),
    ],
)
def test_options_are_checked_when_a_method_is_made(name, options, error, message):
    with pytest.raises(error, match=message):
        METHODS[name](**options)


@pytest.mark.parametrize("residual", [1.5, -0.1, "half", None, float("nan")])
def test_the_residual_is_a_share(residual):
    with pytest.raises(InputError, match="between 0 and 1"):
        Rollout(residual=residual)


def test_a_head_that_the_model_does_not_have_is_refused_where_it_is_used():
    maps, _ = stack_of(0, 2, 4, 2, 2, is_fused=False)
    for name in METHODS:
        with pytest.raises(SelectionError, match="head 2 is out of range: there are 2 heads"):
            METHODS[name](heads=2)(maps, torch.ones(2, 4))


def test_what_methods_need():
    assert Raw(head_fusion="max", heads=1).needs == Needs(head_fusion="max", heads=1)
    assert Rollout().needs == Needs(head_fusion="mean")
    assert Relevance().needs == Needs(gradients=True)
    assert [METHODS[n]().uses_target for n in ("raw", "relevance", "rollout")] == [False, True, False]
    assert [METHODS[n]().last_layer_only for n in ("raw", "relevance", "rollout")] == [True, False, False]


def test_missing_mass_of_sinks_stays_missing():
    maps, _ = stack_of(0, 2, 5, 2, 2, is_fused=False)
    for layer in maps:
        layer.weights.mul_(0.6)
        layer._watch(layer.weights)
    query = torch.full((2, 5), 0.2, dtype=torch.float64)
    # Each layer passes 0.5 * 0.6 through attention and 0.5 through the residual: 0.8 of the mass.
    assert torch.allclose(Rollout()(maps, query).sum(1), torch.full((2,), 0.64, dtype=torch.float64))


def test_relevance_grows_with_each_layer():
    maps, _ = stack_of(1, 3, 5, 2, 2, is_fused=False)
    query = torch.eye(5, dtype=torch.float64)[[0, 0]]
    least = query
    for first in (2, 1, 0):
        found = Relevance()(maps[first:], query)
        assert bool((found >= least).all())
        assert float((found - least).max()) > 1e-3
        least = found


@by_layers
@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((1, 1, 3, 3), "cross", "cross-attention"),
        ((1, 1, 3, 3), "unknown", "could not be recognised"),
        ((1, 1, 3, 4), "self", "not square"),
        ((1, 1, 2, 2), "self", "over 2 tokens, but the last layer is over 3"),
    ],
)
def test_products_that_mean_nothing_are_refused_by_name(name, shape, kind, message):
    odd = DenseMap(torch.ones(shape) / shape[-1], name="block.7", kind=kind)
    last = DenseMap(torch.ones(1, 1, 3, 3) / 3, name="block.8", kind="self")
    with pytest.raises(AttentionKindError, match=message) as error:
        METHODS[name]()([odd, last], torch.ones(1, 3) / 3)
    assert "block.7" in str(error.value)
    assert str(error.value).startswith(METHODS[name].__name__)


def test_maps_without_values_or_gradients_are_refused_by_name():
    even = DenseMap(torch.full((1, 1, 3, 3), 1 / 3), name="block.1", kind="self")
    with pytest.raises(SelectionError, match=r"'block\.1' was captured without"):
        Relevance()([even], torch.ones(1, 3))


def test_what_is_no_method_is_refused_and_functions_are_methods():
    with pytest.raises(InputError, match="raw, relevance, rollout"):
        get_method("rolout")
    with pytest.raises(InputError, match=r"Rollout is a class; pass .* an object such as Rollout\(residual=0\.3\)"):
        get_method(Rollout)
    with pytest.raises(InputError, match="None is not known"):
        get_method(None)

    def first(stack, query):
        return stack[0].vecmat(query)

    method = get_method(first)
    assert method == StackMethod(first)
    assert repr(method) == "StackMethod(first)"
    assert (method.needs, method.uses_target, method.signed, method.last_layer_only) == (Needs(), False, False, False)
    assert StackMethod(first, needs=Needs(gradients=True)).uses_target
