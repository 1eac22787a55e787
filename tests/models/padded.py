"""Classifiers whose answers depend on padding, or on their batch, in ways of their own; and a few where they do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters import WordTokenizer

TEXTS = [
    "a fine film with a good cast and a good end",
    "a dull but fine film",
    "bad",
    "it is not so good but long and dull and a bit odd too",
]
WORDS = WordTokenizer.fit(TEXTS)


class LeftPadding:
    """A tokenizer that asks for padding on the left."""

    padding_side = "left"

    def __init__(self, tokenizer: WordTokenizer = WORDS):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


class Words(nn.Module):
    """Embeddings, what a subclass makes of them, and a head."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        self.embed, self.head = nn.Embedding(len(WORDS), 16), nn.Linear(16, 2)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(ids) if mask is None else mask
        return 5 * self.head(self.pooled(self.embed(ids), mask))

    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class MeanOverAll(Words):
    def pooled(self, x, mask):
        return x.mean(dim=1)


class MaxOverAll(Words):
    def pooled(self, x, mask):
        return x.amax(dim=1)


class LastPosition(Words):
    def pooled(self, x, mask):
        return x[:, -1] + x.mean(dim=1)


class FirstAndLast(Words):
    def pooled(self, x, mask):
        return x[:, 0] * x[:, -1]


class ByLength(Words):
    def pooled(self, x, mask):
        return x[:, 0] * x.shape[1] / 10


class Recurrent(Words):
    def __init__(self):
        super().__init__(lstm=nn.LSTM(16, 16, batch_first=True))

    def pooled(self, x, mask):
        return self.lstm(x)[0][:, -1]


class BothWays(Words):
    def __init__(self):
        super().__init__(gru=nn.GRU(16, 8, batch_first=True, bidirectional=True))

    def pooled(self, x, mask):  # the mask comes too late: the way back has read the padding
        return (self.gru(x)[0] * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class Convolution(Words):
    def __init__(self):
        super().__init__(conv=nn.Conv1d(16, 16, 3, padding=1))

    def pooled(self, x, mask):
        return self.conv(x.transpose(1, 2)).relu().amax(dim=2)


class NormOverPositions(Words):
    def pooled(self, x, mask):
        return ((x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True, unbiased=False) + 0.1))[:, 0]


class BatchStatistics(Words):
    def __init__(self):
        super().__init__(norm=nn.BatchNorm1d(16, track_running_stats=False))

    def pooled(self, x, mask):
        x = (x * mask[..., None]).sum(dim=1)
        return self.norm(x) if len(x) > 1 else x


class MaskIgnored(Words):
    hides = False

    def __init__(self):
        super().__init__(layer=nn.TransformerEncoderLayer(16, 2, 16, batch_first=True))

    def pooled(self, x, mask):
        return self.layer(x, src_key_padding_mask=mask == 0 if self.hides else None)[:, 0]


class MaskUsed(MaskIgnored):
    hides = True


def xlnet() -> nn.Module:
    from transformers import XLNetConfig, XLNetForSequenceClassification

    sizes = dict(d_model=32, n_layer=2, n_head=4, d_inner=48, num_labels=2, pad_token_id=0, initializer_range=0.3)
    return XLNetForSequenceClassification(XLNetConfig(vocab_size=len(WORDS), **sizes))


def _gpt2_sizes() -> dict:
    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, bos_token_id=1, eos_token_id=1)
    return dict(vocab_size=len(WORDS), **sizes)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    return GPT2ForSequenceClassification(GPT2Config(**_gpt2_sizes()))


class LastOfGPT2(nn.Module):
    def __init__(self):
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        self.gpt2, self.head = GPT2Model(GPT2Config(**_gpt2_sizes())), nn.Linear(32, 2)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.gpt2(input_ids, attention_mask=attention_mask).last_hidden_state[:, -1])


def bert_sizes() -> dict:
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    ids = dict(pad_token_id=0, bos_token_id=None, eos_token_id=None, sep_token_id=None)
    return dict(vocab_size=len(WORDS), initializer_range=0.3, **sizes, **ids)


def convbert() -> nn.Module:
    from transformers import ConvBertConfig, ConvBertForSequenceClassification

    return ConvBertForSequenceClassification(ConvBertConfig(embedding_size=16, **bert_sizes()))


def bigbird() -> nn.Module:
    from transformers import BigBirdConfig, BigBirdForSequenceClassification

    blocks = dict(attention_type="block_sparse", block_size=2, num_random_blocks=1)
    return BigBirdForSequenceClassification(BigBirdConfig(**blocks, **bert_sizes()))


# Name: (model, tokenizer, the side on which padding changes nothing or None, whether each text must run alone)
CASES = {
    "mean over padding": (MeanOverAll, WORDS, None, False),
    "max over padding": (MaxOverAll, WORDS, None, False),
    "last position": (LastPosition, WORDS, None, False),
    "first and last": (FirstAndLast, WORDS, None, False),
    "by length": (ByLength, WORDS, None, False),
    "lstm": (Recurrent, WORDS, None, False),
    "gru both ways": (BothWays, WORDS, None, False),
    "convolution": (Convolution, WORDS, None, False),
    "norm over positions": (NormOverPositions, WORDS, None, False),
    "statistics of the batch": (BatchStatistics, WORDS, None, True),
    "mask ignored": (MaskIgnored, WORDS, None, False),
    "mask used": (MaskUsed, WORDS, "right", False),
    "xlnet": (xlnet, WORDS, "left", False),
    "xlnet, padding on the left": (xlnet, LeftPadding(), "left", False),
    "gpt2": (gpt2, WORDS, "right", False),
    "gpt2, padding on the left": (gpt2, LeftPadding(), "right", False),
    "last of gpt2": (LastOfGPT2, WORDS, None, False),
    "lstm, padding on the left": (Recurrent, LeftPadding(), None, False),
    "convbert": (convbert, WORDS, None, False),
    "bigbird": (bigbird, WORDS, "right", False),
}


def make(name: str):
    """Return a model in eval mode and its tokenizer."""
    model, tokenizer, _, _ = CASES[name]
    torch.manual_seed(0)
    return model().eval(), tokenizer


def by_hand(model: nn.Module, text: str) -> Tensor:
    """Return the model's logits of one text alone, (classes,), by its own call."""
    ids = WORDS.spans(text)[0] or [WORDS.unk_token_id]
    with torch.no_grad():
        output = model(torch.tensor([list(ids)]))
    return (output if isinstance(output, Tensor) else output.logits)[0]
