"""Models for every task of a text model, and tokenizers that take pairs; all tiny and random."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from tests.models import text as models

_SIZES: dict[str, Any] = dict(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    initializer_range=0.4, max_position_embeddings=64,
)  # fmt: skip


@cache  # training breaks ties by chance: all tokenizers of a test must share one vocabulary
def _word_pieces():
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(models.CORPUS, vocab_size=90, min_frequency=1, show_progress=False)
    return trained.get_vocab()


@cache
def _byte_pairs():
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(
        models.CORPUS, vocab_size=300, min_frequency=1, special_tokens=special, show_progress=False
    )
    table = json.loads(trained._tokenizer.to_str())["model"]
    return table["vocab"], [tuple(merge) for merge in table["merges"]]


def bert_tokenizer(**options):
    """Return a BERT tokenizer whose words fall into pieces; pairs have token types."""
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab=dict(_word_pieces()), **options)


def roberta_tokenizer(**options):
    """Return a RoBERTa tokenizer: byte pairs, two separators between the texts of a pair, no token types."""
    from transformers import RobertaTokenizerFast

    vocabulary, merges = _byte_pairs()
    return RobertaTokenizerFast(vocab=dict(vocabulary), merges=list(merges), **options)


def closing_tokenizer():
    """Return a tokenizer that closes each text, and each text of a pair, with an end token (id 1) as T5's does."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as token_models
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in models.CORPUS for word in text.split()})
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def words() -> WordTokenizer:
    return WordTokenizer.fit(models.CORPUS, separator="<sep>")


def hugging_face(name: str, **options) -> nn.Module:
    """Return a tiny random HuggingFace model by its class's name."""
    import transformers

    cls = getattr(transformers, name)
    sizes = _SIZES | options
    if name.startswith("GPT2"):
        sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, vocab_size=300) | options
        sizes = dict(bos_token_id=0, eos_token_id=0) | sizes
    if name.startswith("DistilBert"):
        sizes = dict(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=48, initializer_range=0.4) | options
    if name.startswith("Llama"):
        sizes = sizes | dict(num_key_value_heads=2, vocab_size=300) | options
    if name.startswith("Roberta"):
        sizes = sizes | dict(vocab_size=300, type_vocab_size=1, pad_token_id=1) | options
    if name.startswith("T5"):
        sizes = dict(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=8.0)
        sizes |= dict(dropout_rate=0.0, decoder_start_token_id=0) | options
    if name.startswith("Bart"):
        sizes = dict(vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, init_std=0.3, eos_token_id=1)
        sizes |= dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)
        sizes |= dict(pad_token_id=0, bos_token_id=1, decoder_start_token_id=1, max_position_embeddings=64) | options
    return cls(cls.config_class(**sizes)).eval()


class Tagger(nn.Module):
    """Classes for each token, from the token and the mean of the text."""

    def __init__(self, vocabulary: int, classes: int = 3):
        super().__init__()
        self.word = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(16, classes)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        real = torch.ones_like(ids).unsqueeze(2) if mask is None else mask.unsqueeze(2)
        x = self.word(ids)
        mean = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return self.head(torch.cat([x, (mean * x).tanh().expand_as(x) + mean], dim=2))


class Reader(Tagger):
    """Start and end logits, as a tuple."""

    def __init__(self, vocabulary: int):
        super().__init__(vocabulary, 2)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        start, end = super().forward(ids, mask).unbind(dim=2)
        return start, end


class NamedReader(Reader):
    """Start and end logits by name."""

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        start, end = super().forward(ids, mask)
        return {"start_logits": start, "end_logits": end}


class Writer(nn.Module):
    """A language model: each token's logits from the running mean up to it."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.word = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(8, vocabulary)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.word(ids)
        counts = torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
        return self.head((x.cumsum(1) / counts + x).tanh())


class Returns(nn.Module):
    """An output that was given, whatever the ids are."""

    def __init__(self, output: Any):
        super().__init__()
        self.embed = nn.Embedding(70, 4)
        self.output = output

    def forward(self, ids: Tensor) -> Any:
        return self.output


@dataclass(frozen=True)
class Case:
    """One model for one task.

    Attributes:
        task: The task.
        model: Makes the model.
        tokenizer: Makes its tokenizer.
        given: Whether the task has to be given.
    """

    task: str
    model: Callable[[], nn.Module]
    tokenizer: Callable[[], Any]
    given: bool = False

    def adapter(self, **options) -> TextAdapter:
        torch.manual_seed(3)
        return TextAdapter(self.model(), self.tokenizer(), **({"task": self.task} if self.given else {}), **options)

    @property
    def target(self) -> Any:
        """A target: a word inside the text, and a class."""
        return {"classification": 1, "next_token": 7}.get(self.task, (2, 1))


CASES = {
    "bert_tokens": Case("tokens", lambda: hugging_face("BertForTokenClassification", num_labels=4), bert_tokenizer),
    "bert_masked": Case("tokens", lambda: hugging_face("BertForMaskedLM"), bert_tokenizer),
    "by_hand_tokens": Case("tokens", lambda: Tagger(70), words, given=True),
    "bert_spans": Case("spans", lambda: hugging_face("BertForQuestionAnswering"), bert_tokenizer),
    "distilbert_spans": Case("spans", lambda: hugging_face("DistilBertForQuestionAnswering"), bert_tokenizer),
    "by_hand_spans": Case("spans", lambda: Reader(70), words, given=True),
    "gpt2_next": Case("next_token", lambda: hugging_face("GPT2LMHeadModel"), models.byte_bpe_tokenizer),
    "llama_next": Case("next_token", lambda: hugging_face("LlamaForCausalLM"), models.byte_bpe_tokenizer),
    "by_hand_next": Case("next_token", lambda: Writer(70), words, given=True),
}
