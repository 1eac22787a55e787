"""Nothing that was found out about a model outlives a change: a used attribution says what a fresh one says."""

from __future__ import annotations

import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.attr._inputs import kind_of
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.attr._model_state import ModelState
from captum_attn_lime.attr._passes import Request
from tests.families import IDS, MASK, bert, build
from tests.models.gated import WIDTH, Gated, N, assert_same, layer, outcome


class _One(nn.Module):
    def forward(self, weight):
        return weight + 1.0


def _in_place(model):
    with torch.no_grad():
        model.gate.fill_(1.0)


def _load(model):
    model.load_state_dict({**model.state_dict(), "gate": torch.tensor(1.0)})


def _assign(model):
    model.load_state_dict({**model.state_dict(), "gate": torch.tensor(1.0)}, assign=True)


def _step(model):
    optimiser = torch.optim.SGD([model.gate], lr=1.0)
    (-model.gate).backward()
    optimiser.step()


def _through_numpy(model):
    model.gate.detach().numpy()[...] = 1.0


def _shared(model):
    """A change back and forth, so that versions alone would tell."""
    model.gate.data = torch.tensor(1.0)


CHANGES = {
    "in place": _in_place,
    "data in place": lambda m: m.gate.data.fill_(1.0),
    "data replaced": _shared,
    "numpy": _through_numpy,
    "load_state_dict": _load,
    "load_state_dict, assigned": _assign,
    "optimiser": _step,
    "copy_": lambda m: m.gate.data.copy_(torch.tensor(1.0)),
    "parameter replaced": lambda m: setattr(m, "gate", nn.Parameter(torch.tensor(1.0))),
    "parametrized": lambda m: parametrize.register_parametrization(m, "gate", _One()),
    "buffer": lambda m: m.open.fill_(1.0),
    "buffer replaced": lambda m: setattr(m, "open", torch.ones(1)),
    "flag": lambda m: setattr(m, "is_open", True),
    "number": lambda m: setattr(m, "mixing", 2),
    "setting": lambda m: m.settings.update(open=True),
    "hook": lambda m: m.first.register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True)),
    "pre-hook": lambda m: m.second.register_forward_pre_hook(lambda module, args: (args[0].cumsum(1),)),
    "module replaced": lambda m: setattr(m, "first", nn.Sequential(m.first, Mean())),
    "forward replaced": lambda m: setattr(m, "forward", functools.partial(m.forward, is_open=True)),
}


class Mean(nn.Module):
    def forward(self, x):
        return x + x.mean(1, keepdim=True)


