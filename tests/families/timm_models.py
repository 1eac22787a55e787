"""Vision models of timm; the oracle is the softmax of their own unfused attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tests.families.base import HEADS, LAYERS, Family
from tests.families.readouts import Scores, attention_pooling, mean_of
from tests.families.vision import PATCH, TALL, images, patch_tokens

COMMON: dict[str, Any] = dict(
    img_size=TALL, patch_size=PATCH, embed_dim=32, depth=LAYERS, num_heads=HEADS, mlp_ratio=1.5, num_classes=3
)


def unfused(model: nn.Module) -> Callable[[], Any]:
    """Return a context manager function that switches timm's modules to unfused attention and back."""

    @contextmanager
    def eager() -> Iterator[None]:
        before = [(m, m.fused_attn) for m in model.modules() if hasattr(m, "fused_attn")]
        try:
            for module, _ in before:
                module.fused_attn = False
            yield
        finally:
            for module, was in before:
                module.fused_attn = was

    return eager


def _family(
    name: str,
    title: str,
    model: nn.Module,
    *,
    prefix: int,
    reads: list[int] | None = None,
    scores: Scores | None = None,
    kinds: list[str] | None = None,
) -> Family:
    model = model.eval()
    return Family(
        name,
        model,
        model,
        images(),
        reads=reads,
        eager=unfused(model),
        title=f"{title} (timm)",
        group="vision",
        prefix=prefix,
        kinds=kinds,
        token_of_cell=patch_tokens(3, 2, prefix),
        scores=scores,
    )


def timm_vit() -> Family:
    from timm.models.vision_transformer import VisionTransformer

    return _family("timm_vit", "ViT", VisionTransformer(**COMMON), prefix=1, reads=[0, 0])


def timm_vit_registers() -> Family:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**COMMON, reg_tokens=4, no_embed_class=True)
    return _family("timm_vit_registers", "ViT with 4 registers", model, prefix=1 + 4, reads=[0, 0])


def timm_deit_distilled() -> Family:
    """Two heads on two tokens, averaged: which of them to explain is the user's choice."""
    from timm.models.deit import VisionTransformerDistilled

    return _family("timm_deit_distilled", "DeiT distilled", VisionTransformerDistilled(**COMMON), prefix=2)


def timm_eva() -> Family:
    from timm.models.eva import Eva

    # The axes of the rotary positions need head sizes that four divides.
    options = {**COMMON, "qkv_fused": False, "use_rot_pos_emb": True, "swiglu_mlp": True, "head_init_scale": 1.0}
    return _family("timm_eva", "EVA with rotary positions", Eva(**options), prefix=1, scores=mean_of(1))


def timm_beit() -> Family:
    from timm.models.beit import Beit

    options = {**COMMON, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "head_init_scale": 1.0}
    model = Beit(**options)
    for block in model.blocks:  # the bias tables begin at zero, where they could not be missed
        nn.init.normal_(block.attn.relative_position_bias_table)
    return _family("timm_beit", "BEiT with relative positions", model, prefix=1, scores=mean_of(1))


def timm_siglip() -> Family:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**COMMON, class_token=False, global_pool="map")
    for projection in (model.attn_pool.q, model.attn_pool.kv):  # they begin so small that all tokens count the same
        nn.init.normal_(projection.weight, std=0.5)
    kinds = ["self"] * LAYERS + ["pool"]
    return _family("timm_siglip", "SigLIP ViT", model, prefix=0, kinds=kinds, scores=attention_pooling)
