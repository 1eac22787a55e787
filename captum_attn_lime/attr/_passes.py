"""Captured forward passes: running a model once, with what a method needs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._capture import Keep, Recorder, record
from captum_attn_lime._capture.recorder import KEEP_SCORES
from captum_attn_lime._capture.session import check_complete
from captum_attn_lime._util.captum import plain_indices, run_forward, select_target
from captum_attn_lime._util.random import RandomState
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._gradients import take_gradients
from captum_attn_lime.attr._memory import Kind, Memory, kind_of
from captum_attn_lime.attr._readout import ASK, Readout, read
from captum_attn_lime.errors import AttentionKindError, ReadoutError, TargetError
from captum_attn_lime.methods._checks import require_tokens


@dataclass(frozen=True)
class ShortCut:
    """A token state behind the last layer that tells which tokens are read, and how to come by it again.

    Attributes:
        step: Which step behind the last attention call makes it.
        steps: All steps from that call to the output. Another model's end, or another way through it, has others.
        is_pooled: Whether it told the weights of several tokens.
    """

    step: int
    steps: tuple[Callable[..., Any], ...]
    is_pooled: bool


@dataclass(frozen=True)
class ForwardPass:
    """One captured forward pass.

    Attributes:
        output: The model's output, (B, ...), without a graph.
        recorder: What the capture saw.
        maps: The main stack: the model's self-attention calls in order; where it has none, all its calls.
        readout: Weight of each output token of the last map of the stack, (B, Q), rows sum to 1; None if not asked for.
        top: A last layer that was computed for the read token only, one query over the stack's tokens; ``readout`` is
            then what reaches the prediction beside it, by its residual connection.
        is_pooled: Whether some example reads several tokens.
        short_cut: The way to the readout by a gradient through the head alone, where there is one.
        kind: What the input is apart from its values and its length; None where nothing can be said of it.
    """

    output: Tensor
    recorder: Recorder
    maps: list[AttentionMap]
    readout: Tensor | None
    top: AttentionMap | None = None
    is_pooled: bool = False
    short_cut: ShortCut | None = None
    kind: Kind | None = None

    @property
    def way(self) -> tuple[Callable[..., Any], ...]:
        """The operations that the model went through: a model that takes another way may be another model."""
        return tuple(self.recorder.trace.way)

    def first(self, examples: int) -> ForwardPass:
        """Return the pass of the first examples of the batch."""
        readout = None if self.readout is None else self.readout[:examples]
        top = None if self.top is None else self.top.first(examples)
        maps = [m.first(examples) for m in self.maps]
        return replace(self, output=self.output[:examples], maps=maps, readout=readout, top=top)


@dataclass(frozen=True)
class Wanted:
    """What a captured forward pass is to find out.

    Attributes:
        readout: Which tokens the prediction reads.
        positions: For outputs with one row per token (B, N, ...): the row of each example to explain.
        gradient_of: Takes the output and returns the sum of what is explained; the maps then come with its gradient
            with respect to their outputs, and with their values.
        keep: What is kept of each call.
    """

    readout: bool = True
    positions: list[int] | None = None
    gradient_of: Callable[[Tensor], Tensor] | None = None
    keep: Keep = KEEP_SCORES


class ForwardRunner:
    """Runs captured forward passes and remembers, per kind of input, where what is wanted of them is found.

    Args:
        memory: Where to remember it.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = Memory() if memory is None else memory

    def run(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        forward_args: Any,
        wanted: Wanted = Wanted(),
        kind: Kind | None = None,
    ) -> ForwardPass:
        """Run the model once; where the calls to explain are not known yet, or have changed, once more.

        However often it runs, random generators are left as one run leaves them.

        Args:
            forward_func: The model.
            inputs: Its input tensors.
            forward_args: Further positional arguments.
            wanted: What is to be found out.
            kind: The kind of the input, where it is known already.

        Raises:
            NoAttentionError: The model showed no attention.
            ReadoutError: The readout is wanted but cannot be known.
        """
        # Callers may be in no_grad or in inference_mode, whose tensors cannot be saved for a backward pass.
        with torch.inference_mode(False), self._memory.opened(forward_func):
            inputs = tuple(_ordinary(x) for x in inputs)
            forward_args = tuple(_ordinary(x) for x in forward_args)
            kind = kind_of(inputs, forward_args) if kind is None else kind
            random = RandomState()
            done = self._run(forward_func, inputs, forward_args, wanted, kind, random)
            if not done.recorder.is_ambiguous:
                return done
            # As many heads as examples: with one example more their dimensions cannot be mistaken for each other.
            batch = len(inputs[0])
            more = [tuple(with_one_more(x, batch) for x in group) for group in (inputs, forward_args)]
            explained, positions = wanted.gradient_of, wanted.positions
            wanted = replace(
                wanted,
                positions=None if positions is None else [*positions, positions[0]],
                gradient_of=None if explained is None else lambda out: _with_one_more_explained(explained, out, batch),
            )
            random.restore()
            return self._run(forward_func, more[0], more[1], wanted, kind, random).first(batch)

    def _run(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        forward_args: Any,
        wanted: Wanted,
        kind: Kind | None,
        random: RandomState,
    ) -> ForwardPass:
        if not wanted.readout and wanted.gradient_of is None:
            return replace(_captured(forward_func, inputs, forward_args, wanted), kind=kind)
        ends_key, short_key = (None, None) if kind is None else (("ends", kind), ("short cut", kind))
        stack = self._memory.get(ends_key)
        if stack is None:
            only_calls = Wanted(readout=False, keep=wanted.keep)
            stack = _ends(_captured(forward_func, inputs, forward_args, only_calls).recorder.maps)
            random.restore()
        short_cut = self._memory.get(short_key)  # False: there is none
        if short_cut and wanted.readout and wanted.gradient_of is None:
            done = _captured_by(short_cut, forward_func, inputs, forward_args, wanted, stack)
            if done is not None:
                return replace(done, kind=kind)
            self._memory.put(short_key, False)  # the model's end changes from run to run
            random.restore()
        for _ in range(2):
            done = _captured(forward_func, inputs, forward_args, wanted, stack)
            expected = _ends(done.recorder.maps)
            self._memory.put(ends_key, expected)
            if expected == stack:
                if wanted.readout and self._memory.get(short_key) is None:
                    self._memory.put(short_key, done.short_cut or False)
                return replace(done, kind=kind)
            stack = expected
            random.restore()
        raise ReadoutError(f"the model makes other attention calls from one forward pass to the next. {ASK}")


