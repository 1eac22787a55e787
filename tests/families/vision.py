"""HuggingFace vision models."""

from __future__ import annotations

import torch

from tests.families.base import HEADS, LAYERS, SIZES, Family, output_of
from tests.reference.attention import softmax_rows, split_heads


def vit() -> Family:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=24, patch_size=8, num_labels=3)).eval()
    names = [f"vit.layers.{i}.attention" for i in range(LAYERS)]

    def oracle(seen):
        return [
            softmax_rows(*(split_heads(output_of(seen, f"{n}.{p}"), HEADS) for p in ("q_proj", "k_proj")))
            for n in names
        ]

    hooked = [f"{n}.{p}" for n in names for p in ("q_proj", "k_proj")]
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    return Family("vit", model, lambda x: model(pixel_values=x).logits, images, (), [0, 0], oracle, hooked)
