"""The short way to the readout: taken only where the model's end treats each token by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.errors import ReadoutError
from tests.families import FAMILIES, build
from tests.families.facts import READING, over

B, N, D = 3, 7, 16


class Model(nn.Module):
    """Two layers of attention and an end that is put together by the test."""

    def __init__(self, end) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(D, 2, 24, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.mix = nn.Conv1d(D, D, 3, padding=1)
        self.tokens = nn.Linear(N, N)
        self.square = nn.Linear(D, D)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 3)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.end(self, x)


def _cls(m, x):
    return m.head(m.norm(x)[:, 0])


def _mean(m, x):
    return m.head(m.norm(x).mean(1))


def _gated(m, x):
    return m.head((F.silu(m.square(x)) * m.square(x) + x)[:, 0])


def _halves(m, x):
    a, b = m.square(x).chunk(2, dim=-1)
    return m.head(torch.cat([a * b.sigmoid(), b], dim=-1)[:, -1])


TOKENWISE = [_cls, _mean, _gated, _halves]


def _convolution(m, x):
    return m.head(m.mix(x.transpose(1, 2)).transpose(1, 2)[:, 0])


def _over_tokens(m, x):
    return m.head((x + m.tokens(x.transpose(1, 2)).transpose(1, 2))[:, 0])


def _squeeze_and_excite(m, x):
    return m.head((x * m.square(x.mean(1, keepdim=True)).sigmoid())[:, 0])


def _two_ways(m, x):
    return m.head(m.norm(x)[:, 0]) + m.head(x.flip(1)[:, 0])


def _scrambled(m, x):
    return m.head(m.square(x.transpose(1, 2).reshape(B, N, D))[:, 0])


def _running_sum(m, x):
    return m.head(m.norm(x.cumsum(1))[:, 2])


MIXING = [_convolution, _over_tokens, _squeeze_and_excite, _two_ways, _scrambled, _running_sum]


def _run(model, x, times=2):
    explained = ExplainedModel(model)
    return [explained.run((x,)) for _ in range(times)]


@pytest.mark.parametrize("end", TOKENWISE, ids=lambda f: f.__name__)
def test_the_short_way_is_found_and_tells_the_same(end):
    model, x = Model(end).eval(), torch.randn(B, N, D)
    first, second = _run(model, x)
    assert first.found.short_cut is not None
    assert second.recorder.leaf.shape == (B, N, D)  # a token state, not the attention's output
    assert second.recorder.leaf is not first.recorder.leaf
    torch.testing.assert_close(second.readout, first.readout, atol=1e-12, rtol=1e-6)
    torch.testing.assert_close(second.output, model(x).detach())


@pytest.mark.parametrize("end", MIXING, ids=lambda f: f.__name__)
def test_an_end_that_mixes_tokens_is_gone_through_in_full(end):
    model, x = Model(end).eval(), torch.randn(B, N, D)
    expected = _tokens_that_matter(model, x)
    explained = ExplainedModel(model)
    for _ in range(2):
        found = _readout_or_none(explained, x)
        if found is None:  # several tokens that no one weighting tells
            assert int(expected.sum(1).max()) > 1
        else:
            assert bool(((found > 0) == expected).all())


def _readout_or_none(explained, x):
    try:
        return explained.run((x,)).readout
    except ReadoutError:
        return None


def _tokens_that_matter(model, x):
    """Which tokens of the last attention call reach the output: by changing its output at one token after the other."""
    changed = torch.zeros(B, N, dtype=torch.bool)
    attention = model.layers[-1].self_attn
    plain = model.train(False)(x)
    for token in range(N):

        def disturb(module, args, output, token=token):
            out = output[0].clone()
            out[:, token] += torch.randn(B, D, generator=torch.Generator().manual_seed(0))
            return (out, output[1])

        handle = attention.register_forward_hook(disturb)
        changed[:, token] = (model(x) - plain).abs().amax(1) > 1e-6
        handle.remove()
    return changed


@pytest.mark.parametrize("n", [D, B])
def test_sizes_that_could_be_mistaken_for_each_other_take_the_long_way(n):
    model, x = Model(_cls).eval(), torch.randn(B, n, D)
    first, second = _run(model, x)
    assert first.found.short_cut is None
    assert torch.equal(first.readout, second.readout)


def test_a_token_mixer_as_wide_as_long_is_not_taken_for_a_linear_layer():
    """(B, N, D) with N = D: by its shapes, a layer over tokens looks like one over features."""

    def end(m, x):
        return m.head((x + m.square(x.transpose(1, 2)).transpose(1, 2))[:, 0])

    model, x = Model(end).eval(), torch.randn(B, D, D)
    explained = ExplainedModel(model)
    for _ in range(2):
        found = _readout_or_none(explained, x)
        assert found is None or int((found > 0).sum(1).min()) == D


def test_a_state_that_is_written_in_place_is_no_leaf():
    def end(m, x):
        state = m.norm(x)
        state.mul_(2.0)  # the result is not used
        return m.head(state[:, 1])

    model, x = Model(end).eval(), torch.randn(B, N, D)
    for done in _run(model, x, 3):
        assert done.readout[:, 1].tolist() == [1.0, 1.0, 1.0]
        torch.testing.assert_close(done.output, model(x).detach())


def test_another_end_is_noticed():
    model, x = Model(_cls).eval(), torch.randn(B, N, D)
    explained = ExplainedModel(model)
    explained.run((x,))
    model.end = lambda m, x: m.head(m.norm(x)[:, 3])
    assert explained.run((x,)).readout.argmax(1).tolist() == [3, 3, 3]  # the same steps, another token
    model.end = lambda m, x: m.head(m.mix(m.norm(x).transpose(1, 2)).transpose(1, 2)[:, 3] * 2)
    found = _readout_or_none(explained, x)
    assert found is None or (found > 0).sum(1).tolist() == [3, 3, 3]


@over(READING, sample=0)
def test_the_second_run_of_every_family_tells_what_the_first_did(make):
    family = build(make)
    inputs = family.inputs if isinstance(family.inputs, tuple) else (family.inputs,)
    explained = ExplainedModel(family.forward)
    runs = [explained.run(inputs, family.args) for _ in range(2)]
    torch.testing.assert_close(runs[1].readout, runs[0].readout, atol=1e-6, rtol=1e-5)


def test_most_families_have_the_short_way():
    """Otherwise it is not worth its keep."""
    found = []
    for make in FAMILIES[:12]:
        family = build(make)
        if family.reads is not None:
            inputs = family.inputs if isinstance(family.inputs, tuple) else (family.inputs,)
            found.append(ExplainedModel(family.forward).run(inputs, family.args).found.short_cut is not None)
    assert sum(found) > 0.6 * len(found)
