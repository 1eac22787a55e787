"""flex_attention: scores and masks that are functions of position, against the dense formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, capture

flex = pytest.importorskip("torch.nn.attention.flex_attention")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
]

N = 12
PENALTY = torch.randn(4, 2 * N - 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _bias(score, b, h, i, j):
    """A learned bias by relative position: a tensor indexed by positions."""
    return score + PENALTY.to(score.dtype)[h, i - j + N - 1]


def _soft_cap(score, b, h, i, j):
    return 3.0 * torch.tanh(score / 3.0)


def _causal(b, h, i, j):
    return i >= j


def _padded(b, h, i, j):
    return j < N - 3 * b


CASES = {
    "plain": (None, None),
    "causal": (None, _causal),
    "padding": (None, _padded),
    "relative bias": (_bias, None),
    "soft cap, causal": (_soft_cap, _causal),
}


class Flex(nn.Module):
    def __init__(self, score_mod=None, mask_mod=None, key_heads=4, compiled=False):
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(16, 4 * h) for h in (4, key_heads, key_heads))
        self.score_mod, self.gqa = score_mod, key_heads != 4
        self.mask = None if mask_mod is None else flex.create_block_mask(mask_mod, 2, None, N, N, device="cpu")
        self.attend = torch.compile(flex.flex_attention, backend="eager") if compiled else flex.flex_attention
        self.head = nn.Linear(16, 3)

    def heads(self, x):
        return [f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in self.project]

    def forward(self, x):
        q, k, v = self.heads(x)
        out = self.attend(q, k, v, score_mod=self.score_mod, block_mask=self.mask, enable_gqa=self.gqa)
        return self.head(out.transpose(1, 2).flatten(2)[:, 0])


def _expected(model, x, score_mod, mask_mod):
    """The weights, index by index."""
    q, k, _ = model.heads(x)
    scores = q @ k.repeat_interleave(4 // k.shape[1], dim=1).transpose(-1, -2) / math.sqrt(4)
    out = torch.full_like(scores, -math.inf)
    for b in range(2):
        for h in range(4):
            for i in range(N):
                for j in range(N):
                    index = [torch.tensor(t) for t in (b, h, i, j)]
                    if mask_mod is None or bool(mask_mod(*index)):
                        out[b, h, i, j] = (
                            scores[b, h, i, j] if score_mod is None else score_mod(scores[b, h, i, j], *index)
                        )
    return out.softmax(-1)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("case", CASES)
def test_weights_equal_the_formula(case, key_heads):
    score_mod, mask_mod = CASES[case]
    model = Flex(score_mod, mask_mod, key_heads).double().eval()
    x = 2 * torch.randn(2, N, 16, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        with capture(model) as maps:
            during = model(x)
        expected = _expected(model, x, score_mod, mask_mod)
    (attention,) = maps
    assert attention.kind == "self"
    assert (attention.dense() - expected).abs().max() < 1e-12
    r = torch.rand(2, N, dtype=torch.float64)
    assert (attention.vecmat(r) - torch.einsum("bq,bqk->bk", r, expected.mean(1))).abs().max() < 1e-12
    assert (attention.rows([3, -1], heads=[1]) - expected[:, 1:2, [3, -1]]).abs().max() < 1e-12
    assert torch.equal(attention.reads_itself(), expected.mean(1).diagonal(dim1=1, dim2=2) > 0)
    assert (during - before).abs().max() <= 1e-12


def test_the_readout_works_through_it_and_a_compiled_call_is_seen():
    model = Flex(None, _causal, compiled=True).eval()
    x = torch.randn(2, N, 16)
    with torch.no_grad():
        expected = _expected(model, x, None, _causal).mean(1)[:, 0]
    scores = AttentionAttribution(model, method="raw").attribute(x)[:, :, 0]
    assert (scores - expected).abs().max() < 1e-6


def test_huggingface_flex_attention_equals_eager():
    from tests.families import bert, build

    family = build(bert)
    family.model.set_attn_implementation("flex_attention")
    with torch.no_grad(), capture(family.model) as maps:
        flexible = family.run()
    family.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = family.model(family.inputs, *family.args, output_attentions=True)
    real = family.args[0].bool()[:, None, :, None]
    assert (flexible - out.logits).abs().max() < 1e-5
    for attention, expected in zip(maps, out.attentions, strict=True):
        assert type(attention).__name__ == "ModifiedScoreMap"
        assert attention.kind == "self"
        assert ((attention.dense() - expected) * real).abs().max() <= 1e-6


def test_functions_are_kept_as_they_were_at_the_call():
    """Names in a loop, and tensors that the model writes into, mean something else afterwards."""
    layers = [Flex().double().eval() for _ in range(2)]
    step = torch.zeros((), dtype=torch.float64)
    x = torch.randn(2, N, 16, dtype=torch.float64)
    expected = []

    def run():
        for slope, layer in zip((0.0, 4.0), layers, strict=True):
            step.add_(1.0)
            layer.score_mod = lambda s, b, h, i, j: s - slope * (i - j).abs() * step  # noqa: B023
            layer(x)

    with torch.no_grad():
        for slope, at, layer in zip((0.0, 4.0), (1.0, 2.0), layers, strict=True):
            expected.append(_expected(layer, x, lambda s, b, h, i, j, k=slope * at: s - k * (i - j).abs(), None))
        with capture(layers[0]) as maps:
            run()
    for attention, weights in zip(maps, expected, strict=True):
        assert (attention.dense() - weights).abs().max() < 1e-12
