"""Relevance against retained probabilities and dense products, over the table of model families."""

from __future__ import annotations

from contextlib import nullcontext
from types import MethodType

import numpy as np
import pytest
import torch

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.errors import ExplanationError
from captum_attn_lime.methods import Relevance
from tests.families import FAMILIES, build, facts
from tests.families.checks import assert_on_cells, in_mode, token_of_cell, what_to_say
from tests.families.facts import each_with, over
from tests.families.hand_written import Exponentials, HandWritten
from tests.families.tables import ft_transformer
from tests.families.text_encoders import deberta_v2
from tests.families.timm_models import timm_siglip
from tests.families.torch_modules import torch_decoder
from tests.families.vision import siglip_vision
from tests.families.windowed import timm_sam
from tests.reference.eager import recorded_weights
from tests.reference.relevance import Gated, gated_softmaxes, positive_part, relevance_rows


def dense(family, targets):
    """The family's calls as the model computes them eagerly: weights and gradients of the targets, (B, H, Q, K)."""
    for layer in family.model.modules():
        if isinstance(layer, Exponentials):
            layer.mix = MethodType(HandWritten.Attention.mix, layer)  # the same attention, with a softmax
    eager = nullcontext if family.eager is None else family.eager
    with eager():
        output = family.run()
        if not bool(output.isfinite().all()):
            eager = nullcontext  # rows without a key, cast to float32

    def explained(output):
        return output[torch.arange(len(output)), targets].sum()

    def of_model():
        return family.forward(*family.tensors, *family.args)

    with eager():
        found = gated_softmaxes(of_model, explained)
    for layer in family.model.modules():
        if isinstance(layer, Exponentials):
            del layer.mix
    parts = [list(x) for x in zip(*found, strict=True)]
    weights, gradients = parts if family.attentions is None else [family.attentions(part) for part in parts]
    expected = family.recompute()
    return [_placed(a, g, e) for a, g, e in zip(weights, gradients, expected, strict=True)]


def build_with_gradients(make, dtype=torch.float64):
    """Build a family whose output is scaled so that what its layers add to relevance is near one."""
    family = build(make, dtype)
    largest = max(float(positive_part(layer).sum(axis=-1).max()) for layer in dense(family, [0, 1]))
    forward = family.forward
    family.forward = lambda *x: forward(*x) / largest
    return family


def _placed(weights, gradient, expected):
    """Bring weights and gradients in the model's own layout to that of the known weights, (B, H, Q, K)."""
    batch, heads = expected.shape[:2]
    views = [lambda x: x] if weights.ndim == 4 else []
    if weights.ndim == 3:
        rest = weights.shape[1:]
        views += [
            lambda x: x.reshape(batch, heads, *rest),
            lambda x: x.reshape(heads, batch, *rest).swapaxes(0, 1),
            lambda x: x.reshape(batch, 1, 1, -1),  # additive
        ]
    for view in views:
        try:
            seen = np.broadcast_to(view(weights), expected.shape)
        except ValueError:
            continue
        # Rows of padded queries may differ between the ways to mask them.
        if np.abs(seen - expected)[:, :, 0].max() < 1e-5 or np.median(np.abs(seen - expected)) < 1e-7:
            return Gated(seen, np.broadcast_to(view(gradient), expected.shape))
    raise AssertionError(f"softmax of shape {weights.shape} is not the call of shape {expected.shape}")


def expected_relevance(family, layers, how="mean", heads=None, query=None):
    """The scores of tokens (B, N)."""
    weights = [layer.weights for layer in layers]
    own = [k for k, w in enumerate(weights) if w.shape[2] == w.shape[3]]
    if family.kinds is not None:
        own = [k for k in own if family.kinds[k] in ("self", "windowed")]
    stack = [layers[k] for k in own]
    n = stack[-1].weights.shape[2]
    if query is None and family.name == "ft_transformer":
        first = np.eye(n)[[0] * len(weights[-1])]
        query = first + positive_part(layers[-1], how, heads)[:, 0]
    elif query is None and family.scores is not None:
        # Rollout through layers that change nothing is what the prediction reads.
        still = [np.broadcast_to(np.eye(n), w.shape) if k in own else w for k, w in enumerate(weights)]
        query = family.scores(still)["rollout"]
    elif query is None:
        query = np.eye(n)[family.reads or [0] * len(weights[0])]
    return relevance_rows(stack, query, how, heads)


def found_relevance(family, targets, **options):
    said = what_to_say(family)
    query = {"query": options.pop("query")} if "query" in options else {}
    attribution = AttentionAttribution(family.forward, **{"method": "relevance", **options})
    cells = attribution.attribute(family.inputs, target=targets, additional_forward_args=family.args, **(said | query))
    return cells if isinstance(cells, tuple) else (cells,)


