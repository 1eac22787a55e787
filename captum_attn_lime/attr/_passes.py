"""`ForwardPass`: one captured run of a model, with the readout and gradients that a method needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._capture import Keep, Recorder, record
from captum_attn_lime._capture.recorder import KEEP_SCORES
from captum_attn_lime._capture.session import check_complete
from captum_attn_lime._util.captum import Target, run_forward, select_target
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._gradients import attach_gradients
from captum_attn_lime.attr._inputs import Kind, copied
from captum_attn_lime.attr._readout import Readout, ShortCut, read
from captum_attn_lime.errors import AttentionKindError, ReadoutError, TargetError
from captum_attn_lime.methods import require_tokens


@dataclass(frozen=True)
class Request:
    """What a forward pass must compute.

    Attributes:
        target: The target, in one of Captum's forms.
        readout: Whether to determine the tokens that the prediction reads. If the output has one row per token
            (B, N, ...), the target's first index is the row.
        gradient: Whether to compute the maps' values, and the gradient of the target with respect to their outputs.
        keep: What to store of each call.
    """

    target: Target = None
    readout: bool = True
    gradient: bool = False
    keep: Keep = KEEP_SCORES


@dataclass(frozen=True)
class ForwardPass:
    """One captured forward pass.

    Attributes:
        inputs: The input tensors.
        forward_args: The further arguments.
        output: The model's output, (B, ...), without a graph.
        recorder: The recorder of the capture.
        calls: All attention calls, in order.
        maps: The main stack: the model's self-attention calls, or all calls if it has none.
        found: The tokens that the prediction reads; None if not requested.
        kind: The kind of the input, apart from its values and length; None if it cannot be compared.
        beginning: A part of a long input, with its further arguments.
    """

    inputs: tuple[Tensor, ...]
    forward_args: tuple[Any, ...]
    output: Tensor
    recorder: Recorder
    calls: list[AttentionMap]
    maps: list[AttentionMap]
    found: Readout | None = None
    kind: Kind | None = None
    beginning: tuple[tuple[Tensor, ...], tuple[Any, ...]] | None = None

    @property
    def readout(self) -> Tensor | None:
        """Weight of each output token of the last map of the stack, (B, Q); rows sum to 1."""
        return None if self.found is None else self.found.weights

    @property
    def top(self) -> AttentionMap | None:
        """A last layer that was computed only for the token that is read: one query over the stack's tokens.

        The readout then describes its residual connection.
        """
        return None if self.found is None else self.found.top

    @property
    def last(self) -> AttentionMap:
        """The last layer: `top`, or the last of the stack."""
        return self.maps[-1] if self.top is None else self.top

    @property
    def operations(self) -> tuple[Callable[..., Any], ...]:
        """The operations that the model ran; facts hold only for passes with the same operations."""
        return tuple(self.recorder.trace.way)

    @property
    def ends(self) -> tuple[int, int]:
        """The indices of the first and the last call of the main stack among all calls."""
        return _ends(self.calls)

    def first(self, examples: int) -> ForwardPass:
        """Return the pass of the first examples of the batch."""
        calls = [m.first(examples) if m.shape[0] == len(self.output) else m for m in self.calls]
        found = None if self.found is None else self.found.first(examples)
        return replace(self, output=self.output[:examples], calls=calls, maps=main_stack(calls), found=found)


def run_captured(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    forward_args: tuple[Any, ...],
    request: Request,
    ends: tuple[int, int] | None = None,
    short_cut: ShortCut | None = None,
) -> ForwardPass:
    """Run a model once under capture.

    Args:
        forward_func: The model.
        inputs: Its input tensors.
        forward_args: Its further arguments.
        request: What to compute.
        ends: The first and the last call of the stack, which a readout and gradients need in advance; they are not
            computed if the calls turn out to be different.
        short_cut: Where the graph begins after the last call.

    Raises:
        NoAttentionError: No attention was captured.
        AttentionKindError: The attention is not over the tokens of each example.
        ReadoutError: A requested readout or gradient cannot be determined.
    """
    leaf_at = None if ends is None or not request.readout else ends[1]
    graph_at = None if ends is None or not request.gradient else ends[0]
    keep = request.keep if graph_at is None else replace(request.keep, values=True)
    # Copies are made before the capture, since operations outside modules prevent a replay.
    given, further = copied(inputs), copied(forward_args) or None
    step = None if short_cut is None else short_cut.step
    watched = record(forward_func, leaf_at=leaf_at, graph_at=graph_at, state_at=step, batch=len(inputs[0]), keep=keep)
    try:
        with torch.no_grad(), watched as recorder:
            output = run_forward(forward_func, given, further)
    except NotImplementedError as error:
        if graph_at is None or "FlexAttention" not in str(error):
            raise
        raise ReadoutError(
            "methods that use gradients need the gradient of flex_attention, which torch does not have on the CPU. "
            "Move the model to a GPU, switch it to sdpa attention, or use a method without gradients (raw, rollout)."
        ) from error
    check_complete(recorder, forward_func)
    maps = main_stack(recorder.maps)
    for attention in maps:
        if attention.shape[0] != len(output):
            raise AttentionKindError(
                f"attention {attention.name!r} runs over {attention.shape[0]} groups of tokens for {len(output)} "
                "examples (windows, or a batch folded with another dimension); its tokens are not the input's tokens."
            )
    found = None
    if ends is not None and _ends(recorder.maps) == ends:
        if leaf_at is not None:
            require_tokens(maps)
            found = read(output, recorder, maps[-1], positions_of(request.target, len(output)))
        if graph_at is not None:
            explained = sum_explained(output, request.target)
            attach_gradients(explained, recorder, maps if found is None or found.top is None else [*maps, found.top])
    return ForwardPass(inputs, forward_args, output.detach(), recorder, recorder.maps, maps, found)


def main_stack(maps: list[AttentionMap]) -> list[AttentionMap]:
    """Return the maps that explanations use: the layers over sequences of tokens, or all if there are none.

    Square layers of unknown kind are included, so that products raise instead of silently missing a layer. Attention
    over channels is included only if there is nothing else.
    """
    chosen = [m for m in maps if m.kind in ("self", "windowed") or (m.kind == "unknown" and m.shape[2] == m.shape[3])]
    return chosen or [m for m in maps if m.kind != "channel"] or maps


def _ends(maps: list[AttentionMap]) -> tuple[int, int]:
    stack = main_stack(maps)
    return maps.index(stack[0]), maps.index(stack[-1])


def positions_of(target: Target, batch: int) -> list[int] | None:
    """Return the position in each example's target (position, class); None if targets have no position.

    Example:
        >>> positions_of((3, 1), 2), positions_of([(3, 1), (0, 1)], 2), positions_of(1, 2)
        ([3, 3], [3, 0], None)
    """
    targets = list(target) if isinstance(target, list) else [target] * batch
    named = len(targets) == batch and all(isinstance(t, tuple) and t and isinstance(t[0], int) for t in targets)
    return [int(t[0]) for t in targets] if named else None


def sum_explained(output: Tensor, target: Target) -> Tensor:
    """Return the sum of the explained number over examples."""
    chosen = select_target(output, target)
    if chosen.numel() != len(output):
        raise TargetError(
            f"target {target!r} selects {chosen.numel() // len(output)} numbers of each example, from an output of "
            f"shape {tuple(output.shape)}, but a method that uses gradients explains one. Pass target= (a class, or a "
            "tuple of indices after the batch)."
        )
    return chosen.sum()
