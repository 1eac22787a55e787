"""What a row of the table of model families is, and the small helpers that the families share.

A family is a tiny random model with an independent way to its attention weights (the *oracle*): the softmax recomputed
in float64, either from hooked projections, or from the scores that the model's own eager code puts into its softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.attention import softmax_rows, split_heads
from tests.reference.eager import recorded_weights

IDS = torch.tensor([[2, 17, 33, 8, 51, 64, 3], [2, 40, 9, 27, 3, 0, 0]])
MASK = (IDS != 0).long()
SIZES = dict(vocab_size=70, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
LAYERS, HEADS = 3, 4
# Parameters whose growth makes attention far from uniform.
SHARPENED = (
    "query",
    "key",
    "q_proj",
    "k_proj",
    "_b_proj",
    "c_attn",
    "in_proj",
    "qkv",
    "q_lin",
    "k_lin",
    "Wqkv",
    "to_q",
    "to_k",
    "W_q",
    "W_k",
    ".q.weight",
    ".k.weight",
    "embeddings_project",
    "embedding_hidden_mapping_in",
)


@dataclass
class Family:
    """A model, how to run it, what its attention should be, and what is known of it.

    Attributes:
        name: Name of the row, an identifier.
        title: Name for people, as in "BERT (HuggingFace)"; by default the name.
        model: The module, in eval mode.
        forward: Function of ``inputs`` and ``args`` that returns a tensor (B, ...): a Captum ``forward_func``.
        inputs: What Captum attributes to: a tensor or a tuple of tensors, batch of 2 first.
        args: Further arguments of ``forward``. For text models the first is the attention mask (B, N), 1 at tokens.
        oracle: Hooked tensors by module name -> weights (B, H, Q, K) per call, float64; None: the recorded softmax.
        hooked: Modules whose inputs and outputs the oracle needs.
        eager: Context manager function inside which the model runs its own eager attention; None where the model has
            one way only. With ``oracle=None`` the oracle is the softmax that this mode computes, in float64.
        output_attentions: Returns the weights that the library itself reports (in eager mode), one (B, H, Q, K) per
            call in call order, where it can.
        reads: The output token that each example's prediction reads by default; None where it is not one token.
        kinds: Expected kind of each call, in call order; by default all "self".
        causal: Whether each query sees only keys up to itself, per call or for all.
        prefix: Number of tokens before the first that stands for a part of the input (CLS, distillation, registers).
        products: Whether the calls are one stack of square self-attention: rollout is defined and must equal the dense
            product of the oracle's layers.
        token_of_cell: For inputs that are not ids: the expected token of each cell, broadcastable to one example; for
            several inputs one such tensor each, -1 where a cell belongs to no token.
        scores: For models whose prediction reads several tokens, or pools them by attention: the oracle's layers ->
            the expected scores (B, N) by method, "raw" and "rollout". With neither this nor ``reads``, the model is one
            that must ask for ``query=``.
        attentions: Picks the attention weights out of all softmaxes that ``eager`` computes: routers of experts are
            softmaxes too. It is asked where ``oracle`` is None, and of the gradients with respect to these softmaxes;
            those of windows it puts back on the grid. By default all, as they are.
        tells_tokens: Whether the token of each cell is found. Where not, because windows over the input overlap,
            ``token_of_cell`` is passed as ``token_map=``.
        group: Section of the documentation's table: "text encoder", "text decoder", "encoder-decoder", "vision",
            "audio", "torch", "table", "hand-written".
    """

    name: str
    model: nn.Module
    forward: Callable[..., Tensor]
    inputs: Tensor | tuple[Tensor, ...]
    args: tuple[Any, ...] = ()
    reads: list[int] | None = None
    oracle: Callable[[dict[str, Any]], list[np.ndarray]] | None = None
    hooked: list[str] = field(default_factory=list)
    eager: Callable[[], Any] | None = None
    output_attentions: Callable[[], list[Tensor]] | None = None
    title: str = ""
    kinds: list[str] | None = None
    causal: bool | list[bool] = False
    prefix: int = 0
    products: bool = True
    token_of_cell: Tensor | tuple[Tensor, ...] | None = None
    scores: Callable[[list[np.ndarray]], dict[str, np.ndarray]] | None = None
    attentions: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None
    tells_tokens: bool = True
    group: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs as a tuple."""
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    @property
    def mask(self) -> Tensor | None:
        """The attention mask over the input's ids (B, N), 1 at tokens, where the model takes one."""
        ids = self.tensors[0]
        is_text = ids.dim() == 2 and not ids.is_floating_point()
        return self.args[0] if is_text and self.args and self.args[0].shape == ids.shape else None

    def run(self) -> Tensor:
        """Run the model without gradients."""
        with torch.no_grad():
            return self.forward(*self.tensors, *self.args)

    def recompute(self) -> list[np.ndarray]:
        """Return the attention weights recomputed in float64, (B, H, Q, K) per call in call order."""
        if self.oracle is None:
            with nothing() if self.eager is None else self.eager(), recorded_weights() as weights:
                self.run()
            return list(weights) if self.attentions is None else self.attentions(weights)
        seen: dict[str, Any] = {}
        handles = []
        for name in self.hooked:

            def keep(module, args, kwargs, output, name=name):
                seen[name] = (args, kwargs, output)

            handles.append(self.model.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
        self.run()
        for handle in handles:
            handle.remove()
        return self.oracle(seen)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def eager_huggingface(model: nn.Module) -> Callable[[], Any]:
    """Return a context manager function that switches a HuggingFace model to eager attention and back."""

    @contextmanager
    def eager() -> Iterator[None]:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)

    return eager