def assert_scores_on_cells(family, cells, scores, tolerance):
    for found, token in zip(cells, token_of_cell(family), strict=True):
        assert_on_cells(found.double(), token, scores, tolerance * max(1.0, np.abs(scores).max()))


def tolerance_of(family):
    """What the model leaves of its own type's precision: some round the softmax of a float64 model to float32."""
    with recorded_weights() as recorded:
        output = family.run()
    return 1e-10 if output.dtype == torch.float64 and not recorded.rounds else 1e-5


@over([make for make in FAMILIES if make not in facts.RELEVANT])
def test_others_are_refused(make):
    with pytest.raises(ExplanationError):
        found_relevance(build(make, torch.float64), [0, 1], query=0)


def assert_row_of_the_dense_product(make, mode):
    family = build_with_gradients(make)
    layers = dense(family, [0, 1])
    scores = expected_relevance(family, layers)
    with in_mode(family, mode):
        cells, tolerance = found_relevance(family, [0, 1]), tolerance_of(family)
    assert_scores_on_cells(family, cells, scores, tolerance)
    if len(layers) > 1:  # the comparison could fail: the layers add something to what is read
        assert np.abs(scores).sum(axis=1).min() > 1.05


@over(facts.RELEVANT)
def test_relevance_is_a_row_of_the_dense_product(make):
    assert_row_of_the_dense_product(make, "fused")


@over([make for make in facts.RELEVANT if (make, "eager") in facts.FINITE], sample=0)
def test_relevance_of_eager_attention_is_a_row_of_the_dense_product(make):
    assert_row_of_the_dense_product(make, "eager")


@over(facts.RELEVANT, sample=1)
def test_relevance_in_float32_is_near_that_in_float64(make):
    family = build_with_gradients(make)
    scores = expected_relevance(family, dense(family, [0, 1]))
    family.model.float()
    family.inputs = _cast(family.inputs)
    family.args = tuple(_cast(x) for x in family.args)
    assert_scores_on_cells(family, found_relevance(family, [0, 1]), scores, 1e-4)


def _cast(x):
    if isinstance(x, tuple):
        return tuple(_cast(part) for part in x)
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@over(each_with([make for make in facts.ROWS if make in facts.RELEVANT], ["mean", "max"]), beside="how", sample=2)
def test_heads_fusions_layers_and_queries_equal_the_dense_product(make, how):
    family = build_with_gradients(make)
    layers, tolerance = dense(family, [1, 1])[1:], tolerance_of(family)
    n = layers[-1].weights.shape[2]
    options = {"method": Relevance(heads=[0, 2], head_fusion=how), "layers": slice(1, None)}
    scores = expected_relevance(family, layers, how, [0, 2])
    assert_scores_on_cells(family, found_relevance(family, 1, **options), scores, tolerance)
    weights = np.random.default_rng(0).uniform(size=(2, n)) * (family.mask.numpy() if family.mask is not None else 1)
    scores = expected_relevance(family, layers, how, [0, 2], weights)
    cells = found_relevance(family, 1, query=torch.from_numpy(weights), **options)
    assert_scores_on_cells(family, cells, scores, tolerance)
    last = [n - 1, n - 1] if family.mask is None else [int(row.nonzero().max()) for row in family.mask]
    scores = expected_relevance(family, layers, how, [0, 2], np.eye(n)[last])
    assert_scores_on_cells(family, found_relevance(family, 1, query="last", **options), scores, tolerance)
    assert_scores_on_cells(family, found_relevance(family, 1, query=last, **options), scores, tolerance)


@pytest.mark.parametrize("make", [ft_transformer, siglip_vision, timm_siglip, deberta_v2, timm_sam, torch_decoder])
@pytest.mark.parametrize("copies", [1, 2])
def test_as_many_examples_as_heads_get_what_each_gets_alone(make, copies):
    family = build_with_gradients(make)
    scores = expected_relevance(family, dense(family, [0, 1]))

    def several(x):
        return torch.cat([x, x.flip(0)][:copies])  # four examples, as many as heads; or two, as timm_sam has heads

    family.inputs = (
        several(family.inputs) if not isinstance(family.inputs, tuple) else tuple(map(several, family.inputs))
    )
    family.args = tuple(several(x) for x in family.args)
    cells = found_relevance(family, [0, 1, 1, 0][: 2 * copies])
    expected = np.concatenate([scores, scores[::-1]][:copies])
    assert_scores_on_cells(family, cells, expected, tolerance_of(family))
