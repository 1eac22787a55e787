"""HuggingFace vision models, and the two towers of CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.families.base import HEADS, IDS, LAYERS, MASK, SIZES, Family, eager_huggingface, output_of
from tests.families.readouts import attention_pooling
from tests.families.torch_modules import calmer
from tests.reference.attention import softmax_rows, split_heads

COMMON = {key: value for key, value in SIZES.items() if key != "vocab_size"}
PATCH = 8
# Three rows of two patches: neither the image nor its grid is square.
TALL = (24, 16)


def images(height: int = TALL[0], width: int = TALL[1]) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def patch_tokens(rows: int, columns: int, prefix: int) -> Tensor:
    """Return the token of each pixel, (H, W): patches row by row, behind the prefix tokens."""
    grid = prefix + torch.arange(rows * columns).reshape(rows, columns)
    return grid.repeat_interleave(PATCH, dim=0).repeat_interleave(PATCH, dim=1)


def reported(model: nn.Module, run: Callable[[], Any]) -> Callable[[], list[Tensor]]:
    """Return the function that runs a HuggingFace model on eager attention and returns its output_attentions."""

    def attentions() -> list[Tensor]:
        with torch.no_grad(), eager_huggingface(model)():
            return list(run().attentions)

    return attentions


def vit() -> Family:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(**COMMON, image_size=24, patch_size=PATCH, num_labels=3)).eval()
    names = [f"vit.layers.{i}.attention" for i in range(LAYERS)]

    def oracle(seen):
        return [
            softmax_rows(*(split_heads(output_of(seen, f"{n}.{p}"), HEADS) for p in ("q_proj", "k_proj")))
            for n in names
        ]

    family = Family(
        "vit",
        model,
        lambda x: model(pixel_values=x).logits,
        images(24, 24),
        (),
        [0, 0],
        oracle,
        [f"{n}.{p}" for n in names for p in ("q_proj", "k_proj")],
        title="ViT (HuggingFace)",
        group="vision",
        prefix=1,
        token_of_cell=patch_tokens(3, 3, 1),
        eager=eager_huggingface(model),
    )
    family.output_attentions = reported(model, lambda: model(family.inputs, output_attentions=True))
    return family


def deit() -> Family:
    """Two heads on two tokens, averaged: which of them to explain is the user's choice."""
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(**COMMON, image_size=TALL, patch_size=PATCH, num_labels=3)
    model = DeiTForImageClassificationWithTeacher(config).eval()
    family = Family(
        "deit",
        model,
        lambda x: model(pixel_values=x).logits,
        images(),
        title="DeiT with teacher (HuggingFace)",
        group="vision",
        prefix=2,
        token_of_cell=patch_tokens(3, 2, 2),
        eager=eager_huggingface(model),
    )
    family.output_attentions = reported(model, lambda: model(family.inputs, output_attentions=True))
    return family


def dinov2_registers() -> Family:
    """The head reads CLS joined with the mean of the patches: which of the two to explain is the user's choice."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    sizes = {key: value for key, value in COMMON.items() if key != "intermediate_size"}
    config = Dinov2WithRegistersConfig(
        **sizes, mlp_ratio=2, image_size=24, patch_size=PATCH, num_register_tokens=3, num_labels=3
    )
    model = Dinov2WithRegistersForImageClassification(config).eval()
    family = Family(
        "dinov2_registers",
        model,
        lambda x: model(pixel_values=x).logits,
        images(),
        title="DINOv2 with registers (HuggingFace)",
        group="vision",
        prefix=1 + 3,
        token_of_cell=patch_tokens(3, 2, 1 + 3),
        eager=eager_huggingface(model),
    )
    family.output_attentions = reported(model, lambda: model(family.inputs, output_attentions=True))
    return family


def _clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {**COMMON, "vocab_size": 70, "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**COMMON, "image_size": 24, "patch_size": PATCH}
    return calmer(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval())


def clip_vision() -> Family:
    model = _clip()

    def features(x: Tensor, **options: Any) -> Any:
        return model.get_image_features(pixel_values=x, interpolate_pos_encoding=True, **options)

    family = Family(
        "clip_vision",
        model,
        lambda x: features(x).pooler_output,
        images(),
        reads=[0, 0],
        title="CLIP, vision tower (HuggingFace)",
        group="vision",
        prefix=1,
        token_of_cell=patch_tokens(3, 2, 1),
        eager=eager_huggingface(model),
    )
    family.output_attentions = reported(model, lambda: features(family.inputs, output_attentions=True))
    return family


def clip_text() -> Family:
    """The first end-of-text token is read, wherever it is."""
    model = _clip()

    def features(ids: Tensor, mask: Tensor, **options: Any) -> Any:
        return model.get_text_features(input_ids=ids, attention_mask=mask, **options)

    return Family(
        "clip_text",
        model,
        lambda ids, mask: features(ids, mask).pooler_output,
        IDS,
        (MASK,),
        reads=[6, 4],
        title="CLIP, text tower (HuggingFace)",
        group="text encoder",
        causal=True,
        eager=eager_huggingface(model),
        output_attentions=reported(model, lambda: features(IDS, MASK, output_attentions=True)),
    )


def siglip_vision() -> Family:
    """A learned query reads the patches: the readout is the model's own pooling."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = calmer(SiglipVisionModel(SiglipVisionConfig(**COMMON, image_size=24, patch_size=PATCH)).eval())
    names = [f"encoder.layers.{i}.self_attn" for i in range(LAYERS)]
    model.head.attention.in_proj_weight.data.mul_(4)

    def oracle(seen):
        layers = [
            softmax_rows(*(split_heads(output_of(seen, f"{n}.{p}"), HEADS) for p in ("q_proj", "k_proj")))
            for n in names
        ]
        with torch.no_grad():
            layers.append(
                model.head.attention(*seen["head.attention"][0], average_attn_weights=False)[1].double().numpy()
            )
        return layers

    return Family(
        "siglip_vision",
        model,
        lambda x: model(pixel_values=x, interpolate_pos_encoding=True).pooler_output,
        images(),
        oracle=oracle,
        hooked=["head.attention", *(f"{n}.{p}" for n in names for p in ("q_proj", "k_proj"))],
        eager=eager_huggingface(model),
        title="SigLIP, vision tower (HuggingFace)",
        group="vision",
        kinds=["self"] * LAYERS + ["pool"],
        token_of_cell=patch_tokens(3, 2, 0),
        scores=attention_pooling,
    )
