"""Nothing that was found out about a model outlives a change: a used attribution says what a fresh one says."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from captum_attn_lime import AttentionAttribution, GenerationAttribution, describe
from captum_attn_lime.errors import ExplanationError, InputError, SelectionError, TrainingModeWarning
from captum_attn_lime.memory import Memory, kind_of
from captum_attn_lime.model_state import ModelState
from tests.families import IDS, MASK, bert, build

N, WIDTH = 9, 16


def _layer():
    return nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0)


class Gated(nn.Module):
    """Two layers, and between them a convolution over tokens behind a gate that is shut."""

    def __init__(self, dilation=1):
        super().__init__()
        self.first, self.second = _layer(), _layer()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.gate = nn.Parameter(torch.tensor(0.0))
        self.head = nn.Linear(WIDTH, 2)
        self.register_buffer("open", torch.zeros(1))
        self.is_open, self.settings, self.mixing = False, {"open": False}, 0

    def forward(self, x, scale=None, *, is_open=False):
        x = self.first(x)
        gate = self.gate + self.open + self.is_open + self.settings["open"] + self.mixing + is_open
        gate = gate if scale is None else gate + scale
        x = x + gate * self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.second(x)[:, 0])


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


def _outcome(attribution, x, **options):
    try:
        return attribution.attribute(x, **options)
    except ExplanationError as error:
        return type(error)


def _assert_same(used, fresh, x, **options):
    found, expected = _outcome(used, x, **options), _outcome(fresh, x, **options)
    if isinstance(expected, type):
        assert found is expected
    else:
        assert not isinstance(found, type), found
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    return expected


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
    assert not isinstance(_outcome(used, x), type)
    CHANGES[change](model)
    assert isinstance(_assert_same(used, AttentionAttribution(model), x), type), "the convolution mixes tokens"


@pytest.mark.parametrize("way", FORWARDS)
@pytest.mark.parametrize("change", ["in place", "data in place", "flag"])
def test_however_the_model_is_reached(way, change):
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    forward = FORWARDS[way](model)
    used = AttentionAttribution(forward)
    used.attribute(x)
    CHANGES[change](model)
    assert isinstance(_assert_same(used, AttentionAttribution(forward), x), type)
    model.gate.data.fill_(0.0)
    model.is_open = False
    assert not isinstance(_assert_same(used, AttentionAttribution(forward), x), type)


def test_a_flag_that_a_closure_holds():
    model, x = Gated().eval(), torch.randn(2, N, WIDTH)
    mixes, settings = 0.0, {"mixes": 0.0}

    def forward(x):
        return model(x, torch.tensor(mixes + settings["mixes"]))

    used = AttentionAttribution(forward)
    used.attribute(x)
    mixes = 1.0
    assert isinstance(_assert_same(used, AttentionAttribution(forward), x), type)
    mixes = 0.0
    used.attribute(x)
    settings["mixes"] = 1.0
    assert isinstance(_assert_same(used, AttentionAttribution(forward), x), type)


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
    assert isinstance(_assert_same(used, AttentionAttribution(forward), x), type)


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
    expected = _assert_same(used, AttentionAttribution(model), x, additional_forward_args=(then,))
    assert isinstance(expected, type)
    assert not isinstance(_outcome(used, x, additional_forward_args=(first,)), type)


@pytest.mark.parametrize("first", [1, 2, 5])
def test_what_a_short_input_tells_is_not_taken_for_a_longer_one(first):
    """A convolution over distant tokens reaches none in a short input."""
    model, x = Gated(dilation=6).eval(), torch.randn(2, 12, WIDTH)
    model.gate.data.fill_(1.0)
    used = AttentionAttribution(model)
    used.attribute(x[:, :first], query=0)
    assert isinstance(_assert_same(used, AttentionAttribution(model), x), type)
    assert not isinstance(_assert_same(used, AttentionAttribution(model), x[:, :first], query=0), type)


def test_a_model_that_goes_another_way_with_longer_inputs():
    class Switching(Gated):
        def forward(self, x):
            self.is_open = x.shape[1] > 6
            return super().forward(x.flip(1) if x.shape[1] > 4 else x)

    model, x = Switching().eval(), torch.randn(2, N, WIDTH)
    used = AttentionAttribution(model)
    used.attribute(x[:, :4])
    for n in (5, 9, 4, 6):
        _assert_same(used, AttentionAttribution(model), x[:, :n])


def test_a_mask_that_leaves_one_token_tells_nothing_of_others():
    model = nn.ModuleList([_layer(), _layer()]).eval()

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
    assert isinstance(_assert_same(used, AttentionAttribution(forward), x, additional_forward_args=(two,)), type)


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
            assert not isinstance(_assert_same(used, fresh, ids, **options), type)


def test_what_is_remembered_is_bounded():
    model = Gated().eval()
    used = AttentionAttribution(model)
    for i in range(300):
        used.attribute(torch.randn(1, 3, WIDTH), additional_forward_args=(torch.tensor(0.0) * i,))
    with used.explaining():
        assert len(used._memory._now) < 20
    memory = Memory()
    with memory.opened(model):
        for i in range(1000):
            memory.put(i, i)
        assert memory.get(0) is None
        assert memory.get(999) == 999
        assert len(memory._now) <= 256


def test_facts_found_under_one_state_are_not_kept_under_the_next():
    """Another call, which has seen the model after a change, may come in between."""
    model, memory = nn.Linear(2, 2), Memory()
    with memory.opened(model):
        inside = memory._now
        with torch.no_grad():
            model.bias.add_(1.0)
        other = Memory()
        other.__dict__.update({**memory.__dict__, "_open": other._open})
        with other.opened(model):
            assert other._now is not inside
        memory.put("fact", 1)
    with memory.opened(model):
        assert memory.get("fact") is None


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
    first, again = (used.run((x,), None, (), find=False) for _ in range(2))
    assert again.recorder.trace.is_replayed
    assert first.way == again.way


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"method": "raw"},
        {"method": "relevance"},
        {"method": "raw", "layers": 0},
        {"layers": [0]},
        {"heads": [1]},
        {"residual": 0.0},
        {"head_fusion": "max"},
        {"offload": "cpu"},
    ],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_options_set_after_construction_are_used(options, implementation):
    family = build(bert)
    family.model.set_attn_implementation(implementation)
    given = {"target": 1, "additional_forward_args": (MASK,)}
    used = AttentionAttribution(family.forward)
    used.attribute(IDS, **given)
    for name, value in options.items():
        setattr(used, name, value)
    fresh = AttentionAttribution(family.forward, **options)
    assert used.uses_target == fresh.uses_target
    assert not isinstance(_assert_same(used, fresh, IDS, **given), type)


@pytest.mark.parametrize(
    ("option", "value"),
    [("method", "rolout"), ("residual", 2.0), ("head_fusion", "sum"), ("offload", "no such folder"), ("layers", "x")],
)
def test_a_wrong_option_set_after_construction_is_refused_when_it_is_used(option, value):
    attribution = AttentionAttribution(Gated().eval())
    setattr(attribution, option, value)
    with pytest.raises((InputError, SelectionError)):
        attribution.attribute(torch.randn(1, N, WIDTH))


def test_another_model_set_after_construction_is_explained():
    one, other, x = Gated().eval(), Gated().eval(), torch.randn(2, N, WIDTH)
    other.gate.data.fill_(1.0)
    used = AttentionAttribution(one)
    used.attribute(x)
    used.forward_func = other
    assert isinstance(_assert_same(used, AttentionAttribution(other), x), type)


def test_a_layer_may_be_named_by_its_module():
    family = build(bert)
    layers = family.model.bert.encoder.layer
    given = {"additional_forward_args": (MASK,)}
    for module, path in ((layers[1], 1), (layers[1].attention.self, 1), (layers[2].attention, 2)):
        found = AttentionAttribution(family.forward, layers=module, method="raw").attribute(IDS, **given)
        expected = AttentionAttribution(family.forward, layers=path, method="raw").attribute(IDS, **given)
        assert torch.equal(found, expected)
    found = AttentionAttribution(family.forward, layers=[layers[0], layers[1]]).attribute(IDS, query=0, **given)
    expected = AttentionAttribution(family.forward, layers=[0, np.int64(1)]).attribute(IDS, query=0, **given)
    assert torch.equal(found, expected)
    for module, message in (
        (nn.Linear(2, 2), "no part of the model"),
        (layers, "3 attention calls"),
        (family.model.classifier, "no attention call"),
        (copy.deepcopy(layers[1]), "no part of the model"),
    ):
        with pytest.raises(SelectionError, match=message):
            AttentionAttribution(family.forward, layers=module).attribute(IDS, **given)


def test_targets_may_be_numpys():
    family = build(bert)
    attribution = AttentionAttribution(family.forward, method="relevance")
    given = {"additional_forward_args": (MASK,)}
    for target, plain in (
        (np.int64(1), 1),
        (np.array([0, 2]), [0, 2]),
        ([np.int32(0), np.int32(2)], [0, 2]),
        ((np.int64(1),), (1,)),
        (np.array([[0], [2]]), [(0,), (2,)]),
        (np.array(1), 1),
    ):
        found = attribution.attribute(IDS, target=target, **given)
        assert torch.equal(found, attribution.attribute(IDS, target=plain, **given))
        attribution.matrix(IDS, target=target, **given)


# --- the model is left as found ---------------------------------------------------------------------------------------


class Normed(Gated):
    """Batch norm and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.second = nn.BatchNorm1d(WIDTH), nn.Sequential(nn.Dropout(dropout), self.second)

    def forward(self, x):
        return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2))


