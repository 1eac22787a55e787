"""HuggingFace text decoders with a classification head, and language models."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.families.base import (
    HEADS,
    IDS,
    LAYERS,
    MASK,
    SIZES,
    Family,
    allowed_keys,
    classifier,
    output_of,
    to_numpy,
)
from tests.reference.attention import softmax_rows, split_heads


def gpt2() -> Family:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=70, n_embd=32, n_layer=LAYERS, n_head=HEADS, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    model = GPT2ForSequenceClassification(config).eval()
    names = [f"transformer.h.{i}.attn.c_attn" for i in range(LAYERS)]

    def oracle(seen):
        allowed = allowed_keys(MASK, 7, causal=True)
        out = []
        for name in names:
            query, key, _ = np.split(output_of(seen, name), 3, axis=-1)
            out.append(softmax_rows(split_heads(query, HEADS), split_heads(key, HEADS), allowed))
        return out

    return Family("gpt2", model, classifier(model), IDS, (MASK,), [6, 4], oracle, names)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions, first half against second half: (x1 cos - x2 sin, x2 cos + x1 sin)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _llama(name: str, ids: Tensor, mask: Tensor, reads: list[int]) -> Family:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0, num_labels=3)
    model = LlamaForSequenceClassification(config).eval()
    names = [f"model.layers.{i}.self_attn" for i in range(LAYERS)]

    def oracle(seen):
        allowed = allowed_keys(mask, 7, causal=True)
        cos, sin = (to_numpy(t) for t in seen["model.rotary_emb"][2])
        out = []
        for n in names:
            query = rotate(split_heads(output_of(seen, f"{n}.q_proj"), HEADS), cos, sin)
            key = rotate(split_heads(output_of(seen, f"{n}.k_proj"), 2), cos, sin)
            out.append(softmax_rows(query, key, allowed))
        return out

    hooked = ["model.rotary_emb", *(f"{n}.{p}" for n in names for p in ("q_proj", "k_proj"))]
    return Family(name, model, classifier(model), ids, (mask,), reads, oracle, hooked)


def llama() -> Family:
    return _llama("llama", IDS, MASK, [6, 4])


def llama_left_padded() -> Family:
    ids = torch.tensor([[2, 17, 33, 8, 51, 64, 3], [0, 0, 2, 40, 9, 27, 3]])
    return _llama("llama_left_padded", ids, (ids != 0).long(), [6, 6])
