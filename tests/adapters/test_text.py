"""TextAdapter: the same numbers as the bare model, text by text; words as features; every Captum method."""

from __future__ import annotations

import inspect
import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import TargetError
from captum_attn_lime.lime import LimeText
from tests.models import text as models

TEXTS = ["a fine film", "", "it isn't bad; it is not good", "a fine film", "dull", "good good film , zzz unknown"]


def llama(**options) -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=2)
    sizes |= dict(vocab_size=300, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=64) | options
    return LlamaForSequenceClassification(LlamaConfig(**sizes)).eval()


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=80, dim=32, n_layers=2, n_heads=4, hidden_dim=48, initializer_range=0.5)
    return DistilBertForSequenceClassification(config).eval()


def words() -> WordTokenizer:
    return WordTokenizer.fit(models.CORPUS)


FAMILIES = {
    "bert": (models.bert, models.word_level_tokenizer),
    "bert_word_pieces": (models.bert, models.word_piece_tokenizer),
    "distilbert": (distilbert, models.word_level_tokenizer),
    "gpt2_without_padding_token": (models.gpt2, models.byte_bpe_tokenizer),
    "gpt2_with_padding_token": (lambda: models.gpt2(pad_token_id=0), models.byte_bpe_tokenizer),
    "llama_without_padding_token": (llama, models.byte_bpe_tokenizer),
    "llama_padding_left": (lambda: llama(pad_token_id=0), lambda: _padding_left(models.word_level_tokenizer())),
    "single_logit": (lambda: models.bert(num_labels=1), models.word_level_tokenizer),
    "by_hand": (lambda: models.MaskedMean(70).eval(), words),
    "by_hand_without_mask": (lambda: models.BagOfWords(70).eval(), words),
    "torch_encoder": (
        lambda: models.EncoderClassifier(70, real_only=True).eval(),
        words,
    ),
}


def _padding_left(tokenizer):
    tokenizer.padding_side = "left"
    return tokenizer


