"""What is built on torch.nn's own attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.families.base import HEADS, IDS, LAYERS, MASK, Family, allowed_keys, to_numpy
from tests.families.readouts import first_row_alone, weighted
from tests.reference.attention import softmax_rows, split_heads

WIDTH = 32
Oracle = Callable[[dict[str, Any]], list[np.ndarray]]


def calmer(model: nn.Module, by: float = 0.2) -> nn.Module:
    """Return the model with smaller projections of queries and keys: its own begin large, and `build` enlarges them."""
    for name, parameter in model.named_parameters():
        if name.endswith(("in_proj_weight", "q_proj.weight", "k_proj.weight")):
            parameter.data.mul_(by)
    return model


def recomputed(
    model: nn.Module, names: list[str], allowed: list[np.ndarray | None] | np.ndarray | None = None
) -> Oracle:
    """The oracle of `nn.MultiheadAttention` modules: their packed projections of what they were given."""

    def oracle(seen: dict[str, Any]) -> list[np.ndarray]:
        out = []
        for i, name in enumerate(names):
            attention = model.get_submodule(name)
            weight, bias = to_numpy(attention.in_proj_weight), to_numpy(attention.in_proj_bias)
            parts = []
            for given, start in zip(seen[name][0][:2], (0, WIDTH), strict=True):
                x = to_numpy(given) if attention.batch_first else to_numpy(given).swapaxes(0, 1)
                parts.append(split_heads(x @ weight[start : start + WIDTH].T + bias[start : start + WIDTH], HEADS))
            out.append(softmax_rows(*parts, allowed[i] if isinstance(allowed, list) else allowed))
        return out

    return oracle


def told(model: nn.Module, names: list[str]) -> Oracle:
    """The oracle that asks the modules themselves, without a capture, for the weights of each head."""

    def oracle(seen: dict[str, Any]) -> list[np.ndarray]:
        out = []
        for name in names:
            args, kwargs, _ = seen[name]
            asked = {**kwargs, "need_weights": True, "average_attn_weights": False}
            with torch.no_grad():
                out.append(to_numpy(model.get_submodule(name)(*args, **asked)[1]))
        return out

    return oracle


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over ids, reading the first token."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True, **options)
        self.embed = nn.Embedding(70, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        padding = None if mask is None else mask == 0
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=padding)[:, 0])


def torch_encoder() -> Family:
    model = EncoderClassifier().eval()
    names = [f"encoder.layers.{i}.self_attn" for i in range(LAYERS)]
    oracle = recomputed(model, names, allowed_keys(MASK, 7, causal=False))
    return Family(
        "torch_encoder", model, model, IDS, (MASK,), [0, 0], oracle, names, title="nn.TransformerEncoder",
        group="torch",
    )  # fmt: skip


class BiasedEncoder(EncoderClassifier):
    """Norms before the layers, and a number added to each score that falls with the distance of the tokens."""

    def __init__(self) -> None:
        # Torch's fast path, taken for relu and gelu without gradients, reads float masks as if they were boolean.
        super().__init__(norm_first=True, activation=nn.functional.silu)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        place = torch.arange(ids.shape[1], dtype=x.dtype)
        bias = -0.7 * (place[:, None] - place).abs()
        padding = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask == 0, float("-inf"))
        return self.head(self.encoder(x, mask=bias, src_key_padding_mask=padding)[:, 0])


def torch_encoder_norm_first() -> Family:
    model = BiasedEncoder().eval()
    names = [f"encoder.layers.{i}.self_attn" for i in range(LAYERS)]
    title = "nn.TransformerEncoder, norm first, float mask"
    return Family(
        "torch_encoder_norm_first", model, model, IDS, (MASK,), [0, 0], told(model, names), names, title=title,
        group="torch",
    )  # fmt: skip


def sequences() -> tuple[Tensor, Tensor]:
    """Return a source of 5 and a target of 4 vectors."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 5, WIDTH, generator=generator), torch.randn(2, 4, WIDTH, generator=generator)


