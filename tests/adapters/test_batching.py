"""Padding is tried out: where it changes an answer, texts run without, and each gets what it gets alone."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import InputError, PaddingWarning
from tests.models import text as models
from tests.models.padded import CASES, TEXTS, WORDS, LastPosition, MaskUsed, MaxOverAll, Words, by_hand, make


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaddingWarning)
        return function(*args, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_gives_each_text_what_it_gets_alone(name):
    model, tokenizer = make(name)
    adapter = TextAdapter(model, tokenizer)
    found = quiet(adapter.logits, TEXTS)
    fresh = make(name)[0]
    for text, row in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(row, by_hand(fresh if name != "bigbird" else make(name)[0], text), atol=2e-5)
    assert (adapter.logits(TEXTS) == found).all()  # and nothing is said a second time


@pytest.mark.parametrize("name", CASES)
def test_texts_of_several_lengths_are_encoded_where_that_changes_nothing(name):
    model, tokenizer = make(name)
    _, _, side, alone = CASES[name]
    adapter = TextAdapter(model, tokenizer)
    if side is None:
        with pytest.raises(InputError, match="one at a time"):
            quiet(adapter.encode, TEXTS[:2])
        same = [TEXTS[1], "a fine but dull film"]
        if alone:
            with pytest.raises(InputError, match="else is in its batch"):
                quiet(adapter.encode, same)
            return
    else:
        same = TEXTS[:2]
    x = adapter.encode(same)
    with torch.no_grad():
        found = adapter(x.inputs, *x.forward_args)
    for k, text in enumerate(same):
        torch.testing.assert_close(found[k], by_hand(make(name)[0], text), atol=2e-5, rtol=1e-5)
        spans = [None if s is None else text[s[1] : s[2]] for s in x.token_spans[k]]
        words = [x.feature_names[k][f] if s else None for f, s in zip(x.feature_mask[k].tolist(), spans, strict=True)]
        assert spans == words
        assert [f for f, m in zip(spans, x.forward_args[0][k].tolist(), strict=True) if m] == text.split()


def test_what_padding_changes_is_said_once():
    adapter = TextAdapter(*make("last position"))
    with pytest.warns(PaddingWarning, match="changes with padding"):
        adapter.predict_proba(TEXTS)
    adapter.predict_proba(TEXTS[:2])  # a second warning would be an error here
    adapter.encode("a fine film")


@pytest.mark.parametrize("first", TEXTS)
def test_what_is_found_out_does_not_depend_on_the_first_text(first):
    """Of a long text no padding shows in a maximum over positions; what is left of it without its words tells."""
    torch.manual_seed(0)
    adapter = TextAdapter(MaxOverAll().eval(), WORDS)
    quiet(adapter.encode, " ".join([first] * 4))
    found = quiet(adapter.logits, ["bad", "a bit", "a bit dull"])
    for row, text in zip(found, ["bad", "a bit", "a bit dull"], strict=True):
        np.testing.assert_allclose(row, by_hand(adapter.model, text), atol=1e-5)


class Switched(Words):
    """Reads padding by a flag, a weight or its configuration."""

    def __init__(self):
        super().__init__()
        self.reads_padding = False
        self.share = nn.Parameter(torch.zeros(1))

    def pooled(self, x, mask):
        own = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return own + x[:, -1] if self.reads_padding else own + self.share * x[:, -1]


@pytest.mark.parametrize("change", ["flag", "weight in place", "loaded weights", "step"])
def test_what_was_found_out_is_forgotten_when_the_model_changes(change):
    torch.manual_seed(0)
    model = Switched().eval()
    adapter = TextAdapter(model, WORDS)
    adapter.predict_proba(TEXTS)
    if change == "flag":
        model.reads_padding = True
    elif change == "weight in place":
        with torch.no_grad():
            model.share.fill_(1)
    elif change == "loaded weights":
        model.load_state_dict(model.state_dict() | {"share": torch.ones(1)})
    else:
        model(torch.tensor([[2, 3]])).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        model.reads_padding = False
    fresh = quiet(TextAdapter(copy.deepcopy(model), WORDS).logits, TEXTS)
    assert np.abs(quiet(adapter.logits, TEXTS) - fresh).max() < 1e-6
    for row, text in zip(fresh, TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(model, text), atol=1e-5)


def test_used_adapters_are_copied_and_pickled():
    for name in ("last position", "gpt2"):
        adapter = TextAdapter(*make(name))
        found = quiet(adapter.logits, TEXTS)
        for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            np.testing.assert_allclose(quiet(other.logits, TEXTS), found, atol=1e-6)
            assert any(other.embedding is m for m in other.model.modules())


def test_a_model_is_tried_out_in_a_few_short_runs():
    """Once; a long text is not run in full for it."""
    torch.manual_seed(0)
    model, seen = MaskUsed().eval(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["ids"].shape), with_kwargs=True)
    adapter = TextAdapter(model, WORDS)
    adapter.encode(" ".join(TEXTS * 20))
    assert len(seen) <= 6
    assert max(n * length for n, length in seen) <= 5 * 64
    seen.clear()
    adapter.encode(TEXTS[0])
    adapter.predict_proba(TEXTS)
    assert sum(n for n, _ in seen) == len(TEXTS)


def test_a_random_model_and_a_constant_one_are_no_reason_to_warn():
    class Random(Words):
        def pooled(self, x, mask):
            return torch.rand(len(x), 16)

    class Constant(Words):
        def pooled(self, x, mask):
            return torch.zeros(len(x), 16)

    for model in (Random(), Constant()):
        adapter = TextAdapter(model.eval(), WORDS)
        assert adapter.predict_proba(TEXTS).shape == (4, 2)


def test_a_batch_of_copies_of_a_text_is_its_rows_where_the_batch_matters():
    adapter = TextAdapter(*make("statistics of the batch"))
    x = quiet(adapter.encode, TEXTS[1])
    copies = torch.cat([x.inputs, x.baselines, x.inputs])
    found = adapter(copies, torch.ones_like(copies))
    alone = torch.cat([adapter(row[None], torch.ones_like(row)[None]) for row in copies])
    torch.testing.assert_close(found, alone)


def test_a_huggingface_tokenizers_padding_side_is_kept():
    torch.manual_seed(0)
    for side in ("left", "right"):
        tokenizer = models.word_level_tokenizer()
        tokenizer.padding_side = side
        x = TextAdapter(MaskOfBert(), tokenizer).encode(["a fine film", "it is not good and it is long"])
        row = x.forward_args[0][0].tolist()
        assert row == sorted(row, reverse=side == "right")


class MaskOfBert(nn.Module):
    """A mean over the real tokens, which padding on neither side changes."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        x = (self.embed(input_ids) * attention_mask[..., None]).sum(dim=1)
        return self.head(x / attention_mask.sum(dim=1, keepdim=True))


def test_a_last_position_head_is_explained_as_alone():
    torch.manual_seed(0)
    adapter = TextAdapter(LastPosition().eval(), WORDS)
    with pytest.warns(PaddingWarning):
        x = adapter.encode(TEXTS[0])
    assert x.inputs.shape[1] == len(TEXTS[0].split())