def _alone(model, tokenizer, text: str) -> torch.Tensor:
    """The oracle: one text, its own length, no mask needed, ids by position."""
    ids = tokenizer.encode(text)
    if not ids:
        reference = getattr(tokenizer, "bos_token_id", None)
        ids = [tokenizer.unk_token_id if reference is None else reference]
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    return getattr(out, "logits", out)[0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_proba_is_the_bare_model_text_by_text(family):
    make, tokenizer = FAMILIES[family]
    model, tokenizer = make(), tokenizer()
    adapter = TextAdapter(model, tokenizer, batch_tokens=12)
    logits = torch.stack([_alone(model, tokenizer, text) for text in TEXTS])
    found = adapter.logits(TEXTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, logits, atol=2e-5)
    if logits.shape[1] == 1:
        p = 1 / (1 + np.exp(-logits[:, 0].numpy()))
        expected = np.stack([1 - p, p], axis=1)
    else:
        expected = (logits.exp() / logits.exp().sum(dim=1, keepdim=True)).numpy()
    probabilities = adapter.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert isinstance(probabilities, np.ndarray)
    assert probabilities.dtype == np.float64
    np.testing.assert_array_equal(probabilities[0], probabilities[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_gives_each_row_of_a_mixed_batch_what_it_gets_alone(family):
    make, tokenizer = FAMILIES[family]
    model, tokenizer = make(), tokenizer()
    adapter = TextAdapter(model, tokenizer)
    texts = ["a fine film", "it is not good"] if family != "by_hand_without_mask" else ["a fine film", "not so good"]
    x = adapter.encode(texts)
    assert len(x) == 2
    assert x.inputs.shape == x.baselines.shape == x.feature_mask.shape
    with torch.no_grad():
        found = adapter(x.inputs, *x.forward_args)
    np.testing.assert_allclose(found, torch.stack([_alone(model, tokenizer, t) for t in texts]), atol=2e-5)
    assert getattr(getattr(model, "config", None), "pad_token_id", "none") == getattr(
        getattr(make(), "config", None), "pad_token_id", "none"
    )


@pytest.mark.parametrize(
    ("family", "side"),
    [("gpt2_without_padding_token", "right"), ("gpt2_with_padding_token", "right"), ("llama_padding_left", "left")],
)
def test_causal_models_are_padded_on_their_tokenizers_side(family, side):
    make, tokenizer = FAMILIES[family]
    x = TextAdapter(make(), tokenizer()).encode(["a fine film", "it is not good and it is long"])
    assert x.forward_args[0][0].tolist() == sorted(x.forward_args[0][0].tolist(), reverse=side == "right")


def test_a_removed_last_word_is_not_taken_for_padding():
    model = models.gpt2()  # no padding id; the end token is the baseline and would fill up a batch
    adapter = TextAdapter(model, models.byte_bpe_tokenizer())
    x = adapter.encode("a fine film")
    ids = x.inputs.clone()
    ids[0, -1] = x.baselines[0, -1]
    with torch.no_grad():
        bare = model(ids).logits  # a single row without padding id: the model reads the last cell
        found = adapter(ids.repeat(2, 1), x.forward_args[0].repeat(2, 1))
    torch.testing.assert_close(found, bare.repeat(2, 1))


def test_features_baselines_and_names_of_a_mixed_batch():
    tokenizer = models.word_level_tokenizer()
    adapter = TextAdapter(models.bert(), tokenizer)
    x = adapter.encode(["it isn't bad", "a film, dull"])
    # Whitespace() cuts "isn't" in three tokens; as a word it is one feature. The last id is 4 = most words of a row.
    assert x.feature_names == (("it", "isn't", "bad"), ("a", "film", ",", "dull"))
    assert x.feature_mask.tolist() == [[4, 0, 1, 1, 1, 2, 4], [4, 0, 1, 2, 3, 4, 4]]
    assert x.tokens[1][0] == "[CLS]"
    assert x.tokens[1][-2:] == ("[SEP]", "[PAD]")
    assert x.baselines.tolist() == [[2, 4, 4, 4, 4, 4, 3], [2, 4, 4, 4, 4, 3, 0]]
    assert [(w.text, w.start, w.end) for w in x.words[0]] == [("it", 0, 2), ("isn't", 3, 8), ("bad", 9, 12)]
    assert x.inputs.dtype == x.feature_mask.dtype == torch.int64


@pytest.mark.parametrize(("baseline", "expected"), [("mask", 4), ("pad", 0), ("unk", 1), (9, 9)])
def test_the_baseline_token_is_the_one_asked_for(baseline, expected):
    x = TextAdapter(models.bert(), models.word_level_tokenizer()).encode("a fine film", baselines=baseline)
    assert x.baselines.tolist() == [[2, expected, expected, expected, 3]]


def test_byte_pairs_with_leading_spaces_and_split_characters_go_to_their_words():
    adapter = TextAdapter(models.gpt2(), models.byte_bpe_tokenizer())
    x = adapter.encode("a fine  naïve 😀 film")
    assert x.feature_names[0] == ("a", "fine", "naïve", "😀", "film")
    for token, word in zip(x.tokens[0], x.feature_mask[0].tolist(), strict=True):
        if token.strip("Ġ").isascii() and token.strip("Ġ"):
            assert token.strip("Ġ") in x.feature_names[0][word]
    # Every word has its tokens, in order; a lone space stands for no word.
    ids = [k for k in x.feature_mask[0].tolist() if k < 5]
    assert ids == sorted(ids)
    assert set(ids) == {0, 1, 2, 3, 4}


METHODS = {
    "LayerIntegratedGradients": dict(n_steps=5),
    "LayerGradientXActivation": {},
    "LayerActivation": None,
    "FeatureAblation": {},
    "ShapleyValueSampling": dict(n_samples=2),
    "KernelShap": dict(n_samples=5),
    "Lime": dict(n_samples=5),
    "Occlusion": dict(sliding_window_shapes=(1,)),
}


@pytest.mark.parametrize("family", ["bert", "gpt2_without_padding_token", "by_hand"])
@pytest.mark.parametrize("name", METHODS)
def test_any_captum_method_takes_an_encoding(name, family):
    make, tokenizer = FAMILIES[family]
    adapter = TextAdapter(make(), tokenizer())
    x = adapter.encode("it is not good")
    cls = getattr(captum.attr, name)
    method = cls(adapter, adapter.embedding) if name.startswith("Layer") else cls(adapter)
    options = METHODS[name]
    takes_target = "target" in inspect.signature(method.attribute).parameters
    out = method.attribute(**x.arguments(method), **(options or {}), **({"target": 1} if takes_target else {}))
    assert out.shape[:2] == x.inputs.shape
    assert out.abs().sum() > 0


def test_noise_tunnel_gets_the_arguments_of_the_method_inside():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    x = adapter.encode("it is not good")
    tunnel = captum.attr.NoiseTunnel(captum.attr.LayerIntegratedGradients(adapter, adapter.embedding))
    assert set(x.arguments(tunnel)) == {"inputs", "baselines", "additional_forward_args"}


def test_integrated_gradients_are_complete_over_words():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    x = adapter.encode("it is not good")
    ig = captum.attr.LayerIntegratedGradients(adapter, adapter.embedding)
    out = ig.attribute(**x.arguments(ig), target=1, n_steps=200).sum()
    with torch.no_grad():
        gap = (adapter(x.inputs, *x.forward_args) - adapter(x.baselines, *x.forward_args))[0, 1]
    torch.testing.assert_close(out.float(), gap, atol=2e-2, rtol=0)


def test_ablation_leaves_special_and_padding_cells_at_zero():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    x = adapter.encode(["it is not good", "dull"])
    ablation = captum.attr.FeatureAblation(adapter)
    out = ablation.attribute(**x.arguments(ablation), target=0)
    last = x.feature_mask == x.feature_mask.max()
    assert (out[last] == 0).all()
    assert (out[~last] != 0).all()


def test_perturbation_and_gradient_methods_see_one_function_on_padded_batches():
    model = models.EncoderClassifier().eval()
    adapter = TextAdapter(model, WordTokenizer.fit(models.CORPUS))
    ids, mask = torch.tensor([[2, 3, 4, 0, 0, 0], [5, 6, 7, 8, 9, 2]]), torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fast path warns about nested tensors
        without = adapter(ids, mask)
        bare = model(ids, mask == 0)
    assert torch.equal(without, adapter(ids, mask).detach())
    assert not torch.allclose(without, bare)  # the fast path would have given another answer
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_model_keeps_its_training_flags_and_gets_no_graph():
    model = models.MaskedMean().train()
    model.head.eval()
    before = [m.training for m in model.modules()]
    adapter = TextAdapter(model, WordTokenizer.fit(models.CORPUS))
    one, two = adapter.predict_proba(["a fine film"]), adapter.predict_proba(["a fine film"])
    np.testing.assert_array_equal(one, two)  # dropout was off
    assert [m.training for m in model.modules()] == before
    x = adapter.encode("a fine film")
    noisy = {tuple(adapter(x.inputs, *x.forward_args)[0].tolist()) for _ in range(4)}
    assert len(noisy) > 1  # forward leaves the mode to the user


def test_the_embedding_is_the_one_that_takes_the_ids():
    bert, by_hand = models.bert(), models.MaskedMean()
    assert TextAdapter(bert, models.word_level_tokenizer()).embedding is bert.get_input_embeddings()
    assert TextAdapter(by_hand, WordTokenizer.fit(models.CORPUS)).embedding is by_hand.word
    assert not by_hand.word._forward_pre_hooks


def test_texts_are_run_once_in_batches_under_the_budget():
    model, seen = models.MaskedMean(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["ids"].shape), with_kwargs=True)
    adapter = TextAdapter(model, WordTokenizer.fit(models.CORPUS), batch_tokens=8)
    adapter.encode("it is not good")  # a new model is tried out
    seen.clear()
    adapter.predict_proba(["a fine film", "A FINE FILM", "a", "good film", "a fine film", "it is not good"])
    assert sum(n for n, _ in seen) == 4
    assert all(n * length <= 8 for n, length in seen)


def test_names_say_nothing_so_forward_names_tell():
    class Odd(models.MaskedMean):
        def forward(self, alpha, *, beta):
            return super().forward(alpha, 1 - beta.long())

    model, tokenizer = Odd().eval(), WordTokenizer.fit(models.CORPUS)
    names = {"input_ids": "alpha", "padding_mask": "beta"}
    adapter = TextAdapter(model, tokenizer, forward_names=names)
    x = adapter.encode(["a fine film", "dull"])
    alone = [(torch.tensor([tokenizer.encode(t)]), torch.zeros(1, n)) for t, n in zip(x.texts, (3, 1), strict=True)]
    expected = torch.cat([model(ids, beta=none) for ids, none in alone])
    torch.testing.assert_close(adapter(x.inputs, *x.forward_args), expected)


def test_class_names_come_from_the_configuration():
    model = models.bert(id2label={0: "bad", 1: "so so", 2: "good"})
    assert TextAdapter(model, models.word_level_tokenizer()).class_names == ("bad", "so so", "good")


def test_class_names_of_a_part_of_the_model_are_not_those_of_its_outputs():
    class Five(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.head = models.bert(id2label={0: "bad", 1: "so so", 2: "good"}), nn.Linear(3, 5)

        def forward(self, input_ids, attention_mask=None):
            return self.head(self.part(input_ids, attention_mask=attention_mask).logits)

    adapter = TextAdapter(Five().eval(), models.word_level_tokenizer())
    x = adapter.encode("a fine film")
    method = captum.attr.FeatureAblation(adapter)
    for explain in (
        lambda: adapter.logits("a fine film", target="good"),
        lambda: adapter.explained(x.inputs, x.forward_args, "good"),
        lambda: LimeText(adapter).attribute(**x.arguments(LimeText(adapter)), target="good"),
        lambda: LimeText(adapter).explain("a fine film", "good", num_samples=10),
    ):
        with pytest.raises(TargetError, match="'good' is not one of the model's 5 classes; pass an int from 0 to 4"):
            explain()
    assert adapter.explained(x.inputs, x.forward_args, 1).name is None
    assert LimeText(adapter).explain("a fine film", 1, num_samples=10).explained.name is None
    assert method.attribute(**x.arguments(method), target=4).shape == x.inputs.shape


@pytest.mark.parametrize("text", ["it isn't unbelievably bad", "naïve 😀 film"])
def test_tokens_as_features(text):
    adapter = TextAdapter(models.gpt2(), models.byte_bpe_tokenizer())
    x = adapter.encode([text, "a film"], features="token")
    for i, row in enumerate(x.tokens):
        real = [k for k, span in enumerate(x.token_spans[i]) if span is not None and span[2] > span[1]]
        assert x.feature_names[i] == tuple(row[k] for k in real)
        assert [x.positions(k, example=i) for k in range(len(real))] == [(k,) for k in real]
        assert [x.texts[i][w.start : w.end] for w in x.words[i]] == [w.text for w in x.words[i]]
    assert len(x.words[0]) > len(adapter.encode(text).words[0])


def test_tokens_as_features_of_a_pair_and_no_special_ones():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    x = adapter.encode(("a fine film", "dull"), features="token", baselines="pad")
    assert x.feature_names[0] == ("a", "fine", "film", "dull")
    assert x.text_indices[0] == (0, 0, 0, 1)
    changed = x.baselines[0] != x.inputs[0]
    assert [t for t, c in zip(x.tokens[0], changed.tolist(), strict=True) if c] == list(x.feature_names[0])
    first = adapter.encode(("a fine film", "dull"), features="token", explained_text="second")
    assert first.feature_names[0] == ("dull",)