FORWARDS = {
    "module": lambda m: m,
    "method": lambda m: m.forward,
    "closure": lambda m: lambda x, *args: m(x, *args),
    "partial": lambda m: functools.partial(m),
    "held in a list": lambda m: (lambda held: lambda x, *args: held[0](x, *args))([m]),
    "held in a dict": lambda m: (lambda held: lambda x, *args: held["m"](x, *args))({"m": m}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_used_object_sees_that_the_model_was_changed(change):
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    used = AttentionAttribution(model)
    assert not isinstance(outcome(used, x), type)
    CHANGES[change](model)
    assert isinstance(assert_same(used, AttentionAttribution(model), x), type), "the convolution mixes tokens"


@pytest.mark.parametrize("way", FORWARDS)
@pytest.mark.parametrize("change", ["in place", "data in place", "flag"])
def test_however_the_model_is_reached(way, change):
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    forward = FORWARDS[way](model)
    used = AttentionAttribution(forward)
    used.attribute(x)
    CHANGES[change](model)
    assert isinstance(assert_same(used, AttentionAttribution(forward), x), type)
    model.gate.data.fill_(0.0)
    model.is_open = False
    assert not isinstance(assert_same(used, AttentionAttribution(forward), x), type)


def test_a_flag_that_a_closure_holds():
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    mixes, settings = 0.0, {"mixes": 0.0}

    def forward(x):
        return model(x, torch.tensor(mixes + settings["mixes"]))

    used = AttentionAttribution(forward)
    used.attribute(x)
    mixes = 1.0
    assert isinstance(assert_same(used, AttentionAttribution(forward), x), type)
    mixes = 0.0
    used.attribute(x)
    settings["mixes"] = 1.0
    assert isinstance(assert_same(used, AttentionAttribution(forward), x), type)


class Hidden:
    """A function in which no model can be found."""

    __slots__ = ("_call",)

    def __init__(self, model):
        self._call = iter(lambda: model, None).__next__

    def __call__(self, x):
        return self._call()(x)


def test_nothing_is_remembered_of_a_function_that_shows_no_model():
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    forward = Hidden(model)
    assert ModelState(forward).is_opaque
    used = AttentionAttribution(forward)
    used.attribute(x)
    model.gate.data.fill_(1.0)
    assert isinstance(assert_same(used, AttentionAttribution(forward), x), type)


# --- other inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (torch.tensor(0.0), torch.tensor(1.0)),
        (torch.zeros(2, 1, 1), torch.ones(2, 1, 1)),
        (0.0, 1.0),
        (False, True),
        (torch.zeros(2, N, 1), torch.tensor([[0.0] * 4 + [1.0] * 5] * 2)[:, :, None]),
        (torch.zeros(2, N, 1), torch.linspace(-1, 1, N).expand(2, N)[:, :, None]),
        (np.float32(0.0), np.float32(1.0)),
    ],
)
def test_another_value_of_a_further_argument(first, then):
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    used = AttentionAttribution(model)
    used.attribute(x, additional_forward_args=(first,))
    expected = assert_same(used, AttentionAttribution(model), x, additional_forward_args=(then,))
    assert isinstance(expected, type)
    assert not isinstance(outcome(used, x, additional_forward_args=(first,)), type)


@pytest.mark.parametrize("first", [1, 2, 5])
def test_what_a_short_input_tells_is_not_taken_for_a_longer_one(first):
    """A convolution over distant tokens reaches none in a short input."""
    model, x = Gated(dilation=6).eval(), torch.randn(2, 12, WIDTH)
    model.gate.data.fill_(1.0)
    used = AttentionAttribution(model)
    used.attribute(x[:, :first], query=0)
    assert isinstance(assert_same(used, AttentionAttribution(model), x), type)
    assert not isinstance(assert_same(used, AttentionAttribution(model), x[:, :first], query=0), type)


def test_a_model_that_goes_another_way_with_longer_inputs():
    class Switching(Gated):
        def forward(self, x):
            self.is_open = x.shape[1] > 6
            return super().forward(x.flip(1) if x.shape[1] > 4 else x)

    model, x = Switching().eval(), torch.randn(2, N, WIDTH)
    used = AttentionAttribution(model)
    used.attribute(x[:, :4])
    for n in (5, 9, 4, 6):
        assert_same(used, AttentionAttribution(model), x[:, :n])


def test_a_mask_that_leaves_one_token_tells_nothing_of_others():
    model = nn.ModuleList([layer(), layer()]).eval()

    def forward(x, mask):
        x = model[0](x, src_key_padding_mask=mask == 0)
        # The mean of the real tokens' neighbours: there are none where one token is real.
        real = mask[:, :, None] * (mask.sum(1)[:, None, None] > 1)
        x = x + (x * real).sum(1, keepdim=True)
        return model[1](x, src_key_padding_mask=mask == 0)[:, 0]

    x, one = torch.randn(1, N, WIDTH), torch.zeros(1, N)
    one[0, 0] = 1.0
    used = AttentionAttribution(forward)
    used.attribute(x, additional_forward_args=(one,))
    two = torch.ones(1, N)
    assert isinstance(assert_same(used, AttentionAttribution(forward), x, additional_forward_args=(two,)), type)


