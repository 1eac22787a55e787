"""Attention behind generated text equals what each cached step of eager generation reports."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from captum.attr import LLMAttributionResult, TextTemplateInput, TextTokenInput
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution, GenerationAttribution, WordTokenizer, capture
from captum_attn_lime.errors import (
    AttentionKindError,
    ExplanationError,
    InputError,
    SelectionError,
    TargetError,
    TextError,
    TokenizerError,
)
from captum_attn_lime.methods import Raw, Rollout, StackMethod
from tests.models.language import (
    DECODERS,
    ENCODER_DECODERS,
    GREEDY,
    LENGTH,
    PROMPT,
    bart,
    build,
    eager_steps,
    generate,
    gpt2,
    last_rows,
    llama,
    mistral,
    t5,
    tokenizer,
)
from tests.reference.attention import rollout_matrix

TEXT = "w17 w33 w8 w51 w64"
N = PROMPT.shape[1]
EXACT = dict(rtol=0, atol=1e-6)


def attribute(model: nn.Module, inp: Any = TEXT, target: Any = None, gen_args: Any = None, **options: Any) -> Any:
    gen_args = GREEDY if target is None and gen_args is None else gen_args
    attribution = AttentionAttribution(model, **{"method": "raw", **options})
    return GenerationAttribution(attribution, tokenizer()).attribute(inp, target, gen_args=gen_args)


# ------------------------------------------------------------------ against generate's own attention


@pytest.mark.parametrize("make", DECODERS)
@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_raw_rows_are_those_of_each_cached_step(make, fusion):
    model = build(make)
    steps = eager_steps(model)
    rows = last_rows(steps.attentions, N + LENGTH - 1)  # (T, L, H, N)
    fused = rows.mean(dim=2) if fusion == "mean" else rows.amax(dim=2)
    for layer, chosen in ((None, [-1]), (0, [0]), (slice(None), [0, 1, 2])):
        result = attribute(model, layers=layer, method=Raw(head_fusion=fusion))
        expected = fused[:, chosen].mean(dim=1)
        torch.testing.assert_close(result.token_attr, expected[:, :N], **EXACT)
        torch.testing.assert_close(result.output_attr[:, :-1], expected[:, N:], **EXACT)
        assert not result.output_attr[:, -1].any()
        if fusion == "mean":
            torch.testing.assert_close(result.full_attr.sum(dim=1), torch.ones(LENGTH))
            assert (result.token_attr.sum(dim=1)[1:] < 1).all()
    assert result.output_tokens == tokenizer().convert_ids_to_tokens(steps.sequences[0, N:].tolist())


@pytest.mark.parametrize("make", ENCODER_DECODERS)
def test_cross_attention_is_that_of_each_cached_step(make):
    model = build(make)
    steps = eager_steps(model)
    cross = torch.stack([torch.stack([x[0, :, -1] for x in s]) for s in steps.cross_attentions])  # (T, L, H, P)
    own = last_rows(steps.decoder_attentions, LENGTH)
    for layer, chosen in ((None, [-1]), (0, [0]), (slice(1, None), [1, 2])):
        result = attribute(model, layers=layer)
        torch.testing.assert_close(result.token_attr, cross[:, chosen].mean(dim=(1, 2)), **EXACT)
        expected = own[:, chosen].mean(dim=(1, 2))[:, 1:]  # without the start token
        torch.testing.assert_close(result.output_attr[:, :-1], expected, **EXACT)
        torch.testing.assert_close(result.token_attr.sum(dim=1), torch.ones(LENGTH))
    assert result.output_tokens == tokenizer().convert_ids_to_tokens(steps.sequences[0, 1:].tolist())


@pytest.mark.parametrize("make", DECODERS)
@pytest.mark.parametrize(("fusion", "residual"), [("mean", 0.5), ("max", 0.3)])
def test_rollout_is_the_dense_product_of_eager_matrices(make, fusion, residual):
    model = build(make)
    result = attribute(model, method=Rollout(head_fusion=fusion, residual=residual))
    ids = generate(model).sequences
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(ids, output_attentions=True, use_cache=False).attentions
    product = rollout_matrix([x.double().numpy() for x in layers], fusion, residual)[0]
    expected = torch.tensor(product[N - 1 : N - 1 + LENGTH], dtype=torch.float32)
    torch.testing.assert_close(result.full_attr, expected, **EXACT)


def test_heads_and_layers_by_name():
    model = build(llama)
    rows = last_rows(eager_steps(model).attentions, N + LENGTH - 1)
    result = attribute(model, layers="model.layers.1.self_attn", method=Raw(heads=[0, 3]))
    torch.testing.assert_close(result.token_attr, rows[:, 1, [0, 3]].mean(dim=1)[:, :N], **EXACT)
    decoder = build(bart)
    by_name = attribute(decoder, layers="model.decoder.layers.1.encoder_attn")
    torch.testing.assert_close(by_name.token_attr, attribute(decoder, layers=1).token_attr)


def test_as_many_input_as_output_tokens_do_not_mix_encoder_and_decoder():
    model = build(bart)
    options = dict(max_new_tokens=N, min_new_tokens=N, do_sample=False)
    steps = eager_steps(model, **options)
    own = last_rows(steps.decoder_attentions, N)[:, -1].mean(dim=1)[:, 1:]
    torch.testing.assert_close(attribute(model, gen_args=options).output_attr[:, :-1], own, **EXACT)


# ------------------------------------------------------------------ what is explained


def test_a_given_target_equals_the_generated_one():
    for make in (gpt2, t5):
        model = build(make)
        written = generate(model).sequences[0, 1 if make is t5 else N :]
        expected = attribute(model)
        as_text = tokenizer().decode(written)
        assert torch.equal(torch.tensor(tokenizer().encode(as_text, add_special_tokens=False)), written), (
            "the tokenizer gives the ids back"
        )
        for target in (as_text, written, written[None], written.tolist()):
            result = attribute(model, target=target)
            assert torch.equal(result.full_attr, expected.full_attr)
            assert result.output_tokens == expected.output_tokens


def test_sampling_and_beam_search():
    model = build(llama)
    options = dict(max_new_tokens=LENGTH, do_sample=True, temperature=1.5, top_k=0)
    torch.manual_seed(11)
    sampled = attribute(model, gen_args=options)
    torch.manual_seed(11)
    ids = generate(model, **{**options, "min_new_tokens": None}).sequences[0, N:]
    assert sampled.output_tokens == tokenizer().convert_ids_to_tokens(ids.tolist())
    assert torch.equal(sampled.full_attr, attribute(model, target=ids).full_attr)

    options = dict(GREEDY, num_beams=3)
    ids = generate(model, **options).sequences[0, N:]
    assert not torch.equal(ids, generate(model).sequences[0, N:]), "beams find another text, or this shows nothing"
    for more in ({}, {"return_dict_in_generate": True}):
        beams = attribute(model, gen_args={**options, **more})
        assert torch.equal(beams.full_attr, attribute(model, target=ids).full_attr)


def test_greedy_and_25_tokens_by_default():
    model = build(gpt2)
    model.generation_config.eos_token_id = None
    result = GenerationAttribution(AttentionAttribution(model, method="raw"), tokenizer()).attribute(TEXT)
    ids = generate(model, max_new_tokens=25, min_new_tokens=25).sequences[0, N:]
    assert result.output_tokens == tokenizer().convert_ids_to_tokens(ids.tolist())


def test_the_model_is_left_as_it_was():
    model = build(mistral)
    before = generate(model).sequences
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    attribute(model, method="rollout")
    assert torch.equal(generate(model).sequences, before)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert model.config._attn_implementation == "sdpa"


def test_generation_itself_is_not_watched(monkeypatch):
    model, calls = build(gpt2), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: calls.append(a or k["input_ids"].shape[1]) or forward(*a, **k)
    )
    attribute(model, target=[5, 6])
    assert len(calls) == 1


# ------------------------------------------------------------------ the result, in Captum's form


def test_captums_plots_and_dict():
    import matplotlib.pyplot as plt

    result = attribute(build(gpt2))
    assert isinstance(result, LLMAttributionResult)
    assert result.input_tokens == ["<s>", *TEXT.split()]
    torch.testing.assert_close(result.seq_attr, result.token_attr.mean(dim=0))
    assert result.seq_attr_dict["w8"] == pytest.approx(float(result.seq_attr[3]))
    figure, ax = result.plot_token_attr()
    torch.testing.assert_close(torch.as_tensor(ax.images[0].get_array().data), result.token_attr)
    plt.close(figure)
    figure, ax = result.plot_seq_attr()
    assert [t.get_text() for t in ax.get_xticklabels()] == result.input_tokens
    plt.close(figure)


def test_token_input_and_skipped_tokens():
    model = build(gpt2)
    plain = attribute(model)
    given = attribute(model, TextTokenInput(TEXT, tokenizer()))
    assert torch.equal(given.full_attr, plain.full_attr)
    inp = TextTokenInput(TEXT, tokenizer(), skip_tokens=["<s>", "w8"])
    skipped = attribute(model, inp)
    assert skipped.input_tokens == ["w17", "w33", "w51", "w64"]
    torch.testing.assert_close(skipped.token_attr, plain.token_attr[:, [1, 2, 4, 5]])
    assert torch.equal(skipped.output_attr, plain.output_attr)
    assert skipped.inp is inp


def test_template_segments_get_their_tokens_shares():
    model = build(gpt2)
    plain = attribute(model).token_attr
    inp = TextTemplateInput("w17 {} w8 {}", ["w33", "w51 w64"])
    result = attribute(model, inp)
    assert result.input_tokens == ["w33", "w51 w64"]
    torch.testing.assert_close(result.token_attr, torch.stack([plain[:, 2], plain[:, 4] + plain[:, 5]], dim=1))
    # Values by name, one of them twice, two of them as one feature: each carries what the feature has.
    inp = TextTemplateInput("{a} w33 {b} {c}", {"a": "w17", "b": "w8 w51", "c": "w64"}, mask={"a": 0, "b": 1, "c": 0})
    result = attribute(model, inp)
    ends, middle = plain[:, 1] + plain[:, 5], plain[:, 3] + plain[:, 4]
    torch.testing.assert_close(result.token_attr, torch.stack([ends, middle, ends], dim=1))
    twice = attribute(model, TextTemplateInput("{0} w8 {0}", ["w9"]))
    both = attribute(model, "w9 w8 w9").token_attr
    torch.testing.assert_close(twice.token_attr, both[:, [1]] + both[:, [3]])


def test_a_token_of_two_segments_is_shared_by_characters():
    result = attribute(build(gpt2), TextTemplateInput("w9 {}{}", ["w", "33"]))
    whole = attribute(build(gpt2), "w9 w33").token_attr[:, 2]
    torch.testing.assert_close(result.token_attr, torch.stack([whole / 3, whole * 2 / 3], dim=1))


def test_a_template_that_alters_its_values_is_refused():
    with pytest.raises(InputError, match="alters its values"):
        attribute(build(gpt2), TextTemplateInput(lambda a: a.replace("x", "w"), ["x17"]))


class Plain(nn.Module):
    """A hand-written language model that cannot generate, and takes nothing but ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def weights(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        scores = self.query(x) @ self.key(x).mT
        n = ids.shape[1]
        return scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf")).softmax(-1)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weights(ids) @ self.value(self.words(ids))) @ self.words.weight.T


def test_a_model_by_hand_with_a_word_tokenizer():
    model = Plain().eval()
    words = WordTokenizer({"<pad>": 0, "<unk>": 1, "a": 2, "fine": 3, "film": 4, "indeed": 5})
    explain = GenerationAttribution(AttentionAttribution(model, method="raw"), words)
    result = explain.attribute("a fine", "film indeed")
    with torch.no_grad():
        expected = model.weights(torch.tensor([[2, 3, 4, 5]]))[0, 1:3]
    torch.testing.assert_close(result.full_attr, expected)
    assert result.output_tokens == ["film", "indeed"]
    with pytest.raises(TargetError, match="no generate"):
        explain.attribute("a fine")


def test_a_function_of_ones_own_sees_each_token_as_a_query():
    def first_layer_twice(stack, query):
        return 2 * stack[0].vecmat(query)

    model = build(llama)
    own = attribute(model, method=first_layer_twice)
    torch.testing.assert_close(own.full_attr, 2 * attribute(model, layers=0).full_attr)


def test_memory_does_not_grow_with_the_square(monkeypatch):
    """No tensor of the size of all rows by all keys is made for raw attention of few tokens."""
    model, sizes = build(gpt2), []
    from captum_attn_lime.attention import ScoreMap

    scores = ScoreMap._scores
    monkeypatch.setattr(ScoreMap, "_scores", lambda self, b, h: sizes.append(len(b.queries)) or scores(self, b, h))
    attribute(model, target=[5, 6, 7], method=Raw(head_fusion="max"))
    assert sizes == [3]


# ------------------------------------------------------------------ errors


def _refused(error: type[ExplanationError], match: str, **given: Any) -> None:
    model = given.pop("model", None) or build(gpt2)
    with pytest.raises(error, match=match):
        attribute(model, **given)


def test_what_cannot_be_explained_is_refused():
    _refused(TextError, "prompt is empty", inp="  ")
    _refused(InputError, "is a list", inp=["w4", "w5"])
    _refused(InputError, r"padding tokens \(id 0\) at positions \[1, 3\]", inp="<pad> w4 <pad>", target="w5")
    _refused(TargetError, "target has no token", target="")
    _refused(TargetError, "target has no token", target=[])
    _refused(TargetError, "neither a text nor", target=torch.tensor([0.5]))
    _refused(TargetError, "neither a text nor", target=torch.tensor([[4, 5], [6, 7]]))
    _refused(TargetError, re.escape("outside the vocabulary (0 to 69)"), target=[4, 70])
    _refused(InputError, "pass one of them", target="w4", gen_args=GREEDY)
    _refused(InputError, "3 sequences", gen_args=dict(GREEDY, num_beams=3, num_return_sequences=3))
    _refused(InputError, "training mode", model=build(gpt2).train())
    _refused(InputError, "has 64 positions", target=[5] * 70)
    _refused(SelectionError, "layer 3 is out of range", layers=3, target=[5])
    _refused(SelectionError, "head 4 is out of range", method=Raw(heads=4), target=[5])


def test_padding_that_is_the_end_token_too_is_text():
    model, words = build(gpt2), tokenizer(pad="</s>")
    explain = GenerationAttribution(AttentionAttribution(model, method="raw"), words)
    result = explain.attribute("</s> w4 w5", "w6")
    assert result.token_attr[0].min() > 0


@pytest.mark.parametrize("make", [t5, bart])
def test_rollout_of_cross_attention_is_refused_by_name(make):
    with pytest.raises(AttentionKindError, match="cross-attention"):
        attribute(build(make), method="rollout")


class Recurrent(Plain):
    """Two attention layers with or without a recurrence between them."""

    def __init__(self, has_recurrence: bool) -> None:
        super().__init__()
        self.between = nn.GRU(8, 8, batch_first=True) if has_recurrence else None
        self.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for query, key, value in (self.heads[:3], self.heads[3:]):
            q, k, v = (f(x)[:, None] for f in (query, key, value))
            x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
            x = x if self.between is None else x + self.between(x)[0]
        return x @ self.words.weight.T


@pytest.mark.parametrize("has_recurrence", [False, True])
def test_rollout_through_a_recurrence_is_refused(has_recurrence):
    model = Recurrent(has_recurrence).eval()
    words = WordTokenizer({"<pad>": 0, "<unk>": 1, "a": 2, "fine": 3, "film": 4, "indeed": 5})
    rollout = GenerationAttribution(AttentionAttribution(model, method="rollout"), words)
    raw = GenerationAttribution(AttentionAttribution(model, method="raw"), words)
    torch.testing.assert_close(raw.attribute("a fine", "film indeed").full_attr.sum(dim=1), torch.ones(2))
    if has_recurrence:
        with pytest.raises(AttentionKindError, match="other than attention mixes tokens"):
            rollout.attribute("a fine", "film indeed")
    else:
        rows = rollout.attribute("a fine", "film indeed").full_attr
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(2))


