"""What the tests over the table of families have in common: running a row, and comparing with its oracle."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from captum_attn_lime import AttentionAttribution, capture
from tests.reference.attention import fuse, rollout_matrix
from tests.reference.eager import recorded_weights


def captured(family):
    with torch.no_grad(), capture(family.model) as maps:
        family.run()
    return maps


def in_mode(family, mode):
    return nullcontext() if mode == "fused" else family.eager()


def tolerance_of(family):
    """What the model leaves of its own type's precision: some round the softmax of a float64 model to float32."""
    with recorded_weights() as recorded:
        output = family.run()
    return 1e-12 if output.dtype == torch.float64 and not recorded.rounds else 1e-6


def kinds_of(family, calls):
    return family.kinds or ["self"] * calls


def causality_of(family, calls):
    return family.causal if isinstance(family.causal, list) else [family.causal] * calls


def real_rows(family, weights):
    """Rows of padded queries mean nothing: the oracle gives zeros where the model may compute anything."""
    mask = family.mask
    if mask is None or weights.shape[2] != mask.shape[1]:
        return np.ones((len(weights), 1, weights.shape[2], 1), dtype=bool)
    return mask.bool().numpy()[:, None, :, None]


def assert_same_weights(family, maps, expected, tolerance):
    assert len(maps) == len(expected)
    for attention, weights in zip(maps, expected, strict=True):
        captured = attention.dense().double().numpy()
        assert attention.shape == captured.shape == weights.shape
        worst = float(np.abs(np.where(real_rows(family, weights), captured - weights, 0.0)).max())
        assert worst <= tolerance, attention


def expected_scores(family, layers):
    """The scores of tokens (B, N) by method: of a dense product, read where the family says."""
    if family.scores is not None:
        return family.scores(layers)
    rows = (np.arange(2), np.array(family.reads or [0, 0]))
    return {"raw": fuse(layers[-1], "mean")[rows], "rollout": rollout_matrix(layers)[rows]}


def what_to_say(family):
    """What a user must say of a model besides its input."""
    asks = family.reads is None and family.scores is None
    return ({"query": 0} if asks else {}) | ({} if family.tells_tokens else {"token_map": family.token_of_cell})


def attribute(family, inputs=None, args=None, **options):
    """The attributions as a tuple, float64."""
    inputs = family.inputs if inputs is None else inputs
    args = family.args if args is None else args
    attribution = AttentionAttribution(family.forward, **options)
    cells = attribution.attribute(inputs, additional_forward_args=args, **what_to_say(family))
    assert isinstance(cells, tuple) == isinstance(inputs, tuple)
    cells = cells if isinstance(cells, tuple) else (cells,)
    assert [c.shape for c in cells] == [x.shape for x in (inputs if isinstance(inputs, tuple) else (inputs,))]
    return tuple(c.double() for c in cells)


def token_of_cell(family):
    if family.token_of_cell is None:
        return (torch.arange(family.tensors[0].shape[1]),)
    return family.token_of_cell if isinstance(family.token_of_cell, tuple) else (family.token_of_cell,)


def assert_scores_on_cells(family, cells, scores, tolerance):
    for found, token in zip(cells, token_of_cell(family), strict=True):
        assert_on_cells(found, token, scores, tolerance)


def assert_on_cells(found, token, scores, tolerance):
    """Token -1 is none: columns that pass attention by have no value, and pixels beyond the last patch 0."""
    none = np.full((len(scores), 1), 0.0 if found.dim() == 4 else np.nan)
    expected = np.concatenate([scores, none], axis=1)[:, token.expand(found.shape[1:]).numpy()]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)
