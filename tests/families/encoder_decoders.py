"""HuggingFace models with an encoder, a decoder, and attention from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.families.base import HEADS, IDS, MASK, Family, eager_huggingface

EACH = 2  # layers in the encoder, and in the decoder
DECODER_IDS = torch.tensor([[2, 31, 12, 66, 9], [2, 58, 7, 41, 22]])
KINDS = ["self"] * EACH + ["self", "cross"] * EACH
CAUSAL = [False] * EACH + [True, False] * EACH
SIZES: dict[str, Any] = dict(
    vocab_size=70, d_model=32, encoder_layers=EACH, decoder_layers=EACH, encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=16, pad_token_id=0,
    bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=None,
)  # fmt: skip


def _reported(model: nn.Module, **named: Tensor) -> Callable[[], list[Tensor]]:
    """Return the function that runs a model on eager attention and returns what it reports, in call order."""

    def attentions() -> list[Tensor]:
        with torch.no_grad(), eager_huggingface(model)():
            told = model(**named, output_attentions=True)
        decoder = zip(told.decoder_attentions, told.cross_attentions, strict=True)
        return [*told.encoder_attentions, *(x for layer in decoder for x in layer)]

    return attentions


def _family(name: str, title: str, model: nn.Module, **options: Any) -> Family:
    return Family(
        name,
        model,
        title=title,
        eager=eager_huggingface(model) if model.config._attn_implementation != "eager" else None,
        kinds=KINDS,
        causal=CAUSAL,
        products=False,
        group="encoder-decoder",
        **options,
    )


def _translator(name: str, title: str, model: nn.Module) -> Family:
    """The next word after the decoder's last token."""
    model = model.eval()

    def forward(ids: Tensor, decoder_ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits[:, -1]

    told = _reported(model, input_ids=IDS, attention_mask=MASK, decoder_input_ids=DECODER_IDS)
    return _family(name, title, model, forward=forward, inputs=(IDS, DECODER_IDS), args=(MASK,), output_attentions=told)


def t5() -> Family:
    """Scores are not scaled, and get a bias for the distance of the tokens."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=70, d_model=32, d_kv=8, d_ff=48, num_layers=EACH, num_decoder_layers=EACH, num_heads=HEADS,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=2, relative_attention_num_buckets=8,
        initializer_factor=0.4,
    )  # fmt: skip
    return _translator("t5", "T5", T5ForConditionalGeneration(config))


def marian() -> Family:
    from transformers import MarianConfig, MarianMTModel

    return _translator("marian", "Marian", MarianMTModel(MarianConfig(**SIZES, init_std=0.05)))


def bart() -> Family:
    """A classifier: the decoder is given the encoder's text, and its cross-attention is square."""
    from transformers import BartConfig, BartForSequenceClassification

    model = BartForSequenceClassification(BartConfig(**SIZES, num_labels=3)).eval()

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits

    told = _reported(model, input_ids=IDS, attention_mask=MASK)
    return _family("bart", "BART", model, forward=forward, inputs=IDS, args=(MASK,), output_attentions=told)


ENCODER_DECODERS = [t5, bart, marian]
