"""What a model's own configuration says about its input: greatest length, padding id, class names."""

from __future__ import annotations

from torch import nn

from captum_attn_lime.adapters._wrappers import inside, text_config


def position_limit(model: nn.Module) -> int | None:
    """Return the greatest number of tokens that the model has positions for, or None if it does not say.

    RoBERTa and its kin count positions from ``padding_idx + 1``, so of 514 positions 512 are of use; the padding index
    of the position embedding tells.
    """
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    offset = 0
    for name, module in model.named_modules():
        is_position = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if is_position and isinstance(module.padding_idx, int):
            offset = max(offset, module.padding_idx + 1)
    return limit - offset


def padding_token(model: nn.Module) -> int | None:
    """Return the configuration's padding id, which models that read the last real token compare with."""
    found = getattr(text_config(model), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else None


def lacks_padding_token(model: nn.Module) -> bool:
    """Return whether the model has a configuration with a place for a padding id, and nothing in it."""
    return getattr(text_config(model), "pad_token_id", 0) is None


def configured_class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names of a HuggingFace classifier, or of the only one in a module; None where there are none."""
    # num_labels tells a classifier from a module that merely keeps an encoder's configuration.
    own = inside(model)
    modules = [own] if hasattr(own, "config") and hasattr(own, "num_labels") else model.modules()
    classifiers = [m for m in modules if hasattr(m, "num_labels") and hasattr(m, "config")]
    if len(classifiers) != 1:
        return None
    labels = getattr(classifiers[0].config, "id2label", None)
    if not isinstance(labels, dict) or len(labels) < 2 or classifiers[0].num_labels != len(labels):
        return None
    return tuple(str(labels[i]) for i in sorted(labels))
