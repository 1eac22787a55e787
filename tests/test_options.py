"""Options are read when they are used; targets and layers are named in every form."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, GenerationAttribution
from captum_attn_lime.errors import InputError, SelectionError
from captum_attn_lime.methods import Raw, Rollout
from tests.families import IDS, MASK, bert, build
from tests.state_models import WIDTH, Gated, N, assert_same


@pytest.mark.parametrize(
    "options",
    [
        {"method": "raw"},
        {"method": "relevance"},
        {"method": "raw", "layers": 0},
        {"layers": [0]},
        {"method": Rollout(heads=[1])},
        {"method": Rollout(residual=0.0)},
        {"method": Raw(head_fusion="max")},
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
    assert not isinstance(assert_same(used, fresh, IDS, **given), type)


@pytest.mark.parametrize(
    ("option", "value"),
    [("method", "rolout"), ("method", Rollout), ("offload", "no such folder"), ("layers", "x")],
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
    assert isinstance(assert_same(used, AttentionAttribution(other), x), type)


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
    used.attribution.method = Rollout(residual=0.2)
    fresh = GenerationAttribution(AttentionAttribution(model, method=Rollout(residual=0.2)), tokenizer())
    found = used.attribute("a fine film", target="a dull cast").full_attr
    assert not torch.equal(found, expected)
    assert torch.equal(found, fresh.attribute("a fine film", target="a dull cast").full_attr)
    used.attribution.method = "relevance"
    with pytest.raises(InputError, match="depends on the class"):
        used.attribute("a fine film", target="a dull cast")