def test_training_mode_moves_no_batch_norm_and_is_said():
    model, x = Normed().train(), torch.randn(3, N, WIDTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for method in ("raw", "rollout", "relevance"):
        attribution = AttentionAttribution(model, method=method)
        for _ in range(2):
            with pytest.warns(TrainingModeWarning, match="batch norm"):
                attribution.attribute(x, target=0)
    describe(model, x)
    attribution.matrix(x, target=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())


def test_random_generators_are_left_as_one_run_of_the_model_leaves_them():
    model, x = Normed(dropout=0.5).train(), torch.randn(3, N, WIDTH)
    torch.manual_seed(5)
    model(x)
    expected = torch.get_rng_state()
    for make in (AttentionAttribution(model, method="raw"), AttentionAttribution(model)):
        scores = []
        for _ in range(3):
            torch.manual_seed(5)
            with pytest.warns(TrainingModeWarning):
                scores.append(make.attribute(x))
            assert torch.equal(torch.get_rng_state(), expected)
        assert torch.equal(scores[0], scores[1])
        with pytest.warns(TrainingModeWarning):
            again = make.attribute(x)
        assert not torch.equal(again, scores[0]), "one run after the other draws other numbers"


def test_what_the_model_switches_for_good_is_put_back():
    class Switching(Gated):
        def forward(self, x, mask):
            if x.shape[1] < 20:
                self.mixing, self.head = 1e-9, nn.Linear(WIDTH, 2)
            self.open.add_(1e-9)
            mask.zero_()
            return super().forward(x.add_(1.0))

    model, x, mask = Switching().eval(), torch.randn(2, N, WIDTH), torch.ones(2, N)
    head, kept = model.head, x.clone()
    AttentionAttribution(model, method="raw").attribute(x, additional_forward_args=(mask,))
    assert model.head is head
    assert (model.mixing, float(model.open), float(mask.sum())) == (0, 0.0, 2 * N)
    assert torch.equal(x, kept)
    AttentionAttribution(model).attribute(x, additional_forward_args=(mask,))
    assert torch.equal(x, kept)

    def broken(x):
        model(x, mask)
        raise KeyError("of the model")

    with pytest.raises(KeyError, match="of the model"):
        AttentionAttribution(broken).attribute(x)
    assert model.head is head
    assert float(mask.sum()) == 0, "what a function holds itself is its own"


def test_bigbird_stays_as_sparse_as_it_was():
    """It switches itself to full attention, for good, where an input is short."""
    from transformers import BigBirdConfig, BigBirdForSequenceClassification

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    tokens = dict(vocab_size=70, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=3)
    config = BigBirdConfig(**sizes, **tokens, attention_type="block_sparse", block_size=2, num_random_blocks=1)
    model = BigBirdForSequenceClassification(config).eval()
    layer = model.bert.encoder.layer[0].attention.self
    attribution = AttentionAttribution(lambda ids, mask: model(ids, attention_mask=mask).logits)
    for _ in range(2):
        attribution.attribute(IDS, additional_forward_args=(torch.ones_like(MASK),))
        assert model.bert.attention_type == "block_sparse"
        assert model.bert.encoder.layer[0].attention.self is layer


# --- copies and pickles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"method": "raw", "layers": 1}, {"offload": "cpu"}], ids=str)
def test_used_attributions_are_copied_and_pickled(options):
    family = build(bert)
    used = AttentionAttribution(Bert(family.model), **options)
    given = {"additional_forward_args": (MASK,), "query": 0}
    expected = used.attribute(IDS, **given)
    for copied in (copy.deepcopy(used), pickle.loads(pickle.dumps(used)), copy.copy(used)):
        assert torch.equal(copied.attribute(IDS, **given), expected)
        assert torch.equal(copied.attribute(IDS, **given), expected)
    by_module = AttentionAttribution(used.forward_func, layers=used.forward_func.inner.bert.encoder.layer[1])
    expected = by_module.attribute(IDS, **given)
    for copied in (copy.deepcopy(by_module), pickle.loads(pickle.dumps(by_module))):
        assert torch.equal(copied.attribute(IDS, **given), expected)


class Bert(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids, mask):
        return self.inner(ids, attention_mask=mask).logits


def test_generated_text_is_explained_by_the_model_as_it_is():
    from tests.language_models import gpt2 as make
    from tests.language_models import tokenizer

    model = make().eval()
    used = GenerationAttribution(AttentionAttribution(model, method="rollout"), tokenizer())
    expected = used.attribute("a fine film", target="a dull cast").full_attr
    for copied in (copy.deepcopy(used), pickle.loads(pickle.dumps(used))):
        assert torch.equal(copied.attribute("a fine film", target="a dull cast").full_attr, expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    used.attribution.residual = 0.2
    fresh = GenerationAttribution(AttentionAttribution(model, method="rollout", residual=0.2), tokenizer())
    found = used.attribute("a fine film", target="a dull cast").full_attr
    assert not torch.equal(found, expected)
    assert torch.equal(found, fresh.attribute("a fine film", target="a dull cast").full_attr)
    used.attribution.method = "relevance"
    with pytest.raises(InputError, match="depends on the class"):
        used.attribute("a fine film", target="a dull cast")


def test_kinds_hold_no_addresses():
    x = torch.zeros(2, 3)
    assert kind_of((x,), (object(),)) is None
    assert kind_of((x,), ({"mask": torch.ones(2, 3), "n": [1, None]},)) is not None
    assert kind_of((x,), (torch.arange(3),)) != kind_of((x,), (torch.arange(3) + 1,))
    assert kind_of((x,), (1,)) != kind_of((x,), (1.0,))
