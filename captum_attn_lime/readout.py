"""The readout: which output tokens of the attention stack a model's prediction reads, found by one small gradient.

The output of the last self-attention call is made a leaf; the gradient of the model's outputs with respect to it is
non-zero exactly on the tokens that the rest of the model reads: the CLS token, each row's last real token, or every
token of a mean, padding left out. Where it reads several, the gradient at the token states that are pooled tells their
weights. The backward pass goes through the head and the last block only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._captum import run_forward
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.capture import Keep, Recorder, record
from captum_attn_lime.capture.recorder import KEEP_SCORES
from captum_attn_lime.capture.session import check_complete
from captum_attn_lime.errors import AttentionKindError, ReadoutError, TargetError
from captum_attn_lime.gradients import take_gradients
from captum_attn_lime.methods.checks import require_tokens

# Gradient rows with a smaller cosine than this are not parallel.
PARALLEL = 1 - 1e-4
# Weights within this factor of each other are equal but for rounding.
EQUAL = 1 + 1e-3
_ASK = "Pass query= (a token index, one index per example, weights (B, N), 'first', 'last' or 'mean')."


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
    """

    output: Tensor
    recorder: Recorder
    maps: list[AttentionMap]
    readout: Tensor | None
    top: AttentionMap | None = None

    def first(self, examples: int) -> ForwardPass:
        """Return the pass of the first examples of the batch."""
        readout = None if self.readout is None else self.readout[:examples]
        top = None if self.top is None else self.top.first(examples)
        return ForwardPass(self.output[:examples], self.recorder, [m.first(examples) for m in self.maps], readout, top)


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


class ReadoutFinder:
    """Runs captured forward passes and remembers, per kind of input, which attention calls are to be explained."""

    def __init__(self) -> None:
        self._stacks: dict[Any, tuple[int, int]] = {}  # the first and the last call of the stack

    def run(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        forward_args: Any,
        wanted: Wanted = Wanted(),
    ) -> ForwardPass:
        """Run the model once; where the calls to explain are not known yet, or have changed, once more.

        Args:
            forward_func: The model.
            inputs: Its input tensors.
            forward_args: Further positional arguments.
            wanted: What is to be found out.

        Raises:
            NoAttentionError: The model showed no attention.
            ReadoutError: The readout is wanted but cannot be known.
        """
        # Callers may be in no_grad or in inference_mode, whose tensors cannot be saved for a backward pass.
        with torch.inference_mode(False):
            inputs = tuple(_ordinary(x) for x in inputs)
            forward_args = tuple(_ordinary(x) for x in forward_args)
            done = self._run(forward_func, inputs, forward_args, wanted)
            if not done.recorder.is_ambiguous:
                return done
            # As many heads as examples: with one example more their dimensions cannot be mistaken for each other.
            batch = len(inputs[0])
            more = [tuple(with_one_more(x, batch) for x in group) for group in (inputs, forward_args)]
            explained, positions = wanted.gradient_of, wanted.positions
            wanted = replace(
                wanted,
                positions=None if positions is None else [*positions, positions[0]],
                gradient_of=None if explained is None else lambda output: explained(output[:batch]),
            )
            return self._run(forward_func, more[0], more[1], wanted).first(batch)

    def _run(
        self, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], forward_args: Any, wanted: Wanted
    ) -> ForwardPass:
        if not wanted.readout and wanted.gradient_of is None:
            return _captured(forward_func, inputs, forward_args, wanted)
        key = (id(forward_func), tuple((x.dim(), x.dtype) for x in inputs))
        stack = self._stacks.get(key)
        if stack is None:
            only_calls = Wanted(readout=False, keep=wanted.keep)
            stack = _ends(_captured(forward_func, inputs, forward_args, only_calls).recorder.maps)
        for _ in range(2):
            done = _captured(forward_func, inputs, forward_args, wanted, stack)
            expected = _ends(done.recorder.maps)
            self._stacks[key] = expected
            if expected == stack:
                return done
            stack = expected
        raise ReadoutError(f"the model makes other attention calls from one forward pass to the next. {_ASK}")


