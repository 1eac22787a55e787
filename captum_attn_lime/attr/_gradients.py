"""Gradients of what is explained with respect to the outputs of attention calls, for the methods gated by them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from captum_attn_lime._capture import Recorder
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.errors import ReadoutError


def take_gradients(explained: Tensor, recorder: Recorder, maps: Iterable[AttentionMap]) -> None:
    """Give each map the gradient of what is explained with respect to its call's output.

    The gradient of the weights themselves, N x N for every head, is not asked for: it is rebuilt in blocks from that
    of the output. One backward pass serves all layers; it ends at the first.

    Args:
        explained: The sum of what is explained of each example, a number with a graph.
        recorder: The capture, with the outputs of its calls in the graph.
        maps: The maps. One that the graph does not reach stays without: products with it then say so.

    Raises:
        ReadoutError: What is explained carries no gradient, it cannot be taken, or that of an example is zero in all
            layers.
    """
    if not explained.requires_grad:
        raise ReadoutError(
            "the output carries no gradient from the first attention layer on; does the model detach it, or compute "
            "its output in inference_mode? Use a method without gradients (raw, rollout)."
        )
    reached = [(m, *recorder.outputs[m.index]) for m in maps if m.index in recorder.outputs]
    reached = [(m, output, rows) for m, output, rows in reached if output.requires_grad]
    some = torch.zeros(0)
    for (attention, _, rows), gradient in zip(
        reached, _gradients(explained, [output for _, output, _ in reached]), strict=True
    ):
        if gradient is None:
            continue
        if not bool(gradient.isfinite().all()):
            raise ReadoutError(
                f"the gradient of the target with respect to the output of {attention.name!r} has NaN or infinite "
                "values, as where a row of the model's softmax has no key. Use a method without gradients (raw, "
                "rollout)."
            )
        attention.output_gradient = rows(gradient).detach()  # (B, H, Q, d)
        there = attention.output_gradient.flatten(1).any(dim=1)
        some = there if not len(some) else some | there
    if not bool(some.all()):
        example = int((~some).nonzero()[0]) if len(some) else 0
        raise ReadoutError(
            f"the gradient of the target of example {example} is zero in every layer: it does not depend on attention, "
            "or a probability is saturated. Explain logits, or use a method without gradients (raw, rollout)."
        )


def _gradients(explained: Tensor, outputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradient with respect to each output; None where the graph does not reach it."""
    if not outputs:
        return ()
    try:
        return torch.autograd.grad(explained, outputs, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        raise ReadoutError(
            f"the gradient of the target could not be taken, since an operation of the model does not allow it: "
            f"{error} Use a method without gradients (raw, rollout)."
        ) from error
