"""Gradients of the explained number with respect to the outputs of attention calls, for gradient-gated methods."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from captum_attn_lime._capture import Recorder
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.errors import ReadoutError


def attach_gradients(explained: Tensor, recorder: Recorder, maps: Iterable[AttentionMap]) -> None:
    """Set the ``output_gradient`` of each map: of the explained number with respect to its call's output.

    The gradient of the weights, N x N for every head, is not computed; products compute it in blocks from that of the
    output. One backward pass covers all layers and ends at the first.

    Args:
        explained: The sum of the explained number over the examples, a scalar with a graph.
        recorder: The capture, with the outputs of its calls in the graph.
        maps: The maps. Maps outside the graph get no gradient, and gated products with them raise.

    Raises:
        ReadoutError: The explained number has no gradient, or it cannot be computed, or that of an example is zero in
            all layers.
    """
    if not explained.requires_grad:
        raise ReadoutError(
            "the output has no gradient with respect to the first attention layer; does the model detach it, or run in "
            "inference_mode? Use a method without gradients (raw, rollout)."
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
                "values, as happens if a row of the model's softmax has no key. Use a method without gradients (raw, "
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
    """Return the gradient with respect to each output; None if the output is outside the graph."""
    if not outputs:
        return ()
    try:
        return torch.autograd.grad(explained, outputs, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        raise ReadoutError(
            f"the gradient of the target could not be computed, since an operation of the model does not support it: "
            f"{error} Use a method without gradients (raw, rollout)."
        ) from error