def test_self_attention_of_an_encoder_decoder_is_no_row_over_the_input():
    with pytest.raises(SelectionError, match=r"6 queries and 6 keys, .* need 5 and 6"):
        attribute(build(bart), layers="model.encoder.layers.0.self_attn")


def test_what_the_class_is_made_of_is_checked():
    model = build(gpt2)
    with pytest.raises(InputError, match="is GPT2LMHeadModel"):
        GenerationAttribution(model, tokenizer())
    with pytest.raises(InputError, match="pass AttentionAttribution\\(model\\)"):
        GenerationAttribution(AttentionAttribution(lambda ids: model(ids).logits), tokenizer())
    with pytest.raises(TokenizerError, match="NoneType is not a tokenizer"):
        GenerationAttribution(AttentionAttribution(model), None)

    class OfClass(AttentionAttribution):
        uses_target = True

    with pytest.raises(InputError, match=r"Raw\(\) depends on the class"):
        GenerationAttribution(OfClass(model, method="raw"), tokenizer())
    with pytest.raises(InputError, match=r"Relevance\(\) depends on the class.*use 'raw' or 'rollout'"):
        GenerationAttribution(AttentionAttribution(model, method="relevance"), tokenizer())
    with pytest.raises(InputError, match=r"StackMethod\(Raw\(\)\) depends on the class"):
        GenerationAttribution(AttentionAttribution(model, method=StackMethod(Raw(), uses_target=True)), tokenizer())


