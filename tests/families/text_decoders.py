"""HuggingFace text decoders with a classification head, hybrids of attention and recurrence among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    output_of,
    reported,
    to_numpy,
)
from tests.reference.attention import fuse, softmax_rows, split_heads

COMMON: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "num_labels": 3}
LATENT: dict[str, Any] = {
    **COMMON, "num_key_value_heads": HEADS, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1, "initializer_range": 0.1,
}  # fmt: skip
LEFT_PADDED = torch.tensor([[2, 17, 33, 8, 51, 64, 3], [0, 0, 2, 40, 9, 27, 3]])
END = 3
PACKED = torch.tensor([[2, 17, END, 2, 8, 51, END], [2, 40, 9, 27, END, 2, 64]])


def _family(name: str, title: str, model: nn.Module, ids: Tensor = IDS, **options: Any) -> Family:
    """A classifier that reads each row's last real token."""
    model, mask = model.eval(), (ids != 0).long()
    by_default = {
        "reads": [int(row.nonzero().max()) for row in mask],
        "eager": eager_huggingface(model) if model.config._attn_implementation != "eager" else None,
        "output_attentions": reported(model, input_ids=ids, attention_mask=mask),
    }
    return Family(
        name, model, classifier(model), ids, (mask,), title=title, causal=True, group="text decoder",
        **(by_default | options),
    )  # fmt: skip


def gpt2() -> Family:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=70, n_embd=32, n_layer=LAYERS, n_head=HEADS, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    names = [f"transformer.h.{i}.attn.c_attn" for i in range(LAYERS)]

    def oracle(seen):
        allowed = allowed_keys(MASK, 7, causal=True)
        out = []
        for name in names:
            query, key, _ = np.split(output_of(seen, name), 3, axis=-1)
            out.append(softmax_rows(split_heads(query, HEADS), split_heads(key, HEADS), allowed))
        return out

    return _family("gpt2", "GPT-2", GPT2ForSequenceClassification(config), oracle=oracle, hooked=names)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions, first half against second half: (x1 cos - x2 sin, x2 cos + x1 sin)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _llama(name: str, title: str, ids: Tensor, allowed: np.ndarray, **settings: Any) -> Family:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    names = [f"model.layers.{i}.self_attn" for i in range(LAYERS)]

    def oracle(seen):
        cos, sin = (to_numpy(t) for t in seen["model.rotary_emb"][2])
        out = []
        for n in names:
            query = rotate(split_heads(output_of(seen, f"{n}.q_proj"), HEADS), cos, sin)
            key = rotate(split_heads(output_of(seen, f"{n}.k_proj"), 2), cos, sin)
            out.append(softmax_rows(query, key, allowed))
        return out

    hooked = ["model.rotary_emb", *(f"{n}.{p}" for n in names for p in ("q_proj", "k_proj"))]
    model = LlamaForSequenceClassification(LlamaConfig(**COMMON, **settings))
    return _family(name, title, model, ids, oracle=oracle, hooked=hooked)


def llama() -> Family:
    return _llama("llama", "Llama, grouped queries", IDS, allowed_keys(MASK, 7, causal=True))


def llama_left_padded() -> Family:
    allowed = allowed_keys((LEFT_PADDED != 0).long(), 7, causal=True)
    return _llama("llama_left_padded", "Llama, left padding", LEFT_PADDED, allowed)


def llama_packed() -> Family:
    """Two texts in one row, told apart by their positions: each sees itself only."""
    text = torch.cumsum((PACKED == END).roll(1, dims=1).long(), dim=1)
    text = text - text[:, :1]  # the end of the row rolled to its beginning
    same = (text[:, :, None] == text[:, None, :]).numpy()
    allowed = same & allowed_keys(None, 7, causal=True)
    family = _llama("llama_packed", "Llama, two texts packed in a row", PACKED, allowed, use_cache=False)
    model = family.model

    def positions(ids: Tensor) -> Tensor:
        begins = (ids == 2).long() * torch.arange(ids.shape[1])
        return torch.arange(ids.shape[1]) - begins.cummax(dim=1).values

    family.args = ()
    family.forward = lambda ids: model(input_ids=ids, position_ids=positions(ids)).logits
    family.output_attentions = reported(model, input_ids=PACKED, position_ids=positions(PACKED))
    return family