@pytest.mark.parametrize("method", ["raw", "rollout", "relevance"])
def test_other_lengths_batches_masks_and_implementations(method):
    family = build(bert)
    used = AttentionAttribution(family.forward, method=method)
    longer = torch.cat([IDS, IDS[:, 1:5]], dim=1)
    inputs = [(IDS[:, :1], MASK[:, :1]), (IDS, MASK), (IDS[:1], MASK[:1]), (longer, torch.ones_like(longer))]
    inputs += [(IDS, torch.ones_like(MASK)), (IDS.repeat(2, 1), MASK.repeat(2, 1))]
    for implementation in ("sdpa", "eager", "sdpa"):
        family.model.set_attn_implementation(implementation)
        for ids, mask in inputs:
            fresh = AttentionAttribution(family.forward, method=method)
            options = {"target": 1, "additional_forward_args": (mask,)}
            assert not isinstance(assert_same(used, fresh, ids, **options), type)


def test_what_is_remembered_is_bounded():
    model = Gated().eval()
    used = AttentionAttribution(model)
    for i in range(300):
        used.attribute(torch.randn(1, 3, WIDTH), additional_forward_args=(torch.tensor(0.0) * i,))
    assert len(used._explained._facts) < 20
    explained = ExplainedModel(model)
    with explained.explaining():
        for i in range(1000):
            explained._learn(i, i)
        assert explained._known(0) is None
        assert explained._known(999) == 999
        assert len(explained._facts) <= 256


def test_facts_found_under_one_state_are_not_kept_under_the_next():
    """Another call, which has seen the model after a change, may come in between."""
    model = nn.Linear(2, 2)
    explained = ExplainedModel(model)

    def look():
        with explained.explaining():
            return explained._known("fact")

    with explained.explaining():
        with torch.no_grad():
            model.bias.add_(1.0)
        with ThreadPoolExecutor() as threads:
            threads.submit(look).result()
        explained._learn("fact", 1)
        assert explained._known("fact") == 1
    with explained.explaining():
        assert explained._known("fact") is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_has_learnt_nothing_about_its_model(copied):
    used, x = AttentionAttribution(Gated().eval()), torch.randn(2, N, WIDTH)
    used.attribute(x)
    other = copied(used)
    assert other._model.forward_func is other.forward_func is not used.forward_func
    assert used._model._facts
    assert not other._model._facts


@pytest.mark.parametrize("counted_by", ["closure", "hook"])
def test_a_second_call_runs_the_model_once(counted_by):
    """A log of its calls that the model, a hook or the function keeps is no change of the model."""
    model, calls = Gated().eval(), []
    model.calls, model.log, model.seen, kept = 0, [], {}, {}

    def counted(x, *args):
        model.calls += 1
        model.log.append(x)
        model.seen["shape"], model.seen[len(model.seen)] = x.shape, x
        calls.append(1)
        return model(x, *args)

    def hook(module, args, out):
        calls.append(1)
        kept["out"] = out

    if counted_by == "hook":
        model.register_forward_hook(hook)
    used, x = AttentionAttribution(model if counted_by == "hook" else counted), torch.randn(3, N, WIDTH)
    used.attribute(x)
    before = len(calls)
    for n in (1, 2, 3):
        used.attribute(x)
        assert len(calls) == before + n


def test_the_steps_of_a_used_model_are_not_followed_again():
    model, x = Gated().eval(), torch.randn(3, N, WIDTH)
    used = AttentionAttribution(model)
    used.attribute(x)
    first, again = (used._model.run((x,), (), Request(readout=False)) for _ in range(2))
    assert again.recorder.trace.is_replayed
    assert first.operations == again.operations


def test_kinds_hold_no_addresses():
    x = torch.zeros(2, 3)
    assert kind_of((x,), (object(),)) is None
    assert kind_of((x,), ({"mask": torch.ones(2, 3), "n": [1, None]},)) is not None
    assert kind_of((x,), (torch.arange(3),)) != kind_of((x,), (torch.arange(3) + 1,))
    assert kind_of((x,), (1,)) != kind_of((x,), (1.0,))
