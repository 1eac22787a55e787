"""Whole matrices of scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.errors import InputError
from captum_attn_lime.methods import METHODS
from tests.families import bert, build, gpt2, llama_left_padded, vit


@pytest.mark.parametrize("make", [bert, gpt2, llama_left_padded, vit], ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("head_fusion", ["mean", "max"])
def test_rows_of_the_matrix_are_single_attributions(make, method, head_fusion):
    family = build(make)
    family.forward.double() if isinstance(family.forward, nn.Module) else None
    one = METHODS[method](head_fusion=head_fusion)
    attribution = AttentionAttribution(family.forward, method=one)
    inputs = family.inputs
    matrix = attribution.matrix(inputs, 0, family.args)
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    _, maps = attribution._run(tensors, family.args, 0, readout=False)
    for i in range(matrix.shape[1]):
        query = torch.zeros(matrix.shape[:2], dtype=matrix.dtype)
        query[:, i] = 1
        torch.testing.assert_close(matrix[:, i], one(maps, query), atol=2e-6, rtol=1e-4)


def test_a_matrix_that_would_not_fit_is_refused_beforehand():
    family = build(bert)
    attribution = AttentionAttribution(family.forward)
    with pytest.raises(InputError, match=r"2 x 7 x 7 scores needs .* max_bytes allows"):
        attribution.matrix(family.inputs, None, family.args, max_bytes=500)
    assert attribution.matrix(family.inputs, None, family.args, max_bytes=2000).shape == (2, 7, 7)