def qwen3() -> Family:
    """Queries and keys are normalised."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    return _family("qwen3", "Qwen3", Qwen3ForSequenceClassification(Qwen3Config(**COMMON, head_dim=8)))


def mistral() -> Family:
    """A window of three tokens slides over the text."""
    from transformers import MistralConfig, MistralForSequenceClassification

    model = MistralForSequenceClassification(MistralConfig(**COMMON, sliding_window=3))
    return _family("mistral", "Mistral, sliding window", model)


def gemma2() -> Family:
    """Scores are capped, which only the eager code can; every second layer has a window."""
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    config = Gemma2Config(**COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=3, attn_logit_softcapping=2.0)
    return _family("gemma2", "Gemma 2, capped scores", Gemma2ForSequenceClassification(config))


def gemma3() -> Family:
    from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=3, layer_types=layers)
    return _family("gemma3", "Gemma 3, sliding and full layers", Gemma3TextForSequenceClassification(config))


def gpt_oss() -> Family:
    """Each head has a sink: a key without a value, which takes a part of every row."""
    from transformers import GptOssConfig, GptOssForSequenceClassification

    sizes = COMMON | {"hidden_size": 64, "intermediate_size": 64}
    config = GptOssConfig(**sizes, head_dim=16, sliding_window=3, num_local_experts=4, num_experts_per_tok=2)
    model = GptOssForSequenceClassification(config)
    model.set_experts_implementation("eager")
    for layer in model.model.layers:
        nn.init.normal_(layer.self_attn.sinks)

    def scores(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
        """What goes to a sink comes from no token: rows keep their sums, below one."""
        read = np.eye(7)[[6, 4]]
        passed = read
        for weights in reversed(layers):
            passed = 0.5 * np.einsum("bq,bqk->bk", passed, fuse(weights, "mean")) + 0.5 * passed
        return {"raw": np.einsum("bq,bqk->bk", read, fuse(layers[-1], "mean")), "rollout": passed}

    def without_sinks(softmaxes: list[np.ndarray]) -> list[np.ndarray]:
        return [weights[..., :-1] for weights in softmaxes]

    return _family("gpt_oss", "gpt-oss, attention sinks", model, attentions=without_sinks, scores=scores)


def mixtral() -> Family:
    """Its routers are softmaxes too, and no attention."""
    from transformers import MixtralConfig, MixtralForSequenceClassification

    model = MixtralForSequenceClassification(MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2))
    model.set_experts_implementation("eager")
    return _family("mixtral", "Mixtral, experts", model)


def deepseek_v2() -> Family:
    """Keys and values are projected down and up again: a latent is what a cache would hold."""
    from transformers import DeepseekV2Config, DeepseekV2ForSequenceClassification

    model = DeepseekV2ForSequenceClassification(DeepseekV2Config(**LATENT, q_lora_rank=None))
    model.set_experts_implementation("eager")
    return _family("deepseek_v2", "DeepSeek-V2, latent keys", model)


def deepseek_v3() -> Family:
    """Queries are projected down and up again too, each by its own way."""
    from transformers import DeepseekV3Config, DeepseekV3ForSequenceClassification

    model = DeepseekV3ForSequenceClassification(DeepseekV3Config(**LATENT, q_lora_rank=12))
    model.set_experts_implementation("eager")
    return _family("deepseek_v3", "DeepSeek-V3, latent queries and keys", model)


def _hybrid(name: str, title: str, model: nn.Module) -> Family:
    """Between its attention layers recurrences mix the tokens: rollout is not defined, raw attention is."""

    def scores(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"raw": fuse(layers[-1], "mean")[np.arange(2), [6, 4]]}

    return _family(name, title, model, products=False, scores=scores)


def jamba() -> Family:
    from transformers import JambaConfig, JambaForSequenceClassification

    sizes = COMMON | {"num_hidden_layers": 4}
    config = JambaConfig(
        **sizes, attn_layer_period=2, attn_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=4,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = JambaForSequenceClassification(config)
    model.set_experts_implementation("eager")
    return _hybrid("jamba", "Jamba: Mamba and attention", model)


def qwen3_next() -> Family:
    from transformers import Qwen3NextConfig, Qwen3NextForSequenceClassification

    sizes = COMMON | {"num_hidden_layers": 4}
    config = Qwen3NextConfig(
        **sizes, head_dim=8, layer_types=["linear_attention", "full_attention"] * 2, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, num_experts=0, mlp_only_layers=[],
    )  # fmt: skip
    return _hybrid("qwen3_next", "Qwen3-Next: linear and full attention", Qwen3NextForSequenceClassification(config))


TEXT_DECODERS = [gpt2, llama, llama_left_padded, llama_packed, qwen3, mistral, gemma2, gemma3, gpt_oss, mixtral]
TEXT_DECODERS += [deepseek_v2, deepseek_v3, jamba, qwen3_next]