def reported(model: nn.Module, **named: Tensor) -> Callable[[], list[Tensor]]:
    """Return the function that runs a HuggingFace model on eager attention and returns its output_attentions."""

    def attentions() -> list[Tensor]:
        with torch.no_grad(), eager_huggingface(model)():
            return list(model(**named, output_attentions=True).attentions)

    return attentions


def to_numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def output_of(seen: dict, name: str) -> np.ndarray:
    return to_numpy(seen[name][2])


def allowed_keys(mask: Tensor | None, n: int, causal: bool, batch: int = 2) -> np.ndarray:
    allowed = np.ones((batch, n, n), dtype=bool)
    if mask is not None:
        allowed &= mask.bool().numpy()[:, None, :]
    if causal:
        allowed &= np.tril(np.ones((n, n), dtype=bool))
    return allowed


def classifier(model: nn.Module) -> Callable[..., Tensor]:
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def from_linear_layers(names: list[str], allowed: np.ndarray) -> tuple[Callable[[dict], list[np.ndarray]], list[str]]:
    """The oracle, and what it hooks, of layers whose `query` and `key` are linear layers of their own."""

    def oracle(seen: dict) -> list[np.ndarray]:
        return [
            softmax_rows(*(split_heads(output_of(seen, f"{n}.{p}"), HEADS) for p in ("query", "key")), allowed)
            for n in names
        ]

    return oracle, [f"{n}.{p}" for n in names for p in ("query", "key")]


def sharpen(model: nn.Module, factor: float = 8.0) -> None:
    """Make attention far from uniform, so that a wrong map cannot pass for a right one.

    Weights that begin large grow less: scores that are too large leave float32 few digits.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and any(key in name for key in SHARPENED):
                parameter.mul_(min(factor, 0.4 / float(parameter.std())))


def build(make: Callable[[], Family], dtype: torch.dtype = torch.float32) -> Family:
    """Build a family with weights large enough for attention that is not uniform."""
    torch.manual_seed(3)
    family = make()
    sharpen(family.model)
    family.model.to(dtype)

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    tensors = tuple(cast(x) for x in family.tensors)
    family.inputs = tensors if isinstance(family.inputs, tuple) else tensors[0]
    family.args = tuple(cast(x) for x in family.args)
    return family
