"""Options are read when they are used; targets and layers are named in every form."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, GenerationAttribution, TextAdapter, describe
from captum_attn_lime.errors import InputError, SelectionError, TargetError
from captum_attn_lime.methods import Raw, Rollout
from tests.families import IDS, MASK, bert, build
from tests.models import text as models
from tests.models.gated import WIDTH, Gated, N, assert_same


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
        (nn.Linear(2, 2), "not part of the explained model"),
        (layers, "3 attention calls"),
        (family.model.classifier, "no attention call"),
        (copy.deepcopy(layers[1]), "not part of the explained model"),
    ):
        with pytest.raises(SelectionError, match=message):
            AttentionAttribution(family.forward, layers=module).attribute(IDS, **given)


def test_layers_may_be_named_by_a_pattern_or_the_path_of_a_module():
    family = build(bert)
    given = {"additional_forward_args": (MASK,), "query": 0}

    def scores(layers):
        return AttentionAttribution(family.forward, layers=layers, method="rollout").attribute(IDS, **given)

    assert torch.equal(scores("*encoder*"), scores(None))
    for pattern, same in (
        ("*.layer.[01].*", slice(0, 2)),
        ("*layer.2*", 2),
        ("bert.encoder.layer.1", 1),
        (["*.layer.2.*", -2], slice(1, 3)),
        ([slice(0, 2), "*.layer.1.*", 1], [0, 1]),  # each once
        ([np.int64(2), "bert.encoder.layer.1.attention"], slice(1, 3)),
    ):
        assert torch.equal(scores(pattern), scores(same)), pattern
    for wrong, message in (
        ("*decoder*", r"'\*decoder\*' matches no attention call. The attention layers are bert.encoder.layer.0"),
        ("bert.encoder.layer.7", "made no attention call. The attention layers are bert.encoder.layer.0"),
        ("bert.encoder", r"made 3 attention calls \(bert.encoder.layer.0"),
        (["*layer.0*", "nowhere"], "'nowhere' made no attention call"),
        (slice(7, 9), "selects none of the 3 attention layers: bert.encoder.layer.0"),
    ):
        with pytest.raises(SelectionError, match=message):
            scores(wrong)


def test_a_pattern_prefers_the_stack_and_finds_cross_attention_beside_it():
    from tests.families.encoder_decoders import bart

    family = build(bart)
    given = {"target": 0, "additional_forward_args": family.args, "query": 0}

    def raw(layers):
        return AttentionAttribution(family.forward, layers=layers, method="raw").attribute(family.inputs, **given)

    seen = {layer.name: layer for layer in describe(family.forward, family.inputs, family.args).layers}
    cross = [name for name, layer in seen.items() if layer.kind == "cross"]
    assert torch.equal(raw("*encoder_attn"), raw(cross))
    encoder = [name for name, layer in seen.items() if layer.kind == "self" and ".encoder." in name]
    assert torch.equal(raw("*.encoder.*"), raw(encoder))


def test_cross_attention_of_as_many_heads_as_examples():
    """The batch is then run with one example more, which the scores must not show."""
    from tests.families.encoder_decoders import bart

    family = build(bart)
    attribution = AttentionAttribution(family.forward, layers="*encoder_attn", method="raw")
    heads = family.model.config.decoder_attention_heads
    args, (x, *more) = family.args, family.tensors

    def repeated(t):
        return torch.cat([t[:1]] * heads) if isinstance(t, torch.Tensor) and len(t) == len(x) else t

    given = {"query": 0, "additional_forward_args": tuple(map(repeated, args))}
    found = attribution.attribute(tuple(map(repeated, (x, *more))), 0, **given)[0]
    alone = attribution.attribute(family.inputs, 0, args, query=0)
    alone = alone[0] if isinstance(alone, tuple) else alone
    assert found.shape[0] == heads
    torch.testing.assert_close(found, repeated(alone), rtol=1e-5, atol=1e-7)


def test_reprs_are_short():
    family = build(bert)
    attribution = AttentionAttribution(family.model)
    assert repr(attribution) == "AttentionAttribution(BertForSequenceClassification, method='rollout')"
    layers = [family.model.bert.encoder.layer[1], "*layer.0*", -1]
    attribution = AttentionAttribution(family.forward, method="raw", layers=layers)
    assert repr(attribution).endswith("method='raw', layers=[BertLayer, '*layer.0*', -1])")
    assert repr(AttentionAttribution(len, method=Rollout(residual=0.3))) == (
        "AttentionAttribution(len, method=Rollout(residual=0.3))"
    )
    found = describe(family.forward, IDS, MASK)
    assert repr(found) == "Description(3 self; query and token map known)"
    assert repr(found.token_map) == "TokenMap((7,): tokens 0 to 6)"


def test_class_names_are_targets_everywhere():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer(), class_names=["bad", "good", "mixed"])
    x = adapter.encode(["a fine film", "a dull film"])
    attribution = AttentionAttribution(adapter, method="relevance")
    expected = attribution.attribute(x.inputs, [1, 0], x.forward_args)
    for target in (["good", "bad"], np.array(["good", "bad"]), [np.str_("good"), np.int64(0)]):
        assert torch.equal(attribution.attribute(x.inputs, target, x.forward_args), expected)
        assert attribution.matrix(x.inputs, target, x.forward_args).shape[0] == 2
        describe(adapter, x.inputs, x.forward_args, target=target)
    for target in ("fine", np.array(["good", "fine"]), 7):
        for ask in (attribution.attribute, attribution.matrix):
            with pytest.raises(TargetError):
                ask(x.inputs, target, x.forward_args)
        with pytest.raises(TargetError):
            describe(adapter, x.inputs, x.forward_args, target=target)


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
    from tests.models.language import gpt2 as make
    from tests.models.language import tokenizer

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
