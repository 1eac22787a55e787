"""`check_model` and `describe`: what they say of right models, and that they find what is wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_attn_lime import AttentionAttribution, describe, register_attention
from captum_attn_lime.errors import DropoutWarning, TargetError
from captum_attn_lime.testing import check_model
from tests.families import FAMILIES, IDS, MASK, EncoderClassifier, bert, build, llama_left_padded, vit
from tests.families.base import SIZES, sharpen
from tests.families.facts import over


def _check(report, name):
    return next(check for check in report.checks if check.name.startswith(name))


@over(FAMILIES, sample=2)
def test_every_family_passes(make):
    family = build(make)
    report = check_model(family.forward, family.inputs, family.args, show=False)
    assert report.passed, str(report)
    assert _check(report, "weights times values").passed, str(report)
    reported = _check(report, "weights the model itself").passed
    assert reported or family.output_attentions is None, str(report)
    layers = report.description.layers
    if family.kinds is not None:
        assert [layer.kind for layer in layers] == family.kinds
    causal = family.causal if isinstance(family.causal, list) else [family.causal] * len(layers)
    assert [layer.causal for layer in layers] == causal
    if report.description.token_map is not None:
        _, _, queries, keys = layers[-1].shape
        appended = range(queries, keys) if layers[-1].kind == "self" else ()  # bias_kv, zero_attn
        assert report.description.prefix == (*range(family.prefix), *appended)
    if family.reads is not None:
        assert report.description.query.argmax(dim=1).tolist() == family.reads


def test_the_report_of_a_text_and_of_an_image_model(capsys):
    family = build(llama_left_padded)
    check_model(family.forward, family.inputs, family.args)
    text = capsys.readouterr().out
    assert "  0  model.layers.0.self_attn  self      2 x 4 heads, 7 queries x 7 keys  causal" in text
    assert "example 1 reads token 6" in text
    assert "example 1 has 2 padding tokens" in text
    assert "ok   weights the model itself reports: largest difference" in text
    family = build(vit)
    described = describe(family.forward, family.inputs)
    assert described.prefix == (0,)
    assert described.query.argmax(dim=1).tolist() == [0, 0]
    assert str(described).splitlines()[-1] == "tokens without a part of the input: 0"


def test_wrong_weights_are_found():
    """A module whose values are not what its softmax says: weights registered by mistake."""
    model = EncoderClassifier().eval()
    ids = torch.tensor([[2, 5, 3]])
    attention = model.encoder.layers[1].self_attn
    with register_attention(attention, lambda module, args, *_: torch.full((len(args[0]), 1, 3, 3), 0.5)):
        report = check_model(model, ids, show=False)
    assert not report.passed
    assert not _check(report, "rows sum").passed
    assert "1.500000" in _check(report, "rows sum").detail


def test_a_kernel_that_gives_out_something_else_is_found(monkeypatch):
    """The captured query and key say one thing, the kernel did another."""
    kernel = F.scaled_dot_product_attention

    def odd(query, key, value, *args, **kwargs):
        return kernel(query, key, value.flip(2), *args, **kwargs)

    from captum_attn_lime._capture.seams import SEAMS

    monkeypatch.setitem(SEAMS, kernel, _with_kernel(SEAMS[kernel], odd))
    family = build(bert)
    report = check_model(family.forward, family.inputs, family.args, show=False)
    check = _check(report, "weights times values")
    assert check.passed is False
    assert "bert.encoder.layer" in check.detail


def _with_kernel(seam, kernel):
    return lambda recorder, func, args, kwargs: seam(recorder, kernel, args, kwargs)


def test_what_is_left_on_a_model_is_found():
    class Leaving(EncoderClassifier):
        def forward(self, ids):
            self.register_forward_hook(lambda *_: None)
            return super().forward(ids)

    report = check_model(Leaving().eval(), torch.tensor([[2, 5, 3]]), show=False)
    assert _check(report, "nothing is left").passed is False


def test_a_model_without_attention():
    report = check_model(nn.Linear(4, 2), torch.randn(2, 4), show=False)
    assert not report.passed
    assert "no attention was captured" in str(report)


def test_active_dropout_is_said():
    model = EncoderClassifier().train()
    ids = torch.tensor([[2, 5, 3]])
    with pytest.warns(DropoutWarning, match="eval"):
        AttentionAttribution(model).attribute(ids)
    report = check_model(model, ids, show=False)
    assert _check(report, "the output is the same").passed is None
    assert "eval" in str(report)


def test_a_model_with_one_row_per_token():
    model = EncoderClassifier().eval()

    def tokens(ids):
        return model.head(model.encoder(model.embed(ids)))

    ids = torch.tensor([[2, 5, 3], [4, 9, 7]])
    described = describe(tokens, ids)
    assert described.query is None
    assert "one row per token" in described.problems[0]
    assert describe(tokens, ids, target=[(2, 0), (1, 1)]).query.argmax(dim=1).tolist() == [2, 1]
    scores = AttentionAttribution(tokens).attribute(ids, target=[(2, 0), (1, 1)])
    for i, position in enumerate((2, 1)):
        alone = AttentionAttribution(tokens).attribute(ids[i : i + 1], target=(0, 0), query=position)
        assert torch.allclose(scores[i], alone[0], atol=1e-6)


def test_reported_weights_that_are_a_mean_over_heads_are_compared_as_such():
    """WavLM repeats the mean for each head."""
    from transformers import WavLMConfig, WavLMForSequenceClassification

    config = WavLMConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
        conv_stride=(2, 2), conv_kernel=(5, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        classifier_proj_size=16, num_buckets=8, max_bucket_distance=16, feat_extract_norm="layer",
    )  # fmt: skip
    model = WavLMForSequenceClassification(config).eval()
    sharpen(model)
    report = check_model(lambda x: model(x).logits, torch.randn(2, 40), show=False)
    check = _check(report, "weights the model itself reports")
    assert check.passed is True
    assert "2 calls" in check.detail


def test_reported_scores_are_not_taken_for_weights():
    """SqueezeBERT reports what goes into its softmax."""
    from transformers import SqueezeBertConfig, SqueezeBertForSequenceClassification

    config = SqueezeBertConfig(**SIZES, embedding_size=32)
    model = SqueezeBertForSequenceClassification(config).eval()
    sharpen(model)
    report = check_model(lambda ids, mask: model(ids, attention_mask=mask).logits, IDS, MASK, show=False)
    assert report.passed
    check = _check(report, "weights the model itself reports")
    assert check.passed is None
    assert "not weights" in check.detail


def test_each_part_gets_its_own_implementation_back_and_an_adapter_is_looked_into():
    from tests.families.vision import clip_vision

    family = build(clip_vision)
    family.model.vision_model.set_attn_implementation("eager")
    before = [m.config._attn_implementation for m in family.model.modules() if hasattr(m, "set_attn_implementation")]
    assert set(before) == {"eager", "sdpa"}
    check_model(family.forward, family.inputs, show=False)
    after = [m.config._attn_implementation for m in family.model.modules() if hasattr(m, "set_attn_implementation")]
    assert after == before

    class Holder(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, ids, mask):
            return self.inner(ids, attention_mask=mask).logits

    family = build(bert)
    report = check_model(Holder(family.model), family.inputs, family.args, show=False)
    assert _check(report, "weights the model itself").passed


def test_a_position_that_the_output_does_not_have_is_a_wrong_target():
    model = EncoderClassifier().eval()
    ids = torch.tensor([[2, 5, 3]])
    with pytest.raises(TargetError, match="3 rows"):
        AttentionAttribution(lambda ids: model.head(model.encoder(model.embed(ids)))).attribute(ids, target=(3, 0))
