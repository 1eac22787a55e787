"""Relevance on whole models: what it leaves as found, and its inputs, targets and batches."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.errors import DropoutWarning, ReadoutError, SelectionError, TargetError
from captum_attn_lime.methods import Needs, StackMethod
from tests.families import IDS, MASK, HandWritten, bert, build, vit
from tests.families.hand_written import Folded
from tests.models.relevance import TARGETS, dense, first_row, like, near, relevance, strong_model
from tests.reference.relevance import gated_softmaxes, relevance_rows


@pytest.fixture
def model():
    return strong_model()


# --- the model is left as found, and runs as it does ----------------------------------------------------------------


def _state(model):
    return {
        "hooks": [
            list(getattr(m, kind))
            for m in model.modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ],
        "weights": [(id(p), p._version, p.requires_grad, p.grad) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "flags": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
    }


@pytest.mark.parametrize("frozen", [False, True, "half"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_found_whatever_the_mode(model, frozen, mode):
    expected = dense(model, IDS, MASK, query=first_row())
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(frozen is False or (frozen == "half" and i % 2 == 0))
    state, before = _state(model), model(IDS, MASK).detach()
    with mode():
        inside = _state(model)
        found = relevance(model, IDS.clone(), args=(MASK.clone(),))
        assert _state(model) == inside
    assert near(found.clone(), expected)
    assert not found.requires_grad
    assert _state(model) == state
    assert torch.equal(model(IDS, MASK), before)


def test_gradients_that_are_being_gathered_are_not_touched(model):
    model(IDS).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    loss = model(IDS).sum()
    relevance(model, IDS)
    for p, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, kept)
    loss.backward()  # a graph made before is as it was
    assert all(torch.allclose(p.grad, 2 * kept) for p, kept in zip(model.parameters(), before, strict=True))


def test_an_error_in_the_model_leaves_it_as_found(model):
    state = _state(model)
    handle = model.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("on purpose")))
    with pytest.raises(KeyError, match="on purpose"):
        relevance(model, IDS)
    handle.remove()
    assert _state(model) == state
    with pytest.raises(TargetError):
        relevance(model, IDS, target=9)
    assert _state(model) == state


class OverEmbeddings(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        for layer in self.body.layers:
            x = x + layer(x, None)
        return self.body.head(x[:, 0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_embeddings_get_what_their_ids_get(model, requires_grad):
    x = model.embed(IDS).detach().requires_grad_(requires_grad)
    found = relevance(OverEmbeddings(model), x)
    assert x.grad is None
    assert near(found[..., 5], dense(model, IDS, query=first_row()))
    assert torch.equal(found, found[..., :1].expand_as(found))


class WritesOutputs(HandWritten):
    def states(self, ids, mask=None):
        x = self.embed(ids)
        for layer in self.layers:
            y = layer(x, mask)
            y *= 1.5
            y += x
            x = y
        return x


class WritesStream(HandWritten):
    """Over what the layer's projections were given: torch itself has no gradient of it."""

    def states(self, ids, mask=None):
        x = self.embed(ids).clone()
        for layer in self.layers:
            x += layer(x, mask)
        return x


class WritesHeads(HandWritten.Attention):
    def mix(self, query, key, value, hidden):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        out[:, 0] *= 0.5
        out += 0.1
        return out.transpose(1, 2).flatten(2)


def test_models_that_write_into_what_attention_gives_out(model):
    for kind in (WritesOutputs, lambda: HandWritten(WritesHeads)):
        writes = like(model, kind)
        assert near(relevance(writes, IDS), dense(writes, IDS, query=first_row()))
    with pytest.raises(ReadoutError, match=r"could not be computed.*modified by an inplace operation"):
        relevance(like(model, WritesStream), IDS)


class WithoutGradients(HandWritten):
    def states(self, ids, mask=None):
        with torch.no_grad():
            return super().states(ids, mask)


def test_a_models_own_no_grad_is_no_obstacle(model):
    assert torch.equal(relevance(like(model, WithoutGradients), IDS), relevance(model, IDS))


