"""TextAdapter for token classification, question answering and language models: the bare model's numbers."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import compare
from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import ForwardError, InputError, TargetError, TextError
from captum_attn_lime.lime import LimeText
from tests.models import heads
from tests.models import text as models
from tests.models.heads import CASES, hugging_face

TEXTS = ["a fine film with a cast", "it isn't bad; it is not good"]


def bare(adapter: TextAdapter, text: str) -> torch.Tensor:
    """The oracle: one text run alone, without a mask, read by hand."""
    with torch.no_grad():
        out = adapter.model(torch.tensor([adapter.tokenizer.encode(text)]))
    if isinstance(out, tuple):
        return torch.stack(out, dim=2)[0]
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], dim=2)[0]
    logits = getattr(out, "logits", out)[0]
    return logits[-1] if adapter.task == "next_token" else logits


@pytest.mark.parametrize("name", CASES)
def test_the_task_is_found_and_a_batch_gives_what_each_text_gets_alone(name):
    case = CASES[name]
    adapter = case.adapter()
    assert adapter.task == case.task
    x = adapter.encode(TEXTS)
    with torch.no_grad():
        found = adapter(x.inputs, *x.forward_args)
    for i, text in enumerate(TEXTS):
        expected = bare(adapter, text)
        row = found[i] if case.task == "next_token" else found[i, : len(expected)]
        torch.testing.assert_close(row, expected, atol=2e-5, rtol=0)
    assert found.dim() == (2 if case.task == "next_token" else 3)


@pytest.mark.parametrize("name", CASES)
def test_integrated_gradients_are_complete(name):
    adapter = CASES[name].adapter()
    x = adapter.encode(TEXTS[0])
    ig = captum.attr.LayerIntegratedGradients(adapter, adapter.embedding)
    target = CASES[name].target
    out, delta = ig.attribute(**x.arguments(ig), target=target, n_steps=200, return_convergence_delta=True)
    with torch.no_grad():
        pick = (0, *target) if isinstance(target, tuple) else (0, target)
        gap = adapter(x.inputs, *x.forward_args)[pick] - adapter(x.baselines, *x.forward_args)[pick]
    assert gap.abs() > 0.05
    torch.testing.assert_close(out.sum().float(), gap, atol=0.02, rtol=0.02)
    assert abs(delta.item()) < 0.02 * max(1.0, abs(gap.item()))


METHODS = {
    "FeatureAblation": {},
    "ShapleyValueSampling": dict(n_samples=2),
    "KernelShap": dict(n_samples=12),
    "Lime": dict(n_samples=12),
    "LayerGradientXActivation": {},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bert_tokens", "bert_spans", "gpt2_next", "by_hand_spans"])
def test_captums_methods_take_the_targets(name, method):
    adapter = CASES[name].adapter()
    x = adapter.encode(TEXTS[0])
    cls = getattr(captum.attr, method)
    attribution = cls(adapter, adapter.embedding) if method.startswith("Layer") else cls(adapter)
    out = attribution.attribute(**x.arguments(attribution), target=CASES[name].target, **METHODS[method])
    assert out.shape[:2] == x.inputs.shape
    assert out.abs().sum() > 0


@pytest.mark.parametrize("name", ["bert_tokens", "distilbert_spans", "gpt2_next", "llama_next"])
def test_saliency_on_embeddings_is_the_gradient_of_the_bare_model(name):
    adapter = CASES[name].adapter()
    x = adapter.encode(TEXTS[0])
    embedded = adapter.embedding(x.inputs).detach().requires_grad_()
    saliency = captum.attr.Saliency(adapter)
    target = CASES[name].target
    found = saliency.attribute(embedded, target=target, abs=False, additional_forward_args=x.forward_args)
    leaf = embedded.detach().clone().requires_grad_()
    out = adapter.model(inputs_embeds=leaf)
    if adapter.task == "spans":
        scalar = out.end_logits[0, target[0]]
    else:
        scalar = out.logits[0, -1, target] if adapter.task == "next_token" else out.logits[0][target]
    torch.testing.assert_close(found, torch.autograd.grad(scalar, leaf)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert_tokens", "bert_spans", "gpt2_next", "by_hand_tokens"])
def test_lime_over_masked_words_takes_the_targets(name):
    adapter = CASES[name].adapter()
    target = CASES[name].target
    pick = target if isinstance(target, tuple) else (target,)
    x = adapter.encode(TEXTS)
    found = LimeText(adapter).attribute(**x.arguments(LimeText(adapter)), target=target, n_samples=30)
    by_hand = LimeText(lambda *tensors: adapter(*tensors)[(slice(None), *pick)])
    expected = by_hand.attribute(**x.arguments(by_hand), n_samples=30)
    assert torch.equal(found, expected)
    last = x.feature_mask == x.feature_mask.max()
    assert (found[last] == 0).all()
    assert (found[~last] != 0).any()
    each = LimeText(adapter).attribute(**x.arguments(LimeText(adapter)), target=[target, target], n_samples=30)
    assert torch.equal(each, found)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2_next", "llama_next", "by_hand_next"])
def test_the_next_token_is_read_at_the_last_real_one_on_either_side_of_padding(name, side):
    adapter = CASES[name].adapter()
    rows = [adapter.tokenizer.encode(text) for text in TEXTS]
    longest = max(map(len, rows))
    ids, mask, last = [], [], []
    for row in rows:
        fill = [0] * (longest - len(row))
        ids.append([*row, *fill] if side == "right" else [*fill, *row])
        mask.append([1] * len(row) + fill if side == "right" else fill + [1] * len(row))
        last.append(len(row) - 1 if side == "right" else longest - 1)
    assert len({len(row) for row in rows}) == 2
    tensors = torch.tensor(ids), torch.tensor(mask)
    with torch.no_grad():
        out = adapter.model(*tensors[:1], **{adapter._binding.mask: tensors[1]})
        found = adapter(*tensors)
    logits = getattr(out, "logits", out)
    torch.testing.assert_close(found, logits[[0, 1], last], atol=1e-5, rtol=0)
    if name == "llama_next":  # its positions are relative, so that padding on the left is no difference
        alone = torch.stack([bare(adapter, text) for text in TEXTS])
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("texts", "width"), [(TEXTS[:1], 1), (TEXTS, None)])
def test_the_language_models_head_runs_only_where_it_is_read(texts, width):
    adapter = CASES["gpt2_next"].adapter()
    x = adapter.encode(texts)
    seen = []
    handle = adapter.model.lm_head.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    adapter(x.inputs, *x.forward_args)
    handle.remove()
    lengths = x.forward_args[0].sum(1)
    assert seen == [width or int(lengths.max() - lengths.min()) + 1]


@pytest.mark.parametrize("name", ["gpt2_next", "llama_next", "by_hand_next"])
def test_probabilities_of_the_next_token(name):
    adapter = CASES[name].adapter(batch_tokens=16)
    texts = [*TEXTS, "dull", TEXTS[0]]
    expected = torch.stack([bare(adapter, text) for text in texts]).double()
    np.testing.assert_allclose(adapter.logits(texts), expected, atol=2e-5)
    found = adapter.predict_proba(texts)
    np.testing.assert_allclose(found, expected.softmax(1), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1)
    assert found.shape == (4, 300 if name != "by_hand_next" else 70)
    np.testing.assert_allclose(adapter.predict_proba(texts, target=5), found[:, [5]], atol=1e-6)
    np.testing.assert_allclose(adapter.logits(texts, target=5), adapter.logits(texts)[:, [5]], atol=1e-6)
    for target in (-1, 300, "no such token, but many"):
        with pytest.raises(TargetError, match=r"classes|tokens and not one"):
            adapter.predict_proba(texts, target=target)


@pytest.mark.parametrize("name", ["gpt2_next", "by_hand_next", "bert_masked"])
def test_the_text_of_a_token_is_a_target_everywhere(name):
    adapter = CASES[name].adapter()
    token = adapter.token_id(" film")
    x = adapter.encode("a fine film")
    target, named = (token, " film") if adapter.task == "next_token" else ((1, token), (1, " film"))
    ablation = captum.attr.FeatureAblation(adapter)
    expected = adapter.explained(x.inputs, x.forward_args, target)
    assert adapter.explained(x.inputs, x.forward_args, named) == expected
    lime = LimeText(adapter)
    weights = lime.attribute(**x.arguments(lime), target=target, n_samples=20)
    assert torch.equal(lime.attribute(**x.arguments(lime), target=named, n_samples=20), weights)
    if adapter.task == "next_token":
        np.testing.assert_array_equal(
            adapter.logits(TEXTS, target=" film"), adapter.logits(TEXTS, target=np.int64(token))
        )
        found = compare({"ablation": ablation}, x, target=named)
        np.testing.assert_array_equal(found.scores, compare({"ablation": ablation}, x, target=target).scores)


def test_a_next_token_of_a_model_that_puts_out_probabilities():
    class Softmax(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(ids).softmax(dim=-1)

    plain = CASES["by_hand_next"].adapter()
    adapter = TextAdapter(Softmax(plain.model), plain.tokenizer, task="next_token")
    expected = adapter.predict_proba(TEXTS)
    np.testing.assert_allclose(expected, plain.predict_proba(TEXTS), atol=1e-6)
    np.testing.assert_allclose(adapter.predict_proba(TEXTS, target=5), expected[:, [5]], atol=1e-7)
    np.testing.assert_allclose(adapter.logits(TEXTS, target=5), np.log(expected[:, [5]]), atol=1e-5)


def test_one_class_of_a_classifier():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    np.testing.assert_array_equal(adapter.predict_proba(TEXTS, target=2), adapter.predict_proba(TEXTS)[:, [2]])
    with pytest.raises(TargetError, match="3 classes"):
        adapter.predict_proba(TEXTS, target=3)


def test_an_empty_text_is_continued_from_the_first_token():
    adapter = CASES["gpt2_next"].adapter()
    with torch.no_grad():
        expected = adapter.model(torch.tensor([[0]])).logits[0, -1].double().softmax(0)
    np.testing.assert_allclose(adapter.predict_proba(""), expected[None], atol=1e-6)


@pytest.mark.parametrize("name", ["bert_tokens", "distilbert_spans", "by_hand_tokens"])
def test_models_by_token_have_no_single_row(name):
    adapter = CASES[name].adapter()
    for run in (adapter.predict_proba, adapter.logits, LimeText(adapter).explain):
        with pytest.raises(InputError, match=r"attribute\(.*target=\(position"):
            run("a fine film")


def test_a_model_by_hand_that_names_start_and_end():
    with pytest.raises(ForwardError, match=r"without logits.*task is 'classification'.*pass task= .*'spans'"):
        TextAdapter(heads.NamedReader(70).eval(), heads.words()).predict_proba("a fine film")
    adapter = TextAdapter(heads.NamedReader(70).eval(), heads.words(), task="spans")
    assert adapter.class_names == ("start", "end")
    x = adapter.encode("a fine film")
    start, end = adapter.model(x.inputs).values()
    torch.testing.assert_close(adapter(x.inputs, *x.forward_args), torch.stack([start, end], dim=2))


def test_special_tokens_at_the_end_are_no_part_of_a_text_to_be_continued():
    tokenizer = models.word_level_tokenizer()  # [CLS] a b [SEP]
    adapter = TextAdapter(hugging_face("GPT2LMHeadModel"), tokenizer)
    x = adapter.encode("a fine film")
    assert x.inputs.tolist() == [tokenizer.encode("a fine film")[:-1]]
    assert x.tokens[0] == ("[CLS]", "a", "fine", "film")
    with torch.no_grad():
        expected = adapter.model(x.inputs).logits[:, -1].double()
    np.testing.assert_allclose(adapter.logits("a fine film"), expected, atol=1e-5)


def test_names_of_classes():
    assert CASES["distilbert_spans"].adapter().class_names == ("start", "end")
    model = hugging_face("BertForTokenClassification", id2label={0: "O", 1: "B-PER"})
    adapter = TextAdapter(model, heads.bert_tokenizer())
    assert (adapter.class_names, adapter.class_name(1)) == (("O", "B-PER"), "B-PER")
    writer = CASES["gpt2_next"].adapter()
    assert writer.class_names is None
    assert writer.class_name(writer.tokenizer.encode(" film")[0]) == "Ġfilm"
    masked = CASES["bert_masked"].adapter()
    assert masked.class_names is None
    assert masked.class_name(4) == "[MASK]"
    assert TextAdapter(models.BagOfWords(70), heads.words()).class_name(1) == "1"


def test_positions_of_words():
    adapter = CASES["bert_tokens"].adapter()
    x = adapter.encode(["unbelievably bad", "a film, a fine film and a cast"])
    assert x.words[0][0].text == "unbelievably"
    pieces = [k for k, token in enumerate(x.tokens[0]) if token not in ("[CLS]", "[SEP]", "[PAD]", "bad")]
    assert len(pieces) > 1
    assert x.positions(0) == x.find("unbelievably") == tuple(pieces)
    assert x.positions(1) == x.find("bad") == (pieces[-1] + 1,)
    for word in range(len(x.words[1])):
        tokens = "".join(x.tokens[1][k].removeprefix("##") for k in x.positions(word, example=1))
        assert tokens == x.words[1][word].text
    assert x.find("a", example=1) == (1,)  # a whole word, not the one in "cast"
    assert x.find("film", example=1, occurrence=1) == x.positions(5, example=1)
    assert x.find("fine film", example=1) == (*x.positions(4, example=1), *x.positions(5, example=1))
    with pytest.raises(TextError, match="2 times"):
        x.find("film", example=1, occurrence=2)
    for part in ("fil", "ilm"):
        with pytest.raises(TextError, match="0 times"):
            x.find(part, example=1)
    with pytest.raises(InputError, match="no word 2"):
        x.positions(2)
    with pytest.raises(InputError, match="no example 2"):
        x.find("bad", example=2)
    with pytest.raises(InputError, match="of a pair"):
        x.find("bad", in_text="first")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForSequenceClassification", "classification"),
        ("BertForNextSentencePrediction", "classification"),
        ("RobertaForTokenClassification", "tokens"),
        ("RobertaForMaskedLM", "tokens"),
        ("GPT2ForTokenClassification", "tokens"),
        ("RobertaForQuestionAnswering", "spans"),
        ("LlamaForCausalLM", "next_token"),
    ],
)
def test_the_task_of_a_huggingface_class(name, task):
    tokenizer = models.byte_bpe_tokenizer()
    assert TextAdapter(hugging_face(name), tokenizer).task == task
    base = type(hugging_face(name))
    assert TextAdapter(type("Mine", (base,), {})(hugging_face(name).config), tokenizer).task == task


def test_a_model_that_writes_with_a_decoder_is_sent_elsewhere():
    with pytest.raises(InputError, match="GenerationAttribution"):
        TextAdapter(hugging_face("BartForConditionalGeneration"), heads.closing_tokenizer())


def test_unknown_tasks():
    with pytest.raises(InputError, match="'ranking'"):
        TextAdapter(models.BagOfWords(70), heads.words(), task="ranking")


@pytest.mark.parametrize(
    ("task", "output", "message"),
    [
        ("tokens", torch.zeros(1, 3), r"shape \(1, 3\)"),
        ("tokens", torch.zeros(1, 4, 2), r"needs \(1, 3, classes\)"),
        ("tokens", "text", "str without logits"),
        ("spans", torch.zeros(1, 3, 3), r"shape \(1, 3, 3\)"),
        ("spans", (torch.zeros(1, 3),), "tuple without start_logits"),
        ("spans", {"start_logits": torch.zeros(1, 3)}, "dict without start_logits"),
        ("spans", (torch.zeros(1, 3), torch.zeros(1, 4)), r"\(1, 3\), \(1, 4\)"),
        ("next_token", torch.zeros(1, 4, 9), r"shape \(1, 4, 9\)"),
        ("next_token", torch.zeros(2, 9), r"shape \(2, 9\)"),
        ("next_token", {}, "dict without logits"),
    ],
)
def test_outputs_that_do_not_fit_the_task(task, output, message):
    adapter = TextAdapter(heads.Returns(output), heads.words(), task=task)
    x = adapter.encode("a fine film")
    with pytest.raises(ForwardError, match=message):
        adapter(x.inputs)


@pytest.mark.parametrize(
    ("task", "output", "shape"),
    [
        ("tokens", (torch.zeros(1, 3, 5), 1), (1, 3, 5)),
        ("spans", torch.zeros(1, 3, 2), (1, 3, 2)),
        ("spans", [torch.zeros(1, 3), torch.zeros(1, 3)], (1, 3, 2)),
        ("next_token", {"logits": torch.zeros(1, 3, 9)}, (1, 9)),
        ("next_token", torch.zeros(1, 9), (1, 9)),
    ],
)
def test_outputs_in_other_wrappings(task, output, shape):
    adapter = TextAdapter(heads.Returns(output), heads.words(), task=task)
    assert adapter(adapter.encode("a fine film").inputs).shape == shape