def _captured(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    forward_args: Any,
    wanted: Wanted,
    stack: tuple[int, int] | None = None,
) -> ForwardPass:
    leaf_at = None if stack is None or not wanted.readout else stack[1]
    graph_at = None if stack is None or wanted.gradient_of is None else stack[0]
    keep = wanted.keep if graph_at is None else replace(wanted.keep, values=True)
    watched = record(forward_func, leaf_at=leaf_at, graph_at=graph_at, batch=len(inputs[0]), keep=keep)
    with torch.no_grad(), watched as recorder:
        output = run_forward(forward_func, inputs, forward_args or None)
    check_complete(recorder, forward_func)
    maps = main_stack(recorder.maps)
    for attention in maps:
        if attention.shape[0] != len(output):
            raise AttentionKindError(
                f"attention {attention.name!r} runs over {attention.shape[0]} groups of tokens for {len(output)} "
                "examples (windows, or a batch folded with another dimension); its tokens are not the input's tokens."
            )
    readout, top = None, None
    is_known = stack is not None and _ends(recorder.maps) == stack
    if leaf_at is not None:
        require_tokens(maps)
    if leaf_at is not None and is_known:
        readout, top = _read(output, recorder, wanted.positions)
    if graph_at is not None and is_known and wanted.gradient_of is not None:
        take_gradients(wanted.gradient_of(output), recorder, maps if top is None else [*maps, top])
    return ForwardPass(output.detach(), recorder, maps, readout, top)


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
    targets = list(target) if isinstance(target, list) else [target] * batch
    named = len(targets) == batch and all(isinstance(t, tuple) and t and isinstance(t[0], int) for t in targets)
    return [int(t[0]) for t in targets] if named else None


def _read(output: Tensor, recorder: Recorder, positions: list[int] | None) -> tuple[Tensor, AttentionMap | None]:
    """Return the weights with which the output reads the last call's rows, (B, Q), and a last layer of one query."""
    name = recorder.maps[_last(recorder.maps)].name
    n = recorder.maps[_last(recorder.maps)].shape[2]
    if output.dim() > 2 and output.shape[1] == n:
        if positions is None:
            raise ReadoutError(
                f"the output of shape {tuple(output.shape)} has one row per token. Pass target=(position, class), or "
                f"one such pair per example. {_ASK}"
            )
        if not all(-n <= k < n for k in positions):
            raise TargetError(f"target positions {positions} are out of range: the output has {n} rows (0 to {n - 1}).")
        output = output[torch.arange(len(output), device=output.device), positions]
    norms, states, pools = _gradients(output, recorder)
    top = recorder.pool[0] if recorder.pool is not None and pools else None
    if top is not None:
        if not bool((norms > 0).any()):
            return top.rows(0).mean(dim=1).squeeze(1), None  # (B, N): the model's own pooling, head mean
        if _last(recorder.maps) not in top.follows:
            raise ReadoutError(
                f"the output reads the tokens of {name!r} by the attention pooling {top.name!r} and by another way as "
                f"well. {_ASK}"
            )
    dead = ~(norms > 0).any(dim=1)
    if bool(dead.any()) and recorder.squash_input is not None:
        # A saturated softmax passes no gradient on; its input does.
        more_norms, more_states, _ = _gradients(recorder.squash_input, recorder)
        norms = torch.where(dead[:, None], more_norms, norms)
        states = [torch.where(dead[:, None, None], more, g) for more, g in zip(more_states, states, strict=True)]
        dead = ~(norms > 0).any(dim=1)
    if bool(dead.any()):
        raise ReadoutError(
            f"the output of example {int(dead.nonzero()[0])} does not depend on the last attention call {name!r}: "
            f"its gradient is zero everywhere. {_ASK}"
        )
    # What rounding leaves of a zero is not read.
    read = norms > norms.amax(dim=1, keepdim=True) * torch.finfo(norms.dtype).eps
    return torch.stack([_pooling(i, read[i], [g[i] for g in states]) for i in range(len(read))]), top