def test_dropout_is_warned_of(model):
    noisy = nn.Sequential(model, nn.Dropout(0.1)).train()  # with more, the target itself may be dropped
    with pytest.warns(DropoutWarning, match="model.eval"):
        relevance(noisy, IDS, query=0, target=[0, 0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_models_are_explained_or_refused(reentrant):
    family = build(bert)
    expected = relevance(family.forward, IDS, args=(MASK,))
    for module in family.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        family.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        family.model.train()
        if not reentrant:
            assert torch.allclose(relevance(family.forward, IDS, args=(MASK,)), expected)
            return
        with pytest.raises((ReadoutError, SelectionError)):  # its graph is not there until it runs a second time
            relevance(family.forward, IDS, args=(MASK,), query=0)


def test_half_precision_is_near_and_the_wrapper_of_devices_changes_nothing():
    family = build(bert)
    expected = relevance(family.forward, IDS, args=(MASK,))
    parallel = nn.DataParallel(family.model)
    found = relevance(lambda ids, mask: parallel(input_ids=ids, attention_mask=mask).logits, IDS, args=(MASK,))
    assert torch.equal(found, expected)
    family.model.bfloat16()
    half = relevance(family.forward, IDS, args=(MASK,))
    gained, expected = (x - torch.eye(7)[[0, 0]] for x in (half, expected))
    assert float((gained - expected).norm() / expected.norm()) < 0.1
    family.model.half()
    assert bool(relevance(family.forward, IDS, args=(MASK,)).isfinite().all())


# --- batches, padding, targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HandWritten.Attention, Folded])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_a_batch_gives_each_example_what_it_gets_alone_also_with_as_many_as_heads(kind, batch):
    model = HandWritten(kind).double().eval()
    ids = torch.randint(1, 70, (batch, 7))
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    targets = [i % 3 for i in range(batch)]
    together = relevance(model, ids, args=(mask,), target=targets)
    for i, target in enumerate(targets):
        alone = relevance(model, ids[i : i + 1], args=(mask[i : i + 1],), target=target)
        assert torch.allclose(together[i], alone[0], atol=1e-12)
    assert torch.equal(together[::2, 5:], torch.zeros_like(together[::2, 5:]))
    expected = dense(like(model, HandWritten), ids, mask, query=first_row(batch), targets=targets)
    assert near(together, expected)


LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=8)
@given(lengths=LENGTHS, seed=st.integers(0, 1000))
def test_padding_changes_nothing(lengths, seed):
    torch.manual_seed(seed)
    model = HandWritten().double().eval()
    ids = torch.randint(1, 70, (len(lengths), 7))
    mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    padded = relevance(model, ids, args=(mask,), target=1)
    for i, n in enumerate(lengths):
        alone = relevance(model, ids[i : i + 1, :n], args=(mask[i : i + 1, :n],), target=1)
        assert torch.allclose(padded[i, :n], alone[0], atol=1e-12)
        assert not bool(padded[i, n:].any())


FORMS = [1, (1,), torch.tensor(1), torch.tensor([1]), [1, 1], torch.tensor([1, 1]), [(1,), (1,)]]


@pytest.mark.parametrize("target", FORMS, ids=repr)
def test_every_form_of_a_target_names_the_class(model, target):
    expected = dense(model, IDS, query=first_row(), targets=[1, 1])
    assert near(relevance(model, IDS, target=target), expected)
    assert not near(relevance(model, IDS, target=0), expected, 1e-3)


@pytest.mark.parametrize("target", [None, 3, -4, (0, 1), [0], [0, 1, 2], 1.5])
def test_a_target_that_names_no_number_of_the_output_is_refused(model, target):
    with pytest.raises(TargetError, match=r"output of shape \(2, 3\)"):
        relevance(model, IDS, target=target)


def test_a_name_needs_an_adapter_that_has_names(model):
    with pytest.raises(TargetError, match="has no class names"):
        relevance(model, IDS, target="fresh")


def test_one_number_per_example_needs_no_target(model):
    expected = dense(model, IDS, query=first_row(), targets=[1, 1])
    for output in (lambda ids: model(ids)[:, 1], lambda ids: model(ids)[:, 1:2]):
        assert near(relevance(output, IDS, target=None), expected)
    with pytest.raises(TargetError, match="selects 3 numbers of each example"):
        relevance(lambda ids: torch.stack([model(ids)] * 2, 1), IDS, target=1)


def test_outputs_with_one_row_per_token_are_read_where_the_target_says(model):
    def tagged(ids):
        return model.head(model.states(ids))

    targets = [(3, 1), (5, 0)]
    layers = gated_softmaxes(lambda: tagged(IDS), lambda y: y[0, 3, 1] + y[1, 5, 0])
    assert near(relevance(tagged, IDS, target=targets), relevance_rows(layers, np.eye(7)[[3, 5]]))
    with pytest.raises(ReadoutError, match=r"Pass target=\(position, class\)"):
        relevance(tagged, IDS, target=1)
    with pytest.raises(TargetError):
        relevance(tagged, IDS, target=1, query=0)


def test_the_target_is_said_to_matter_and_a_function_may_need_gradients_too(model):
    assert AttentionAttribution(model, method="relevance").uses_target

    def gained(stack: list[AttentionMap], query):
        return sum(layer.gated_vecmat(query) for layer in stack)

    own = StackMethod(gained, needs=Needs(gradients=True), uses_target=True)
    attribution = AttentionAttribution(model, method=own)
    assert attribution.uses_target
    found = attribution.attribute(IDS, target=TARGETS)
    layers = gated_softmaxes(lambda: model(IDS), lambda y: y[[0, 1], TARGETS].sum())
    expected = sum(np.maximum(layer.weights * layer.gradient, 0).mean(1)[:, 0] for layer in layers)
    assert near(found, expected)


def test_offloaded_layers_give_the_same(model, tmp_path):
    expected = relevance(model, IDS)
    assert torch.equal(relevance(model, IDS, offload="cpu"), expected)
    assert torch.equal(relevance(model, IDS, offload=tmp_path), expected)


def test_a_copy_of_the_model_gives_the_same_and_one_attribution_serves_several_inputs():
    family = build(vit, torch.float64)
    attribution = AttentionAttribution(family.forward, method="relevance")
    first = attribution.attribute(family.inputs, target=TARGETS)
    again = attribution.attribute(family.inputs.flip(0), target=TARGETS[::-1])
    assert torch.allclose(first, again.flip(0), atol=1e-12)
    assert torch.equal(attribution.attribute(family.inputs, target=TARGETS), first)
    copied = copy.deepcopy(family.model)
    assert torch.equal(relevance(lambda x: copied(pixel_values=x).logits, family.inputs), first)
