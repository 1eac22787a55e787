"""The table of model families: how to build one, run it, and recompute its attention from hooked projections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.attention import softmax_rows, split_heads

IDS = torch.tensor([[2, 17, 33, 8, 51, 64, 3], [2, 40, 9, 27, 3, 0, 0]])
MASK = (IDS != 0).long()
SIZES = dict(vocab_size=70, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
LAYERS, HEADS = 3, 4


@dataclass
class Family:
    name: str
    model: nn.Module
    forward: Callable[..., Tensor]
    inputs: Tensor
    args: tuple
    reads: list[int]  # the output token that each example's prediction reads
    oracle: Callable[[dict], list[np.ndarray]]  # hooked tensors -> weights (B, H, N, N) per layer
    hooked: list[str]  # modules whose inputs and outputs the oracle needs

    def recompute(self) -> list[np.ndarray]:
        """Run the model with hooks and recompute its attention weights in float64."""
        seen: dict[str, object] = {}
        handles = []
        for name in self.hooked:

            def keep(module, args, kwargs, output, name=name):
                seen[name] = (args, kwargs, output)

            handles.append(self.model.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
        with torch.no_grad():
            self.forward(self.inputs, *self.args)
        for handle in handles:
            handle.remove()
        return self.oracle(seen)


def _np(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def _out(seen: dict, name: str) -> np.ndarray:
    return _np(seen[name][2])


def _allowed(mask: Tensor | None, n: int, causal: bool, batch: int = 2) -> np.ndarray:
    allowed = np.ones((batch, n, n), dtype=bool)
    if mask is not None:
        allowed &= mask.bool().numpy()[:, None, :]
    if causal:
        allowed &= np.tril(np.ones((n, n), dtype=bool))
    return allowed


def _classifier(model: nn.Module) -> Callable[..., Tensor]:
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def _from_linear_layers(names: list[str], allowed: np.ndarray) -> tuple[Callable[[dict], list[np.ndarray]], list[str]]:
    """The oracle, and what it hooks, of layers whose `query` and `key` are linear layers of their own."""

    def oracle(seen: dict) -> list[np.ndarray]:
        return [
            softmax_rows(*(split_heads(_out(seen, f"{n}.{p}"), HEADS) for p in ("query", "key")), allowed)
            for n in names
        ]

    return oracle, [f"{n}.{p}" for n in names for p in ("query", "key")]


def bert() -> Family:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).eval()
    names = [f"bert.encoder.layer.{i}.attention.self" for i in range(LAYERS)]

    oracle, hooked = _from_linear_layers(names, _allowed(MASK, 7, causal=False))
    return Family("bert", model, _classifier(model), IDS, (MASK,), [0, 0], oracle, hooked)


def gpt2() -> Family:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=70, n_embd=32, n_layer=LAYERS, n_head=HEADS, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    model = GPT2ForSequenceClassification(config).eval()
    names = [f"transformer.h.{i}.attn.c_attn" for i in range(LAYERS)]

    def oracle(seen):
        allowed = _allowed(MASK, 7, causal=True)
        out = []
        for name in names:
            query, key, _ = np.split(_out(seen, name), 3, axis=-1)
            out.append(softmax_rows(split_heads(query, HEADS), split_heads(key, HEADS), allowed))
        return out

    return Family("gpt2", model, _classifier(model), IDS, (MASK,), [6, 4], oracle, names)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
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
        allowed = _allowed(mask, 7, causal=True)
        cos, sin = (_np(t) for t in seen["model.rotary_emb"][2])
        out = []
        for n in names:
            query = _rotate(split_heads(_out(seen, f"{n}.q_proj"), HEADS), cos, sin)
            key = _rotate(split_heads(_out(seen, f"{n}.k_proj"), 2), cos, sin)
            out.append(softmax_rows(query, key, allowed))
        return out

    hooked = ["model.rotary_emb", *(f"{n}.{p}" for n in names for p in ("q_proj", "k_proj"))]
    return Family(name, model, _classifier(model), ids, (mask,), reads, oracle, hooked)


def llama() -> Family:
    return _llama("llama", IDS, MASK, [6, 4])


def llama_left_padded() -> Family:
    ids = torch.tensor([[2, 17, 33, 8, 51, 64, 3], [0, 0, 2, 40, 9, 27, 3]])
    return _llama("llama_left_padded", ids, (ids != 0).long(), [6, 6])


def vit() -> Family:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=24, patch_size=8, num_labels=3)).eval()
    names = [f"vit.layers.{i}.attention" for i in range(LAYERS)]

    def oracle(seen):
        return [
            softmax_rows(*(split_heads(_out(seen, f"{n}.{p}"), HEADS) for p in ("q_proj", "k_proj"))) for n in names
        ]

    hooked = [f"{n}.{p}" for n in names for p in ("q_proj", "k_proj")]
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    return Family("vit", model, lambda x: model(pixel_values=x).logits, images, (), [0, 0], oracle, hooked)


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over ids, reading the first token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, HEADS, 48, batch_first=True)
        self.embed = nn.Embedding(70, 32)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        padding = None if mask is None else mask == 0
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=padding)[:, 0])


def torch_encoder() -> Family:
    model = EncoderClassifier().eval()
    names = [f"encoder.layers.{i}.self_attn" for i in range(LAYERS)]

    def oracle(seen):
        out = []
        for name in names:
            x, attention = _np(seen[name][0][0]), model.get_submodule(name)
            weight, bias = _np(attention.in_proj_weight), _np(attention.in_proj_bias)
            query, key = (x @ weight[a : a + 32].T + bias[a : a + 32] for a in (0, 32))
            allowed = _allowed(MASK, 7, causal=False)
            out.append(softmax_rows(split_heads(query, HEADS), split_heads(key, HEADS), allowed))
        return out

    return Family("torch_encoder", model, model, IDS, (MASK,), [0, 0], oracle, names)


class HandWritten(nn.Module):
    """softmax(QKᵀ/√d)V written out, in a residual block, reading the first token."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            batch, n, _ = x.shape
            query, key, value = (
                f(x).view(batch, n, HEADS, 8).transpose(1, 2) for f in (self.query, self.key, self.value)
            )
            scores = query @ key.transpose(-2, -1) / 8**0.5
            if mask is not None:
                scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
            return self.out((torch.softmax(scores, dim=-1) @ value).transpose(1, 2).reshape(batch, n, 32))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(70, 32)
        self.layers = nn.ModuleList(HandWritten.Attention() for _ in range(LAYERS))
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, mask)
        return self.head(x[:, 0])


def hand_written() -> Family:
    model = HandWritten().eval()
    names = [f"layers.{i}" for i in range(LAYERS)]

    oracle, hooked = _from_linear_layers(names, _allowed(MASK, 7, causal=False))
    return Family("hand_written", model, model, IDS, (MASK,), [0, 0], oracle, hooked)


HUGGINGFACE = [bert, gpt2, llama, llama_left_padded, vit]
FAMILIES = [*HUGGINGFACE, torch_encoder, hand_written]


def build(make: Callable[[], Family], dtype: torch.dtype = torch.float32) -> Family:
    """Build a family with weights large enough for attention that is not uniform."""
    torch.manual_seed(3)
    family = make()
    with torch.no_grad():
        for name, parameter in family.model.named_parameters():
            if parameter.dim() >= 2 and any(key in name for key in ("query", "key", "q_proj", "k_proj", "c_attn")):
                parameter.mul_(8.0)
    family.model.to(dtype)
    if family.inputs.is_floating_point():
        family.inputs = family.inputs.to(dtype)
    return family
