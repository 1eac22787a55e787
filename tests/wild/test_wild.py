"""Models written without this package in mind: their attention is captured exactly, or refused by name."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path

import pytest
import torch

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.errors import ExplanationError, NoAttentionError, UnreadableAttentionError

CAPTURED = ["autoint_rows", "onmt_luong_reader", "set_induced_points", "xl_skew_softmax"]
REFUSED = {
    # Scatter and index_add over edges: there is no softmax to see.
    "edge_softmax_gat": (NoAttentionError, "BondNet"),
    # A TorchScript function, and softmax by powers of two over chunks, never whole.
    "hop_reader": (NoAttentionError, "StoryReader"),
    # Linear attention by random features: no weights exist.
    "ssm_random_features": (NoAttentionError, "Tide"),
    # 1.5-entmax in an autograd function of its own.
    "xl_entmax": (NoAttentionError, "Segmenter"),
    # The weights are mixed over heads after the softmax.
    "axial_talking_slots": (UnreadableAttentionError, "'row', 'col'"),
    "perceiver_shared_talking": (UnreadableAttentionError, "'layers.0.0.fn'"),
}
# What an attribution says of captured models that are not one stack over the input's tokens.
ASKS = {
    "autoint_rows": "runs over 1 groups of tokens for 5 examples",
    "onmt_luong_reader": "Choose layers=",
    "set_induced_points": "Pass query=",
}


def _load(name):
    module = import_module(f"tests.wild.models.{name}")
    model, inputs = module.example()
    return module, model, inputs


def test_every_model_is_expected_somewhere():
    files = {path.stem for path in (Path(__file__).parent / "models").glob("[!_]*.py")}
    assert files == {*CAPTURED, *REFUSED}


@pytest.mark.parametrize("name", CAPTURED)
def test_weights_are_captured_exactly(name):
    module, model, inputs = _load(name)
    model = copy.deepcopy(model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        before = model(*inputs)
        with capture(model) as maps:
            assert torch.equal(model(*inputs), before)
    expected = module.attention(model, *inputs)
    found = [m.dense() for m in maps]
    if name == "onmt_luong_reader":  # one call for each step of the decoder
        found = [torch.cat(found, dim=2)]
    assert [f.shape for f in found] == [e.shape for e in expected]
    for weights, true in zip(found, expected, strict=True):
        assert (weights - true).abs().max() < 1e-12


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name):
    kind, named = REFUSED[name]
    _, model, inputs = _load(name)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with torch.no_grad():
        before = model(*inputs)
        with pytest.raises(kind, match=named), capture(model):
            assert torch.equal(model(*inputs), before)
    with pytest.raises(kind, match=named):
        AttentionAttribution(model).attribute(inputs[0], additional_forward_args=inputs[1:])
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


@pytest.mark.parametrize("name", CAPTURED)
def test_attributions_are_given_or_refused_with_what_to_do(name):
    module, model, inputs = _load(name)

    def attribute():
        attribution = AttentionAttribution(model, method="raw")
        return attribution.attribute(inputs[0], additional_forward_args=inputs[1:])

    if name in ASKS:
        with pytest.raises(ExplanationError, match=ASKS[name]):
            attribute()
        return
    # The mean over all tokens is read.
    expected = module.attention(model, *inputs)[-1].mean(dim=(1, 2))
    assert (attribute().double() - expected).abs().max() < 1e-6
