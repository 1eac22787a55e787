"""The benchmark model, and the baseline without this package: stored weights and dense products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LAYERS, HEADS, WIDTH, VOCABULARY = 6, 12, 384, 30_000


def bert(tokens: int, *, attention: str = "sdpa", device: str = "cpu", sharpness: float = 1.0) -> Any:
    """Return a random BERT classifier of MiniLM's size; nothing in the cost depends on its weights.

    Args:
        tokens: Longest input.
        attention: HuggingFace's name of the way in which attention is computed.
        device: Where it lies.
        sharpness: Factor of the query weights: at 1, random weights give nearly uniform attention.
    """
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=max(512, tokens),
        attn_implementation=attention,
    )
    model = BertForSequenceClassification(config).eval().requires_grad_(False)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.weight.mul_(sharpness)
    return model.to(device)


def text(tokens: int, *, device: str = "cpu", batch: int = 1) -> Tensor:
    """Return random token ids, (batch, tokens)."""
    torch.manual_seed(1)
    return torch.randint(5, VOCABULARY, (batch, tokens)).to(device)


def warmed(function: Callable[[Tensor], Any], ids: Tensor, *, to: int) -> Callable[[], Any]:
    """Return the function on the ids, after one run on their beginning.

    What is found out about a model on its first call holds for every length of input.
    """
    function(ids[:, :to])
    return lambda: function(ids)


def logits_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the model as a function from ids to logits."""

    def forward(ids: Tensor) -> Tensor:
        return model(input_ids=ids).logits

    return forward


def plain(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the model's forward pass without gradients."""

    def forward(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    return forward


def dense_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Return the first token's row of rollout, (N,), by dense matrix products in float32 or wider."""
    kind = torch.promote_types(attentions[0].dtype, torch.float32)
    eye = torch.eye(attentions[0].shape[-1], dtype=kind, device=attentions[0].device)
    product = eye
    for weights in attentions:
        product = (0.5 * weights[0].to(kind).mean(0) + 0.5 * eye) @ product
    return product[0]


def eager_rollout(model: Any) -> Callable[[Tensor], Tensor]:
    """Return rollout by ``output_attentions=True`` and dense products; the model computes attention eagerly."""

    def rollout(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return dense_rollout(model(input_ids=ids, output_attentions=True).attentions)

    return rollout


def gradient(model: Any, target: int = 1) -> Callable[[Tensor], Tensor]:
    """Return the gradient of one logit with respect to the input embeddings: one forward and one backward pass."""

    def run(ids: Tensor) -> Tensor:
        embeddings = model.get_input_embeddings()(ids).requires_grad_()
        logit = model(inputs_embeds=embeddings).logits[0, target]
        return torch.autograd.grad(logit, embeddings)[0]

    return run


def eager_relevance(model: Any, target: int = 1) -> Callable[[Tensor], Tensor]:
    """Return relevance, (N,), by autograd through the stored probabilities, and dense products."""

    def run(ids: Tensor) -> Tensor:
        embeddings = model.get_input_embeddings()(ids).requires_grad_()
        output = model(inputs_embeds=embeddings, output_attentions=True)
        gradients = torch.autograd.grad(output.logits[0, target], output.attentions)
        product = torch.eye(ids.shape[1], device=ids.device)
        with torch.no_grad():
            for weights, slope in zip(output.attentions, gradients, strict=True):
                product = product + (weights * slope)[0].clamp(min=0).mean(0) @ product
        return product[0]

    return run
