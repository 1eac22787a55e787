"""HuggingFace text encoders."""

from __future__ import annotations

from tests.families.base import IDS, LAYERS, MASK, SIZES, Family, allowed_keys, classifier, from_linear_layers


def bert() -> Family:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).eval()
    names = [f"bert.encoder.layer.{i}.attention.self" for i in range(LAYERS)]

    oracle, hooked = from_linear_layers(names, allowed_keys(MASK, 7, causal=False))
    return Family("bert", model, classifier(model), IDS, (MASK,), [0, 0], oracle, hooked)
