"""The layer that embeds the ids is one that a run comes by, and the ids go to the parameter that is named for them."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import SelectionError
from tests.models import text as models


def bart():
    from transformers import BartConfig, BartForSequenceClassification

    sizes = dict(vocab_size=80, d_model=16, encoder_layers=1, decoder_layers=1, max_position_embeddings=64)
    sizes |= dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
    ids = dict(pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3)
    return BartForSequenceClassification(BartConfig(**sizes, **ids, num_labels=2, init_std=0.5)).eval()


def t5():
    from transformers import T5Config, T5ForSequenceClassification

    sizes = dict(vocab_size=80, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, num_labels=2)
    config = T5Config(**sizes, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, initializer_factor=0.5)
    return T5ForSequenceClassification(config).eval()


@pytest.mark.parametrize("make", [bart, t5])
def test_encoder_decoders_give_the_encoders_table(make):
    torch.manual_seed(0)
    model = make()
    adapter = TextAdapter(model, models.word_level_tokenizer())
    name = next(n for n, m in model.named_modules() if m is adapter.embedding)
    assert name.endswith("encoder.embed_tokens")
    x = adapter.encode("a fine film")
    method = captum.attr.LayerGradientXActivation(adapter, adapter.embedding)
    assert method.attribute(**x.arguments(method), target=1).abs().sum() > 0


def test_a_model_that_pads_the_ids_first_gives_the_table_that_it_names():
    class Windowed(models.BagOfWords):
        def get_input_embeddings(self):
            return self.table

        def forward(self, ids):
            return super().forward(nn.functional.pad(ids, (0, -ids.shape[1] % 8)))

    model = Windowed(40).eval()
    assert TextAdapter(model, WordTokenizer.fit(models.CORPUS)).embedding is model.table


def test_a_lone_table_of_positions_is_not_taken_for_the_words():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(40, 4))
            self.position, self.head = nn.Embedding(64, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head((self.table[ids] + self.position(torch.arange(ids.shape[1]))).mean(dim=1))

    adapter = TextAdapter(Positions(), WordTokenizer.fit(models.CORPUS))
    with pytest.raises(SelectionError, match="none of the 1"):
        _ = adapter.embedding
    assert adapter.predict_proba("a fine film").shape == (1, 2)


def test_the_embedding_is_looked_for_once_and_again_when_it_is_replaced():
    model, runs = models.MaskedMean(70), []
    adapter = TextAdapter(model, WordTokenizer.fit(models.CORPUS))
    model.register_forward_pre_hook(lambda m, args: runs.append(1))
    assert adapter.embedding is adapter.embedding is model.word
    assert len(runs) == 1
    model.word = nn.Embedding(80, 8)
    assert adapter.embedding is model.word
    assert [n for n, _ in adapter.named_children()] == ["model"]


@pytest.mark.parametrize("name", ["input_ids", "ids", "token_ids", "tokens"])
def test_ids_go_to_the_parameter_named_for_them_wherever_it_stands(name):
    scope = {}
    exec(f"def forward(self, scale=None, {name}=None):\n    return self.table({name}).sum(dim=1)", scope)
    model = type("Late", (models.BagOfWords,), {"forward": scope["forward"]})(40)
    adapter = TextAdapter(model, WordTokenizer.fit(models.CORPUS))
    x = adapter.encode("a fine film")
    torch.testing.assert_close(adapter(x.inputs), model.table(x.inputs).sum(dim=1))