def _pooling(example: int, read: Tensor, gradients: list[Tensor]) -> Tensor:
    """Return the weights with which one example's read rows are pooled, (Q,), sum 1.

    A linear pooling Σ w_i h_i passes the same gradient g to every row, times its weight: rows of the gradient at the
    token states h are w_i g, parallel to each other. Before h the layers' own derivatives turn the rows apart. So the
    earliest of the last states whose gradient rows are parallel is h, and the rows' lengths are the weights.
    """
    weights = read.to(torch.float64)
    if int(read.sum()) == 1:
        return weights
    found: Tensor | None = None
    for gradient in reversed(gradients):  # (Q, D), the latest first
        rows = gradient[read].to(torch.float64)
        lengths = rows.norm(dim=1)
        if not bool(lengths.any()):
            continue  # a branch that the output does not use says nothing of the pooling
        cosine = rows @ rows[lengths.argmax()] / (lengths * lengths.max()).clamp(min=torch.finfo(torch.float64).tiny)
        if float(cosine.min()) < PARALLEL:
            break
        found = lengths
    if found is None:
        which = read.nonzero().flatten().tolist()
        listed = ", ".join(str(token) for token in which[:6]) + (", ..." if len(which) > 6 else "")
        raise ReadoutError(
            f"the output of example {example} reads {len(which)} tokens ({listed}), and how it weighs them was not "
            f"seen (it is not one weighted sum of the last layer's tokens). {_ASK}"
        )
    if float(found.max() / found.min()) > EQUAL:
        weights[read] = found.to(weights)
    return weights / weights.sum()


def _gradients(output: Tensor, recorder: Recorder) -> tuple[Tensor, list[Tensor], bool]:
    """Return gradients of the output for a fixed random cotangent.

    Returns:
        The norm on each row of the last call's output, (B, Q); the gradient at each token state behind it, in order,
        (B, Q, D); and whether the output depends on the attention pooling behind it, if there is one.
    """
    leaf, rows = recorder.leaf, recorder.leaf_rows
    if leaf is None or rows is None or not output.requires_grad:
        raise ReadoutError(
            "the output carries no gradient from the last attention call; does the model detach it, or compute its "
            f"output in inference_mode? {_ASK}"
        )
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    # The graph is kept: a second gradient may be asked for, of the input of a last softmax.
    pooled = () if recorder.pool is None else (recorder.pool[1],)
    # A state that an autograd function of the model gives out loses its graph there.
    states_behind = [state for state in recorder.token_states if state.requires_grad]
    recorder.is_probing = True
    at_leaf, *others = torch.autograd.grad(
        output,
        (leaf, *pooled, *states_behind),
        cotangent,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    recorder.is_probing = False
    by_row = rows(at_leaf)  # (B, H, Q, d)
    by_row = by_row.to(torch.promote_types(by_row.dtype, torch.float32))
    norms = by_row.pow(2).sum(dim=(1, 3)).sqrt()
    at_pool, at_states = others[: len(pooled)], others[len(pooled) :]
    at_states = [g.flatten(1, 2) if g.dim() == 4 else g for g in at_states]  # (B, rows, columns, D)
    states = [g if tuple(g.shape[:2]) == tuple(norms.shape) else g.transpose(0, 1) for g in at_states]
    return norms, states, any(bool(g.any()) for g in at_pool)


def with_one_more(x: Any, batch: int) -> Any:
    """Return a tensor over the batch with its first example once more at the end; anything else as it is."""
    if isinstance(x, Tensor) and x.dim() and len(x) == batch:
        return torch.cat([x, x[:1]])
    return x


def _ordinary(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x
