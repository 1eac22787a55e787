"""Gradients of what is explained with respect to the outputs of attention calls, for the methods gated by them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.capture import Recorder
from captum_attn_lime.errors import ReadoutError


def take_gradients(explained: Tensor, recorder: Recorder, maps: Iterable[AttentionMap]) -> None:
    """Give each map the gradient of what is explained with respect to its call's output.

    The gradient of the weights themselves, N x N for every head, is not asked for: it is rebuilt in blocks from that
    of the output. One backward pass serves all layers; it ends at the first.

    Args:
        explained: The sum of what is explained of each example, a number with a graph.
        recorder: The capture, with the outputs of its calls in the graph.
        maps: The maps. One that the graph does not reach stays without.

    Raises:
        ReadoutError: What is explained carries no gradient, or that of an example is zero in all layers.
    """
    if not explained.requires_grad:
        raise ReadoutError(
            "the output carries no gradient from the first attention layer on; does the model detach it, or compute "
            "its output in inference_mode? Use a method without gradients (raw, rollout)."
        )
    reached = [(m, *recorder.outputs[m.index]) for m in maps if m.index in recorder.outputs]
    reached = [(m, output, rows) for m, output, rows in reached if output.requires_grad]
    gradients = torch.autograd.grad(
        explained, [output for _, output, _ in reached], allow_unused=True, materialize_grads=True
    )
    some = torch.zeros(0)
    for (attention, _, rows), gradient in zip(reached, gradients, strict=True):
        attention.output_gradient = rows(gradient).detach()  # (B, H, Q, d)
        there = attention.output_gradient.flatten(1).any(dim=1)
        some = there if not len(some) else some | there
    if not bool(some.all()):
        example = int((~some).nonzero()[0]) if len(some) else 0
        raise ReadoutError(
            f"the gradient of the target of example {example} is zero in every layer: it does not depend on attention, "
            "or a probability is saturated. Explain logits, or use a method without gradients (raw, rollout)."
        )
