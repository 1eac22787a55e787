"""`check_attribution` over the families and the LIME classes, and that it finds what breaks a law."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, IntegratedGradients, KernelShap, Saliency
from torch import nn

from captum_attn_lime import (
    AttentionAttribution,
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
)
from captum_attn_lime.errors import InputError, LawError
from captum_attn_lime.methods import Raw, Rollout
from captum_attn_lime.testing import check_attribution
from tests.families import FAMILIES, IDS, MASK, bert, build, flexible, hand_written, torch_encoder, vit
from tests.families.checks import what_to_say
from tests.models import text as models
from tests.models.small import Mean, Net


def _check(family, method, layers=None, **options):
    attribution = AttentionAttribution(family.forward, method=method, layers=layers)
    given = {"target": 1, "additional_forward_args": family.args, **what_to_say(family)}
    return check_attribution(attribution, family.inputs, **{**given, **options})


# One in fourteen, of all kinds and methods, with every run of the tests; all of them with the slow ones.
NUMBERED = [
    pytest.param(number, make, id=make.__name__, marks=() if number % 14 == 0 else pytest.mark.slow)
    for number, make in enumerate(FAMILIES)
]


@pytest.mark.parametrize(("number", "make"), NUMBERED)
def test_every_family(number, make):
    family = build(make)
    method = ("rollout", "raw", "relevance")[number % 3] if family.products else "raw"
    if make is flexible and method == "relevance":
        method = "rollout"  # flex_attention has no gradient on the CPU
    if family.group == "encoder-decoder":
        _check(family, "raw", layers=0, query=0, thorough=False)
    else:
        _check(family, method, layers=None if family.products else -1, thorough=False)


@pytest.mark.parametrize(("make", "method"), [(bert, "rollout"), (torch_encoder, "raw"), (hand_written, "relevance")])
def test_all_changes(make, method):
    family = build(make)
    options = [{"method": Raw(head_fusion="max")}, {"method": Rollout(heads=[1])}]
    assert len(_check(family, method, options=options)) == 10


# --- LIME -----------------------------------------------------------------------------------------------------------


def test_lime_of_texts():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    x = adapter.encode(["a fine film with a dull cast", "a dull film"])
    lime = LimeText(adapter)
    given = {name: value for name, value in x.arguments(lime).items() if name != "inputs"}
    check_attribution(lime, x.inputs, target=1, n_samples=40, thorough=False, options=[{"seed": 5}], **given)


ROWS = np.random.default_rng(0).normal(size=(60, 4))
X = torch.tensor(ROWS[:3], dtype=torch.float32)


def test_lime_of_rows():
    adapter = TabularAdapter(Net(4).eval(), training_data=ROWS)
    for lime in (LimeTabular(adapter), LimeTabular(Net(4).eval(), ROWS)):
        check_attribution(lime, X, target=1, n_samples=50)


def test_lime_of_series():
    series = np.random.default_rng(0).normal(size=(20, 5, 2)).astype(np.float32)
    adapter = SequenceAdapter(Mean(2).eval(), training_data=series)
    check_attribution(LimeSequence(adapter), torch.tensor(series[:2]), target=1, n_samples=50)


def test_lime_of_pictures():
    family = build(vit)
    lime = LimeImage(Logits(family.model))
    mask = (torch.arange(24)[:, None] // 8 * 3 + torch.arange(24) // 8).expand(1, 3, 24, 24)
    check_attribution(lime, family.inputs, target=1, n_samples=30, feature_mask=mask, thorough=False)


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


# --- Captum's own, and what is broken on purpose ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [Saliency, IntegratedGradients, FeatureAblation, KernelShap])
def test_captums_own_methods_keep_the_laws(make):
    """KernelShap is random: it may draw, and its rows draw other numbers."""
    laws = check_attribution(make(Net(4).eval()), X, target=1)
    assert not X.requires_grad
    assert ("a batch agrees with its rows" in laws) == (make is not KernelShap)


class Broken(Saliency):
    """Gradients, and one law broken."""

    def __init__(self, model, how):
        super().__init__(model)
        self.how, self.kept, self.calls = how, {}, 0

    def attribute(self, inputs, target=None, additional_forward_args=None):
        found = getattr(self, "_" + self.how.replace(" ", "_"))
        return found(inputs, lambda x=inputs, t=target: super(Broken, self).attribute(x, t))

    def _caches_by_shape(self, inputs, plain):
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        if x.shape not in self.kept:
            self.kept[x.shape] = plain(x)
        return (self.kept[x.shape],) if isinstance(inputs, tuple) else self.kept[x.shape]

    def _caches_weights(self, inputs, plain):
        weight = self.forward_func[0].weight
        first = self.kept.setdefault("weight", weight.detach().clone())
        scores = plain()
        share = float((first.sum() / weight.sum()).detach())
        return tuple(s * share for s in scores) if isinstance(scores, tuple) else scores * share

    def _keeps_the_first_input(self, inputs, plain):
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        scale = self.kept.setdefault("scale", float(x.abs().max()))
        return tuple(s * scale for s in plain()) if isinstance(inputs, tuple) else plain() * scale

    def _leaves_a_hook(self, inputs, plain):
        self.forward_func[1].register_forward_hook(lambda *_: None)
        return plain()

    def _leaves_a_hook_after_an_error(self, inputs, plain):
        handle = self.forward_func[1].register_forward_hook(lambda *_: None)
        scores = plain()
        handle.remove()
        return scores

    def _writes_into_inputs(self, inputs, plain):
        scores = plain()
        (inputs[0] if isinstance(inputs, tuple) else inputs).data.mul_(2.0)
        return scores

    def _writes_into_weights(self, inputs, plain):
        scores = plain()
        self.forward_func[0].bias.data[0] += 1e-6
        return scores

    def _draws(self, inputs, plain):
        torch.rand(1)
        return plain()

    def _draws_from_numpy(self, inputs, plain):
        np.random.random()  # noqa: NPY002
        return plain()

    def _draws_from_python(self, inputs, plain):
        random.random()
        return plain()

    def _leaves_requires_grad(self, inputs, plain):
        scores = plain()
        (inputs[0] if isinstance(inputs, tuple) else inputs).requires_grad_()
        return tuple(s.detach() for s in scores) if isinstance(scores, tuple) else scores.detach()

    def _leaves_an_attribute(self, inputs, plain):
        self.forward_func.seen = True
        return plain()

    def _switches_to_eval(self, inputs, plain):
        self.forward_func.eval()
        return plain()

    def _leaves_gradients(self, inputs, plain):
        self.forward_func(inputs[0] if isinstance(inputs, tuple) else inputs).sum().backward()
        return plain()

    def _switches_gradients_off(self, inputs, plain):
        scores = plain()
        torch.set_grad_enabled(False)
        return scores

    def _changes_its_options(self, inputs, plain):
        self.calls += 1
        return plain()

    def _gives_no_tuple(self, inputs, plain):
        return plain(inputs[0]) if isinstance(inputs, tuple) else plain()

    def _mixes_examples(self, inputs, plain):
        def mixed(scores):
            return scores - scores.mean(0)

        return tuple(mixed(s) for s in plain()) if isinstance(inputs, tuple) else mixed(plain())

    def _cannot_be_copied(self, inputs, plain):
        self.kept["copied"] = self.kept.get("copied") or _Grows()
        scores = plain()
        return (
            tuple(s * self.kept["copied"].n for s in scores)
            if isinstance(scores, tuple)
            else scores * self.kept["copied"].n
        )

    def _cannot_be_pickled(self, inputs, plain):
        self.kept["function"] = lambda: None
        return plain()


class _Grows:
    """Another one after each copy."""

    n = 1.0

    def __deepcopy__(self, memo):
        other = _Grows()
        other.n = 2.0
        return other


BROKEN = {
    "caches by shape": "used object|rows",
    "caches weights": "used object",
    "keeps the first input": "used object|rows",
    "leaves a hook": "hooks of Tanh",
    "leaves a hook after an error": "after an error: the hooks",
    "writes into inputs": "input 0 was changed",
    "writes into weights": "bias of Linear",
    "draws": "draws",
    "draws from numpy": "draws",
    "draws from python": "draws",
    "leaves requires grad": "requires_grad of the caller",
    "leaves an attribute": "names of the attributes",
    "leaves gradients": "gradient of weight",
    "switches gradients off": "grad mode",
    "changes its options": "'calls'",
    "gives no tuple": "a tuple gives a tuple",
    "mixes examples": "rows",
    "cannot be copied": "copies of a used object",
    "cannot be pickled": "pickle",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_law_is_found_and_the_model_is_put_back(how):
    model = Net(4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LawError, match=BROKEN[how]), torch.enable_grad():
        check_attribution(Broken(model, how), X.clone(), target=1)
    if how != "writes into weights":
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_a_model_in_training_mode_keeps_its_flags():
    with pytest.raises(LawError, match=r"training of .* was changed"):
        check_attribution(Broken(Net(4).train(), "switches to eval"), X, target=1)


def test_the_model_is_put_back_bit_by_bit():
    family = build(bert)
    before = {name: value.clone() for name, value in family.model.state_dict().items()}
    plain = family.run()
    _check(family, "raw")
    assert all(torch.equal(value, before[name]) for name, value in family.model.state_dict().items())
    assert torch.equal(family.run(), plain)
    assert not any(m._forward_hooks or m.training for m in family.model.modules())


def test_one_example_is_too_few():
    with pytest.raises(InputError, match="two examples"):
        check_attribution(Saliency(Net(4)), X[:1])


def test_what_is_asked_beside():
    family = build(bert)
    other = {"inputs": IDS[:, :4], "additional_forward_args": (MASK[:, :4],), "target": 2}
    assert "a used object agrees with a fresh one" in _check(family, "raw", others=[other], thorough=False)