def test_one_captured_pass_equals_a_capture_by_hand():
    model = build(mistral)
    ids = generate(model).sequences
    with torch.no_grad(), capture(model) as maps:
        model(input_ids=ids[:, :-1])
    expected = maps[-1].rows(range(N - 1, N + LENGTH - 1)).mean(dim=1)[0]
    torch.testing.assert_close(attribute(model).full_attr[:, :-1], expected)


@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_what_is_offloaded_says_the_same(method, tmp_path):
    model = build(gpt2)
    expected = attribute(model, target=[5, 6, 7], method=method).full_attr
    for place in ("cpu", tmp_path):
        torch.testing.assert_close(attribute(model, target=[5, 6, 7], method=method, offload=place).full_attr, expected)


def test_layers_by_module_and_pattern():
    model = build(gpt2)

    def rows(layers):
        return attribute(model, target=[5, 6, 7], layers=layers, method="rollout").full_attr

    assert torch.equal(rows("*.h.*"), rows(None))
    assert torch.equal(rows(["transformer.h.[01].*"]), rows(slice(0, 2)))
    assert torch.equal(rows([model.transformer.h[1], -1]), rows(slice(1, 3)))
    decoder = build(bart)
    by_pattern = attribute(decoder, layers="*.layers.1.encoder_attn").token_attr
    torch.testing.assert_close(by_pattern, attribute(decoder, layers=1).token_attr)
    with pytest.raises(SelectionError, match=r"'\*vision\*' matches no attention call. The attention layers are .*h.0"):
        rows("*vision*")


def test_what_was_learnt_about_the_model_is_kept_until_it_changes():
    model, calls = build(gpt2), []
    used = GenerationAttribution(AttentionAttribution(model, method="rollout"), tokenizer())
    model.register_forward_hook(lambda *_: calls.append(1))
    first = used.attribute(TEXT, [5, 6, 7]).full_attr
    assert len(calls) > 1, "mixing is tried out"
    calls.clear()
    assert torch.equal(used.attribute(TEXT, [5, 6, 7]).full_attr, first)
    assert len(calls) == 1
    calls.clear()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    used.attribute(TEXT, [5, 6, 7])
    assert len(calls) > 1
    other = build(gpt2)
    used.forward_func = other
    expected = GenerationAttribution(AttentionAttribution(other, method="rollout"), tokenizer())
    assert torch.equal(used.attribute(TEXT, [5, 6, 7]).full_attr, expected.attribute(TEXT, [5, 6, 7]).full_attr)
    assert repr(used) == "GenerationAttribution(AttentionAttribution(GPT2LMHeadModel, method='rollout'), " + (
        f"{type(used.tokenizer).__name__})"
    )
