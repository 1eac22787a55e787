"""LIME's weights do not depend on which copies share a batch: every removal, batch size and kind of reading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2ForSequenceClassification

from captum_attn_lime import LimeText, TextAdapter, WordTokenizer
from captum_attn_lime.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.LimeWarning"),
    pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.PaddingWarning"),  # some read padding
]
WORDS = ["the", "film", "is", "very", "good", "and", "plot", "not", "bad", "at", "all"]
TEXT = "the film xyz is very good and the plot is not bad at all"
END = 19


class Ended(WordTokenizer):
    """Words, and a token at the end that every text has."""

    def spans(self, text):
        ids, places = super().spans(text)
        return [*ids, END], [*places, None]


TOKENIZER = Ended({"<pad>": 0, "<unk>": 1, **{word: k + 2 for k, word in enumerate(WORDS)}})


class Reader(nn.Module):
    """BERT whose positions are summed with given weights, those behind the attention mask too."""

    def __init__(self, weigh, **options):
        super().__init__()
        sizes = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        self.bert = BertModel(BertConfig(**sizes, **options))
        self.head, self.weigh, self.config = nn.Linear(16, 2), weigh, self.bert.config

    def forward(self, input_ids, attention_mask=None):
        x = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return 5 * self.head((x * self.weigh(x.shape[1])[None, :, None]).sum(1))


def causal(**options):
    sizes = dict(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    sizes["initializer_range"] = 0.5  # so that its answers move
    return GPT2ForSequenceClassification(GPT2Config(**sizes, **options))


def mean(n):
    return torch.ones(n, dtype=torch.float64) / n


def rising(n):
    return torch.arange(1.0, n + 1, dtype=torch.float64) / 10


MODELS = {
    "mean over all positions": lambda: Reader(mean),
    "mean without a padding id": lambda: Reader(mean, pad_token_id=None),
    "by position": lambda: Reader(rising),
    "first position": lambda: Reader(lambda n: torch.eye(n, dtype=torch.float64)[0]),
    "causal": lambda: causal(pad_token_id=0),
    "causal without a padding id": lambda: causal(pad_token_id=None),
    "causal that pads with its end": lambda: causal(pad_token_id=END),
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name]().double().eval()  # so that what differs is no rounding


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("removal", ["delete", "mask", "pad", "attention"])
def test_of_texts(name, removal):
    model, found = made(name), []
    for size in (16, 4096):
        adapter = TextAdapter(model, TOKENIZER, batch_tokens=size)
        explanation = LimeText(adapter, removal=removal).explain(TEXT, 0, num_samples=60, output="logits")
        found.append([weight for _, weight in sorted(explanation.local_exp[0])])
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


TWO_LENGTHS = ["good film and plot", TEXT]
READING_PADDING = ["mean over all positions", "mean without a padding id", "by position"]


@pytest.mark.parametrize("name", READING_PADDING)
def test_texts_of_two_lengths_are_refused_where_padding_is_read(name):
    with pytest.raises(InputError, match="reads padding"):
        TextAdapter(made(name), TOKENIZER).encode(TWO_LENGTHS)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in READING_PADDING])
@pytest.mark.parametrize("baseline", ["mask", "pad"])
def test_of_tensors(name, baseline):
    """Also of a text that is padded beside a longer one."""
    adapter = TextAdapter(made(name), TOKENIZER)
    encoding = adapter.encode(TWO_LENGTHS, baselines=baseline)
    found = []
    for size in (1, 32):
        weights = LimeText(adapter).attribute(
            encoding.inputs,
            encoding.baselines,
            0,
            encoding.forward_args,
            encoding.feature_mask,
            n_samples=50,
            perturbations_per_eval=size,
        )
        found.append(weights.numpy())
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


@pytest.mark.parametrize("name", ["mean over all positions", "causal", "mean without a padding id"])
def test_hidden_words_are_one_padding_id(name):
    model, seen = made(name), []

    def spy(module, args, kwargs):
        seen.extend(kwargs["input_ids"][kwargs["attention_mask"] == 0].tolist())

    handle = model.register_forward_pre_hook(spy, with_kwargs=True)
    for size in (16, 4096):
        adapter = TextAdapter(model, TOKENIZER, batch_tokens=size)
        LimeText(adapter, removal="attention").explain(TEXT, 0, num_samples=100)
    handle.remove()
    hidden = set(seen) - {model.config.pad_token_id}  # with which it was tried out whether padding matters
    assert len(hidden) == 1
    assert not hidden & {*TOKENIZER.spans(TEXT)[0], model.config.pad_token_id}


def test_a_text_of_the_whole_vocabulary_has_no_id_left():
    tokenizer = Ended({"<pad>": 0, "<unk>": 1, **{f"w{k}": k for k in range(2, 20)}})
    lime = LimeText(TextAdapter(made("causal"), tokenizer), removal="attention")
    with pytest.raises(InputError, match="all 20 ids"):
        lime.explain("xyz " + " ".join(f"w{k}" for k in range(2, 20)), 0, num_samples=20)
