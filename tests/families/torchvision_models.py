"""Vision models of torchvision."""

from __future__ import annotations

from tests.families.base import HEADS, LAYERS, Family
from tests.families.torch_modules import calmer, recomputed
from tests.families.vision import PATCH, images, patch_tokens


def torchvision_vit() -> Family:
    """Its images must be square."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=24, patch_size=PATCH, num_layers=LAYERS, num_heads=HEADS, hidden_dim=32, mlp_dim=48, num_classes=3
    )
    for parameter in model.heads.parameters():  # they begin at zero, and nothing would be read
        parameter.data.normal_(std=0.2)
    names = [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(LAYERS)]
    return Family(
        "torchvision_vit",
        calmer(model.eval()),
        model,
        images(24, 24),
        (),
        [0, 0],
        recomputed(model, names),
        names,
        title="ViT (torchvision)",
        group="vision",
        prefix=1,
        token_of_cell=patch_tokens(3, 3, 1),
    )