def _captured(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    forward_args: Any,
    wanted: Wanted,
    stack: tuple[int, int] | None = None,
    state_at: int | None = None,
) -> ForwardPass:
    leaf_at = None if stack is None or not wanted.readout else stack[1]
    graph_at = None if stack is None or wanted.gradient_of is None else stack[0]
    keep = wanted.keep if graph_at is None else replace(wanted.keep, values=True)
    # What the model is given is made before it is watched: steps outside of modules cannot be remembered.
    given, further = copied(inputs), copied(tuple(forward_args)) or None
    watched = record(
        forward_func, leaf_at=leaf_at, graph_at=graph_at, state_at=state_at, batch=len(inputs[0]), keep=keep
    )
    try:
        with torch.no_grad(), watched as recorder:
            output = run_forward(forward_func, given, further)
    except NotImplementedError as error:
        if graph_at is None or "FlexAttention" not in str(error):
            raise
        raise ReadoutError(
            "methods that use gradients need them through flex_attention, and torch has no such gradient on the CPU. "
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
    if stack is None or _ends(recorder.maps) != stack:
        return ForwardPass(output.detach(), recorder, maps, None)
    found = None
    if leaf_at is not None:
        require_tokens(maps)
        found = read(output, recorder, maps[-1], wanted.positions)
    top = None if found is None else found.top
    if wanted.gradient_of is not None:
        take_gradients(wanted.gradient_of(output), recorder, maps if top is None else [*maps, top])
    weights, short_cut = (None, None) if found is None else (found.weights, _short_cut(found, recorder))
    is_pooled = found is not None and found.is_pooled
    return ForwardPass(output.detach(), recorder, maps, weights, top, is_pooled, short_cut)


def _captured_by(
    short_cut: ShortCut,
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    forward_args: Any,
    wanted: Wanted,
    stack: tuple[int, int],
) -> ForwardPass | None:
    """Return a pass whose graph begins at the state of a short cut; None where it did not lead there this time."""
    try:
        done = _captured(forward_func, inputs, forward_args, wanted, stack, short_cut.step)
    except ReadoutError:
        return None
    steps = tuple(done.recorder.steps or ())
    is_same = _ends(done.recorder.maps) == stack and steps == short_cut.steps
    return done if is_same and (short_cut.is_pooled or not done.is_pooled) else None


def _short_cut(found: Readout, recorder: Recorder) -> ShortCut | None:
    """Return how to come by the state that tells the readout, in the next run."""
    step = None if found.state is None else recorder.step_of(found.state)
    return None if step is None else ShortCut(step, tuple(recorder.steps or ()), found.is_pooled)


def main_stack(maps: list[AttentionMap]) -> list[AttentionMap]:
    """Return the maps that explanations are made of: the layers over sequences of tokens, else all.

    A layer that was not seen to be self-attention stays among them: products then refuse it by name, where without it
    they would be short of a layer. Attention over channels is none of them; it stays where there is nothing else.
    """
    chosen = [m for m in maps if m.kind in ("self", "windowed") or (m.kind == "unknown" and m.shape[2] == m.shape[3])]
    return chosen or [m for m in maps if m.kind != "channel"] or maps


def _last(maps: list[AttentionMap]) -> int:
    return maps.index(main_stack(maps)[-1])


def _ends(maps: list[AttentionMap]) -> tuple[int, int]:
    """Return the first and the last call of the stack."""
    return maps.index(main_stack(maps)[0]), _last(maps)


def positions_of(target: Any, batch: int) -> list[int] | None:
    """Return the position that each example's target names first, as (position, class) does; None if none does.

    Example:
        >>> positions_of((3, 1), 2), positions_of([(3, 1), (0, 1)], 2), positions_of(1, 2)
        ([3, 3], [3, 0], None)
    """
    target = plain_indices(target)
    targets = list(target) if isinstance(target, list) else [target] * batch
    named = len(targets) == batch and all(isinstance(t, tuple) and t and isinstance(t[0], int) for t in targets)
    return [int(t[0]) for t in targets] if named else None


def sum_explained(output: Tensor, target: Any) -> Tensor:
    """Return the sum over examples of the one number of each that the target names."""
    chosen = select_target(output, target)
    if chosen.numel() != len(output):
        raise TargetError(
            f"target {target!r} names {chosen.numel() // len(output)} numbers of each example, of an output of shape "
            f"{tuple(output.shape)}; a method that uses gradients explains one. Pass target= (a class, or a tuple of "
            "indices after the batch)."
        )
    return chosen.sum()


def with_one_more(x: Any, batch: int) -> Any:
    """Return a tensor over the batch with its first example once more at the end; anything else as it is."""
    if isinstance(x, Tensor) and x.dim() and len(x) == batch:
        return torch.cat([x, x[:1]])
    return x


def _with_one_more_explained(explained: Callable[[Tensor], Tensor], output: Tensor, batch: int) -> Tensor:
    """Return the sum of what is explained, of the example that was added too: by the target of the first."""
    return explained(output[:batch]) + explained(torch.cat([output[batch:], output[1:batch].detach()]))


def copied(x: Any) -> Any:
    """Return tensors, also those in tuples, lists and dictionaries, as copies that a model may write into.

    Of expanded tensors what they were expanded from is copied: the whole may be far larger.

    Example:
        >>> x = torch.zeros(2)
        >>> y, (z,) = copied((x, [x]))
        >>> y is x or z is x
        False
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            return x.detach().clone()
        once = x.detach()[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())]
        return once.clone().expand(x.shape)
    if type(x) in (tuple, list):
        return type(x)(copied(part) for part in x)
    return {key: copied(part) for key, part in x.items()} if type(x) is dict else x


def _ordinary(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x
