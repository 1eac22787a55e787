"""Models that tell padding by a token id: a word that was replaced by that id is still a word."""

from __future__ import annotations

import captum.attr
import pytest
import torch

from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.adapters.text._padding import unambiguous_padding
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime import LimeText
from tests.models import text as models

LONG, SHORT = "a fine film with a fine cast", "a fine film"


@pytest.fixture(params=[None, 0], ids=["no padding id", "padding id is the end token"])
def adapter(request):
    torch.manual_seed(0)
    return TextAdapter(models.gpt2(pad_token_id=request.param), models.byte_bpe_tokenizer())


def test_a_row_of_baselines_gets_in_a_batch_what_it_gets_alone(adapter):
    assert adapter.encode(SHORT).baselines.tolist() == [[0] * adapter.encode(SHORT).inputs.shape[1]]
    batch, alone = adapter.encode([LONG, SHORT]), adapter.encode(SHORT)
    reference = adapter.model
    own = reference.config.pad_token_id
    reference.config.pad_token_id = None  # without padding id a single row is read at its last cell
    with torch.no_grad():
        bare = reference(alone.baselines).logits
        reference.config.pad_token_id = own
        torch.testing.assert_close(adapter(alone.baselines, *alone.forward_args), bare)
        torch.testing.assert_close(adapter(batch.baselines, *batch.forward_args)[1:], bare)
    assert reference.config.pad_token_id == own


@pytest.mark.parametrize("name", ["LimeText", "FeatureAblation", "ShapleyValues"])
def test_a_row_is_explained_in_a_batch_as_alone(adapter, name):
    method = LimeText(adapter, seed=3) if name == "LimeText" else getattr(captum.attr, name)(adapter)
    options = {"n_samples": 60} if name == "LimeText" else {}
    texts = ["a dull film", "a film"] if name == "ShapleyValues" else [LONG, SHORT]
    batch = adapter.encode(texts)
    for i, text in enumerate(texts):
        alone = adapter.encode(text)
        one = method.attribute(**alone.arguments(method), target=1, **options)
        both = method.attribute(**batch.arguments(method), target=1, **options)
        torch.testing.assert_close(both[i : i + 1, : one.shape[1]], one, atol=1e-4, rtol=1e-4)
        assert one[0, -1] != 0  # the last word, where the model reads


def test_integrated_gradients_are_complete_in_a_batch(adapter):
    batch = adapter.encode([LONG, SHORT])
    ig = captum.attr.LayerIntegratedGradients(adapter, adapter.embedding)
    _, delta = ig.attribute(**batch.arguments(ig), target=1, n_steps=200, return_convergence_delta=True)
    assert delta.abs().max() < 1e-2


def test_a_text_that_holds_the_padding_token_is_the_same_alone_and_in_a_batch(adapter):
    odd = "good <|endoftext|>"
    alone, batch = adapter.encode(odd), adapter.encode([odd, LONG])
    with torch.no_grad():
        expected = adapter(alone.inputs, *alone.forward_args)
        torch.testing.assert_close(adapter(batch.inputs, *batch.forward_args)[:1], expected)
    found = torch.from_numpy(adapter.logits([odd, LONG]))[:1].float()
    torch.testing.assert_close(found, expected)


def test_end_tokens_that_the_tokenizer_adds_stay_what_the_bare_model_passes_over():
    from tokenizers import processors

    tokenizer = models.byte_bpe_tokenizer()
    end = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, 0)]
    )
    torch.manual_seed(0)
    model = models.gpt2(pad_token_id=0)
    adapter = TextAdapter(model, tokenizer)
    x = adapter.encode([LONG, SHORT])
    with torch.no_grad():
        for i, text in enumerate((LONG, SHORT)):
            bare = model(torch.tensor([tokenizer.encode(text)])).logits
            torch.testing.assert_close(adapter(x.inputs, *x.forward_args)[i : i + 1], bare)
            torch.testing.assert_close(torch.from_numpy(adapter.logits(text)).float(), bare)
        removed = adapter.encode(SHORT)
        model.config.pad_token_id = None
        bare = model(removed.baselines[:, :-1]).logits  # read at the last word, before the end token
        model.config.pad_token_id = 0
        torch.testing.assert_close(adapter(removed.baselines, *removed.forward_args), bare)


def test_a_batch_that_uses_the_whole_vocabulary_is_refused():
    model = models.gpt2(vocab_size=3)
    ids = torch.tensor([[0, 1, 2], [1, 0, 0]])
    with pytest.raises(InputError, match="all 3 ids"):
        unambiguous_padding(model, ids, torch.tensor([[1, 1, 1], [1, 1, 0]]), 0)
    found, lent = unambiguous_padding(model, ids.clamp(max=1), torch.tensor([[1, 1, 1], [1, 1, 0]]), 0)
    assert lent == 2
    assert found.tolist() == [[0, 1, 1], [1, 0, 2]]