def later_hidden(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu(1)


class EncoderDecoder(nn.Module):
    """nn.Transformer that reads the decoder's last token."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(WIDTH, HEADS, 2, 2, 48, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        hidden = later_hidden(target.shape[1])
        return self.head(self.body(source, target, tgt_mask=hidden, tgt_is_causal=True)[:, -1])


def torch_transformer() -> Family:
    model = calmer(EncoderDecoder().eval())
    encoder = [f"body.encoder.layers.{i}.self_attn" for i in range(2)]
    decoder = [f"body.decoder.layers.{i}.{which}" for i in range(2) for which in ("self_attn", "multihead_attn")]
    causal = allowed_keys(None, 4, causal=True)
    oracle = recomputed(model, encoder + decoder, [None, None, causal, None, causal, None])
    return Family(
        "torch_transformer",
        model,
        model,
        sequences(),
        oracle=oracle,
        hooked=encoder + decoder,
        title="nn.Transformer",
        group="torch",
        kinds=["self", "self", "self", "cross", "self", "cross"],
        causal=[False, False, True, False, True, False],
        products=False,
    )


def last_token_of_the_decoder(layers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of the target's last token within the decoder's own stack."""
    last = np.zeros((2, 4))
    last[:, -1] = 1
    return weighted(last, layers[::2])


class Decoder(nn.Module):
    """nn.TransformerDecoder, sequence first, that reads the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 48), 2)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, memory: Tensor, target: Tensor) -> Tensor:
        hidden = later_hidden(target.shape[1])
        return self.head(self.body(target.transpose(0, 1), memory.transpose(0, 1), tgt_mask=hidden)[-1])


def torch_decoder() -> Family:
    model = calmer(Decoder().eval())
    names = [f"body.layers.{i}.{which}" for i in range(2) for which in ("self_attn", "multihead_attn")]
    causal = allowed_keys(None, 4, causal=True)
    return Family(
        "torch_decoder",
        model,
        model,
        sequences(),
        oracle=recomputed(model, names, [causal, None, causal, None]),
        hooked=names,
        title="nn.TransformerDecoder",
        group="torch",
        kinds=["self", "cross"] * 2,
        causal=[True, False] * 2,
        token_of_cell=(torch.tensor([[-1]]), torch.arange(4)[:, None]),
        scores=last_token_of_the_decoder,
    )


class Plain(nn.Module):
    """Two nn.MultiheadAttention over ids in residual blocks, reading the first token."""

    def __init__(self, *, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.embed = nn.Embedding(70, WIDTH)
        self.layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, **options) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        batch_first = self.layers[0].batch_first
        x = x if batch_first else x.transpose(0, 1)
        for layer in self.layers:
            x = x + layer(x, x, x, key_padding_mask=mask == 0, need_weights=self.need_weights)[0]
        return self.head(x[:, 0] if batch_first else x[0])


def _plain(name: str, what: str, *, products: bool = True, **options: Any) -> Family:
    model, names = calmer(Plain(**options).eval()), ["layers.0", "layers.1"]
    title = f"nn.MultiheadAttention, {what}"
    return Family(
        name, model, model, IDS, (MASK,), [0, 0], told(model, names), names, title=title,
        group="torch", products=products, token_of_cell=torch.arange(7),
    )  # fmt: skip


def mha_batch_first() -> Family:
    return _plain("mha_batch_first", "batch first", batch_first=True)


def mha_sequence_first() -> Family:
    return _plain("mha_sequence_first", "sequence first")


def mha_need_weights() -> Family:
    return _plain("mha_need_weights", "need_weights=True", batch_first=True, need_weights=True)


def mha_bias_kv() -> Family:
    """One learned key more than there are tokens: not square."""
    return _plain("mha_bias_kv", "add_bias_kv", batch_first=True, add_bias_kv=True, products=False)


def mha_zero_attn() -> Family:
    """One key of zeros more than there are tokens: not square."""
    return _plain("mha_zero_attn", "add_zero_attn", batch_first=True, add_zero_attn=True, products=False)


class CrossLayer(nn.Module):
    """nn.MultiheadAttention whose keys and values have widths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=24, vdim=20)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.head(self.attention(queries, keys, values, need_weights=False)[0][:, 0])


def mha_cross() -> Family:
    generator = torch.Generator().manual_seed(2)
    inputs = tuple(torch.randn(2, *shape, generator=generator) for shape in ((4, WIDTH), (5, 24), (5, 20)))
    model = CrossLayer().eval()
    return Family(
        "mha_cross",
        model,
        model,
        inputs,
        oracle=told(model, ["attention"]),
        hooked=["attention"],
        title="nn.MultiheadAttention, kdim and vdim",
        group="torch",
        kinds=["cross"],
        products=False,
        # A key token is made of what is handed over: the values.
        token_of_cell=(torch.tensor([[-1]]), torch.tensor([[-1]]), torch.arange(5)[:, None]),
        scores=first_row_alone,
    )
