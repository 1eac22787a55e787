"""HuggingFace text encoders."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.families.base import (
    HEADS,
    IDS,
    LAYERS,
    MASK,
    SIZES,
    Family,
    allowed_keys,
    classifier,
    eager_huggingface,
    from_linear_layers,
    reported,
)

COMMON: dict[str, Any] = {**SIZES, "max_position_embeddings": 16, "num_labels": 3, "pad_token_id": 0}


def _family(name: str, title: str, model: nn.Module, **options: Any) -> Family:
    """A classifier that reads the first token."""
    model = model.eval()
    return Family(
        name,
        model,
        classifier(model),
        IDS,
        (MASK,),
        [0, 0],
        eager=eager_huggingface(model) if model.config._attn_implementation != "eager" else None,
        output_attentions=reported(model, input_ids=IDS, attention_mask=MASK),
        title=title,
        group="text encoder",
        **options,
    )


def bert() -> Family:
    from transformers import BertConfig, BertForSequenceClassification

    names = [f"bert.encoder.layer.{i}.attention.self" for i in range(LAYERS)]
    oracle, hooked = from_linear_layers(names, allowed_keys(MASK, 7, causal=False))
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    return _family("bert", "BERT", model, oracle=oracle, hooked=hooked)


def roberta() -> Family:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return _family("roberta", "RoBERTa", RobertaForSequenceClassification(RobertaConfig(**COMMON)))


def xlm_roberta() -> Family:
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    return _family("xlm_roberta", "XLM-R", XLMRobertaForSequenceClassification(XLMRobertaConfig(**COMMON)))


def distilbert() -> Family:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=70, dim=32, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48, max_position_embeddings=16, num_labels=3
    )
    return _family("distilbert", "DistilBERT", DistilBertForSequenceClassification(config))


def electra() -> Family:
    from transformers import ElectraConfig, ElectraForSequenceClassification

    model = ElectraForSequenceClassification(ElectraConfig(**COMMON, embedding_size=16))
    return _family("electra", "ELECTRA", model)


def albert() -> Family:
    """One layer, called three times."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    model = AlbertForSequenceClassification(AlbertConfig(**COMMON, embedding_size=16))
    return _family("albert", "ALBERT", model)


def deberta_v2() -> Family:
    """Scores of content against content, content against place, and place against content."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        **COMMON,
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    )
    return _family("deberta_v2", "DeBERTa-v2", DebertaV2ForSequenceClassification(config))


def mpnet() -> Family:
    from transformers import MPNetConfig, MPNetForSequenceClassification

    return _family("mpnet", "MPNet", MPNetForSequenceClassification(MPNetConfig(**COMMON)))


def modernbert() -> Family:
    """Two layers see their neighbours only, fewer than the text has tokens."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    config = ModernBertConfig(
        **COMMON,
        local_attention=4,
        global_attn_every_n_layers=3,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    return _family("modernbert", "ModernBERT", ModernBertForSequenceClassification(config))


TEXT_ENCODERS = [bert, roberta, xlm_roberta, distilbert, electra, albert, deberta_v2, mpnet, modernbert]
