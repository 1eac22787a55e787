"""What a model's configuration says about its input: maximum length, padding id, class names."""

from __future__ import annotations

from torch import nn

from captum_attn_lime.adapters._wrappers import innermost, text_config


def position_limit(model: nn.Module) -> int | None:
    """Return the greatest number of tokens that the model has positions for, or None if unknown.

    RoBERTa and its relatives count positions from ``padding_idx + 1``, so 512 of 514 positions are usable.
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
    """Return the configuration's padding id, by which some models find the last real token."""
    found = getattr(text_config(model), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else None


def lacks_padding_token(model: nn.Module) -> bool:
    """Return whether the model's configuration has a padding id that is None."""
    return getattr(text_config(model), "pad_token_id", 0) is None


def configured_class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names of a HuggingFace classifier, or of the only one in a module; None if there are none."""
    # num_labels distinguishes a classifier from a module that only keeps an encoder's configuration.
    inner = innermost(model)
    modules = [inner] if hasattr(inner, "config") and hasattr(inner, "num_labels") else model.modules()
    classifiers = [m for m in modules if hasattr(m, "num_labels") and hasattr(m, "config")]
    if len(classifiers) != 1:
        return None
    labels = getattr(classifiers[0].config, "id2label", None)
    if not isinstance(labels, dict) or len(labels) < 2 or classifiers[0].num_labels != len(labels):
        return None
    return tuple(str(labels[i]) for i in sorted(labels))
