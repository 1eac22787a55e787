"""Captured attention, raw attention and rollout against independent sources, over the table of model families."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.attr._token_map import place
from captum_attn_lime.errors import AttentionKindError, ExplanationError, ReadoutError, TokenMapError
from captum_attn_lime.methods import Rollout
from tests.families import ENCODER_DECODERS, FAMILIES, build, facts
from tests.families.checks import (
    assert_same_weights,
    assert_scores_on_cells,
    attribute,
    captured,
    causality_of,
    expected_scores,
    in_mode,
    kinds_of,
    real_rows,
    token_of_cell,
    tolerance_of,
)
from tests.families.facts import each_with, over
from tests.families.text_decoders import gemma2, gemma3, gpt_oss, llama_packed, mistral
from tests.families.text_encoders import modernbert
from tests.reference.attention import fuse, rollout_matrix

families = over(FAMILIES)


@over(facts.FINITE, beside="mode")
def test_captured_weights_equal_the_softmax_recomputed_in_float64(make, mode):
    family = build(make, torch.float64)
    with in_mode(family, mode):
        maps, tolerance = captured(family), tolerance_of(family)
    assert_same_weights(family, maps, family.recompute(), tolerance)
    assert_kinds_names_and_causality(family, maps)


def assert_kinds_names_and_causality(family, maps):
    assert [m.kind for m in maps] == kinds_of(family, len(maps))
    modules = dict(family.model.named_modules())
    for attention, causal in zip(maps, causality_of(family, len(maps)), strict=True):
        assert attention.name in modules
        assert attention.name or attention.kind == "pool"  # a pooling may be written in the model's own forward
        weights = attention.dense().numpy()
        if attention.kind == "self" and weights.shape[2] == weights.shape[3]:
            above = float(np.triu(np.where(real_rows(family, weights), weights, 0.0), 1).max())
            assert (above == 0) == causal, attention


@over(facts.MODES, beside="mode", sample=0)
def test_captured_weights_equal_those_the_library_reports_in_float32(make, mode):
    family = build(make)
    with in_mode(family, mode):
        maps = captured(family)
    expected = family.recompute()
    if family.output_attentions is not None:
        expected = [x.double().numpy() for x in family.output_attentions()]
    assert_same_weights(family, maps, expected, 1e-6)
    assert_kinds_names_and_causality(family, maps)


@families
def test_the_comparisons_could_fail(make):
    """In every call some row is far from uniform over the keys that it may see."""
    family = build(make, torch.float64)
    for weights in family.recompute():
        real = np.where(real_rows(family, weights), weights, 0.0)
        even = real.sum(-1) / np.maximum((real > 0).sum(-1), 1)
        assert float((real.max(-1) - even).max()) > 0.1


@over(facts.EXPLAINED)
def test_every_token_behind_the_prefix_has_an_input_cell(make):
    family = build(make, torch.float64)
    tokens = torch.cat([t.flatten() for t in token_of_cell(family)])
    layers = family.recompute()
    n_tokens = ([w for w in layers if w.shape[2] == w.shape[3]] or layers)[-1].shape[3]
    assert tokens[tokens >= 0].unique().tolist() == list(range(family.prefix, n_tokens))


@families
def test_raw_and_rollout_equal_the_dense_product_or_are_refused(make):
    family = build(make, torch.float64)
    attribution = AttentionAttribution(family.forward, method="rollout")
    told = {"additional_forward_args": family.args, "query": 0, "token_map": family.token_of_cell}
    if not family.products:
        with pytest.raises(ExplanationError):
            attribution.attribute(family.inputs, **told)
    if family.reads is None and family.scores is None and family.products:
        with pytest.raises(ReadoutError, match="query="):
            attribution.attribute(family.inputs, **(told | {"query": "auto"}))
    if not family.tells_tokens:
        with pytest.raises(TokenMapError, match="token_map="):
            attribution.attribute(family.inputs, **(told | {"token_map": None}))
    if make in facts.EXPLAINED:
        assert_raw_and_rollout(family)


def assert_raw_and_rollout(family):
    for method, scores in expected_scores(family, family.recompute()).items():
        assert_scores_on_cells(family, attribute(family, method=method), scores, tolerance_of(family))


@over(facts.EXPLAINED, sample=1)
def test_raw_and_rollout_equal_the_dense_product_in_float32(make):
    assert_raw_and_rollout(build(make, torch.float32))


@over(each_with(facts.ROWS, ["mean", "max", "min"]), beside="head_fusion", sample=0)
def test_rollout_options_equal_the_dense_product(make, head_fusion):
    family = build(make, torch.float64)
    method = Rollout(heads=[0, 2], head_fusion=head_fusion, residual=0.3)
    layers = family.recompute()[1:]
    scores = rollout_matrix(layers, head_fusion, 0.3, [0, 2])[np.arange(2), family.reads or [0, 0]]
    cells = attribute(family, method=method, layers=slice(1, None))
    assert_scores_on_cells(family, cells, scores, tolerance_of(family))


@over(facts.EXPLAINED, sample=2)
def test_a_batch_gives_each_example_what_it_gets_alone_and_padding_is_inert(make):
    family = build(make, torch.float64)
    options = {"method": "rollout" if family.products else "raw"}
    together = attribute(family, **options)
    for i in range(2):
        single = [x[i : i + 1] for x in family.tensors]
        args = tuple(x[i : i + 1] for x in family.args)
        alone = attribute(family, tuple(single) if isinstance(family.inputs, tuple) else single[0], args, **options)
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a[i], b[0], atol=1e-6, equal_nan=True)
        if family.mask is None:
            continue
        real = family.mask[i].bool()
        assert torch.equal(together[0][i][~real], torch.zeros(int((~real).sum()), dtype=torch.float64))
        unpadded = attribute(family, single[0][:, real], (args[0][:, real], *args[1:]), **options)
        assert torch.allclose(together[0][i][real], unpadded[0][0], atol=1e-6)


def _state(model):
    """What a capture might leave behind."""
    config = getattr(model, "config", None)
    return {
        "hooks": {
            (name, kind): list(getattr(module, kind))
            for name, module in model.named_modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        },
        "forwards": {name: module.__dict__.get("forward") for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "weights": {name: (id(p), p._version, p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "config": None if config is None else (config.to_dict(), config._attn_implementation),
        "flags": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()),
    }


@contextmanager
def _no_fast_path():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@over(FAMILIES, sample=0)
def test_nothing_is_left_on_the_model_and_outputs_are_bit_identical(make):
    family = build(make)
    before = family.run()
    with _no_fast_path():  # a kernel of its own, which rounds otherwise and is not taken under a capture
        plain = family.run()
    state = _state(family.model)
    with torch.no_grad(), capture(family.model):
        during = family.run()
    if make in facts.EXPLAINED:
        attribute(family, method="rollout" if family.products else "raw")
    assert torch.equal(during, plain)
    assert torch.equal(family.run(), before)
    assert _state(family.model) == state


@over(each_with(FAMILIES, [RuntimeError, KeyboardInterrupt]), beside="error", sample=0)
def test_nothing_is_left_after_an_exception(make, error):
    family = build(make)
    calls = len(captured(family))
    ran = []
    leaves = [m for m in family.model.modules() if not list(m.children())]
    handles = [m.register_forward_hook(lambda module, *_: ran.append(module)) for m in leaves]
    family.run()
    for handle in handles:
        handle.remove()
    state = _state(family.model)

    def fail(module, args):
        raise error("on purpose")

    handle = ran[-1].register_forward_pre_hook(fail)
    with pytest.raises(error, match="on purpose"):
        AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    with pytest.raises(error, match="on purpose"), capture(family.model):
        family.run()
    handle.remove()
    assert _state(family.model) == state
    assert len(captured(family)) == calls


@over(ENCODER_DECODERS)
@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_one_stack_of_an_encoder_and_decoder_is_explained_by_its_layers(make, method):
    family = build(make, torch.float64)
    layers = dict(zip([m.name for m in captured(family)], family.recompute(), strict=True))
    encoder = [name for name in layers if "encoder." in name]
    decoder = [name for name in layers if "decoder." in name and ("self" in name or "SelfAttention" in name)]
    cross = [name for name in layers if name not in encoder + decoder][-1]

    def check(names, query, carrier):
        attribution = AttentionAttribution(family.forward, method=method, layers=names)
        cells = attribution.attribute(family.inputs, additional_forward_args=family.args, query=query)
        cells = cells if isinstance(cells, tuple) else (cells,)
        chosen = [layers[name] for name in names]
        matrix = rollout_matrix(chosen) if method == "rollout" else sum(fuse(w, "mean") for w in chosen) / len(chosen)
        read = {"last": [6, 4], "auto": -1}.get(query, query)
        for i, found in enumerate(cells):
            expected = matrix[np.arange(2), read] if i == carrier else np.zeros(found.shape)
            assert np.abs(found.numpy() - expected).max() < 1e-12

    check(encoder, 1, 0)
    check(encoder, "last", 0)
    if len(family.tensors) == 2:
        check(decoder, 2, 1)
        check(decoder, "auto", 1)
    if method == "raw":
        check([cross], 2, 0)
    else:
        for names in (None, encoder + decoder, [cross]):
            attribution = AttentionAttribution(family.forward, layers=names)
            with pytest.raises(AttentionKindError):
                attribution.attribute(family.inputs, additional_forward_args=family.args, query=0)


AGO = torch.arange(7)[:, None] - torch.arange(7)  # how far before the query a key is
BEFORE, WINDOW = AGO >= 0, (AGO >= 0) & (AGO < 3)
PACKS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
HIDDEN = [
    (modernbert, [AGO.abs() < 7, AGO.abs() <= 2, AGO.abs() <= 2]),
    (mistral, [WINDOW] * 3),
    (gemma2, [WINDOW, BEFORE, WINDOW]),
    (gemma3, [WINDOW, WINDOW, BEFORE]),
    (gpt_oss, [WINDOW, BEFORE, WINDOW]),
    (llama_packed, [BEFORE & (PACKS[:, :, None] == PACKS[:, None, :])] * 3),
]


@pytest.mark.parametrize(("make", "allowed"), HIDDEN, ids=lambda x: getattr(x, "__name__", ""))
def test_windows_and_packed_texts_hide_tokens(make, allowed):
    family = build(make, torch.float64)
    for attention, seen in zip(captured(family), allowed, strict=True):
        weights = attention.dense().amax(dim=1)
        expected = seen.expand(2, 7, 7) if family.mask is None else seen & family.mask[:, None, :].bool()
        queries = torch.ones(2, 7) if family.mask is None else family.mask
        assert torch.equal((weights > 0)[queries.bool()], expected[queries.bool()])


def test_every_row_has_a_name_a_title_and_a_section_of_the_table():
    rows = [make() for make in FAMILIES]
    assert [row.name for row in rows] == [make.__name__ for make in FAMILIES]
    titles = [row.title for row in rows]
    assert all(titles)
    assert len(set(titles)) == len(titles)
    assert {row.group for row in rows} == {
        "text encoder", "text decoder", "encoder-decoder", "vision", "audio", "torch", "table", "hand-written",
    }  # fmt: skip


@families
def test_what_the_lists_say_of_a_family_is_true(make):
    family = build(make, torch.float64)
    assert (make in facts.EAGER) == (family.eager is not None)
    assert (make in facts.SCORED) == (family.scores is not None)
    assert (make in facts.STACKS) == family.products
    assert (make in facts.READING) == (family.reads is not None)
    if family.scores is not None:
        assert family.products == ("rollout" in family.scores(family.recompute()))
    for mode in ("fused", "eager") if family.eager else ("fused",):
        with in_mode(family, mode):
            assert ((make, mode) in facts.FINITE) == bool(family.run().isfinite().all())


def test_place_repeats_a_tokens_score_on_its_cells():
    out = place(torch.tensor([[0.1, 0.9]]), (torch.tensor([[1], [0]]),), (torch.zeros(1, 2, 3),))
    assert torch.equal(out[0], torch.tensor([[[0.9] * 3, [0.1] * 3]]))
