"""The readout: the output tokens of the attention stack that a model's prediction reads, from one small gradient.

The output of the last self-attention call becomes a leaf. The gradient of the model's outputs with respect to it is
non-zero exactly on the tokens that the rest of the model reads: the CLS token, each row's last real token, or every
token of a mean without padding. If it reads several, the gradient at the pooled token states shows their weights. The
backward pass covers only the head and the last block. If all operations up to the last token state treat tokens
separately, that state becomes the leaf next time, and the backward pass covers only the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._capture import Recorder
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._tokenwise import last_state
from captum_attn_lime.errors import ReadoutError, TargetError

# Gradient rows with a smaller cosine than this are not parallel.
PARALLEL = 1 - 1e-4
# Weights within this factor of each other are equal up to rounding.
EQUAL = 1 + 1e-3
QUERY_ADVICE = "Pass query= (a token index, one index per example, weights (B, N), 'first', 'last' or 'mean')."


@dataclass(frozen=True)
class ShortCut:
    """A token state after the last layer that shows which tokens are read, and how to find it again.

    Attributes:
        step: Index of the operation after the last attention call whose result is the state.
        steps: All operations from that call to the output, to detect changes.
        is_pooled: Whether the state showed the weights of several tokens.
    """

    step: int
    steps: tuple[Callable[..., Any], ...]
    is_pooled: bool


@dataclass(frozen=True)
class Readout:
    """The tokens that a prediction reads.

    Attributes:
        weights: Weight of each output token of the last layer, (B, Q), rows sum to 1.
        top: A last layer that was computed only for the token that is read.
        short_cut: How to get the same from a gradient through the head alone; None if impossible.
        is_pooled: Whether any example reads several tokens.
    """

    weights: Tensor
    top: AttentionMap | None = None
    short_cut: ShortCut | None = None
    is_pooled: bool = False

    def first(self, examples: int) -> Readout:
        """Return the readout of the first examples of the batch."""
        top = None if self.top is None else self.top.first(examples)
        return replace(self, weights=self.weights[:examples], top=top)


def read(output: Tensor, recorder: Recorder, last: AttentionMap, positions: list[int] | None) -> Readout:
    """Return the rows of the last layer that an output with a graph reads.

    Args:
        output: The model's output, (B, ...).
        recorder: The capture, with its leaf.
        last: The last layer.
        positions: The row to explain of each example, for outputs with one row per token (B, N, ...).

    Raises:
        ReadoutError: The rows cannot be determined.
        TargetError: The output has no such row.
    """
    name, n = last.name, last.shape[2]
    if output.dim() > 2 and output.shape[1] == n:
        if positions is None:
            raise ReadoutError(
                f"the output of shape {tuple(output.shape)} has one row per token. Pass target=(position, class), or "
                f"one such pair per example. {QUERY_ADVICE}"
            )
        if not all(-n <= k < n for k in positions):
            raise TargetError(f"target positions {positions} are out of range: the output has {n} rows (0 to {n - 1}).")
        output = output[torch.arange(len(output), device=output.device), positions]
    norms, states, pools = _gradients(output, recorder)
    top = recorder.pool[0] if recorder.pool is not None and pools else None
    if top is not None:
        if not bool((norms > 0).any()):
            return Readout(top.rows(0).mean(dim=1).squeeze(1))  # (B, N): the model's own pooling, head mean
        if last.index not in top.follows:
            raise ReadoutError(
                f"the output reads the tokens of {name!r} through the attention pooling {top.name!r} and through "
                f"another path. {QUERY_ADVICE}"
            )
    dead = ~(norms > 0).any(dim=1)
    if bool(dead.any()) and recorder.squash_input is not None:
        # The gradient of a saturated softmax vanishes; that of its input does not.
        more_norms, more_states, _ = _gradients(recorder.squash_input, recorder)
        norms = torch.where(dead[:, None], more_norms, norms)
        states = [torch.where(dead[:, None, None], more, g) for more, g in zip(more_states, states, strict=True)]
        dead = ~(norms > 0).any(dim=1)
    if bool(dead.any()):
        raise ReadoutError(
            f"the output of example {int(dead.nonzero()[0])} does not depend on the last attention call {name!r}: "
            f"its gradient is zero everywhere. {QUERY_ADVICE}"
        )
    # Zeros up to rounding are not read.
    is_read = norms > norms.amax(dim=1, keepdim=True) * torch.finfo(norms.dtype).eps
    found = [_pooling(i, rows, [g[i] for g in states]) for i, rows in enumerate(is_read)]
    shown_by = {place for _, place in found if place is not None}
    return Readout(
        torch.stack([weights for weights, _ in found]),
        top,
        _short_cut(output, recorder, shown_by),
        bool(shown_by),
    )


def _short_cut(output: Tensor, recorder: Recorder, shown_by: set[int]) -> ShortCut | None:
    """Return how to find the token state that can replace the leaf in the next run; None if there is none.

    Args:
        output: The output with its graph.
        recorder: The capture.
        shown_by: Indices of the token states that showed how tokens are pooled.
    """
    states = [state for state in recorder.token_states if state.requires_grad]
    if recorder.pool is not None or recorder.leaf is None or not recorder.leaf.is_leaf or not states:
        return None
    batch, tokens = recorder.leaf_tokens
    state = last_state(output, recorder.leaf, states, batch, tokens)
    if state is None or tuple(state.shape[:2]) != (batch, tokens):
        return None
    place = next(i for i, known in enumerate(states) if known is state)
    step = recorder.step_of(state) if shown_by <= {place} else None
    return None if step is None else ShortCut(step, tuple(recorder.steps or ()), bool(shown_by))


def _pooling(example: int, read: Tensor, gradients: list[Tensor]) -> tuple[Tensor, int | None]:
    """Return the weights with which one example's rows are pooled, (Q,), sum 1, and the index of the state h.

    A linear pooling Σ w_i h_i passes the same gradient g, times its weight, to every row: the rows of the gradient at
    the token states h are w_i g, parallel to each other. Before h the derivatives of the layers change their
    directions. So h is the earliest of the last states with parallel gradient rows, whose lengths are the weights.
    """
    weights = read.to(torch.float64)
    if int(read.sum()) == 1:
        return weights, None
    found: Tensor | None = None
    place = None
    for i, gradient in reversed(list(enumerate(gradients))):  # (Q, D), the latest first
        rows = gradient[read].to(torch.float64)
        lengths = rows.norm(dim=1)
        if not bool(lengths.any()):
            continue  # a branch that the output does not use
        cosine = rows @ rows[lengths.argmax()] / (lengths * lengths.max()).clamp(min=torch.finfo(torch.float64).tiny)
        if float(cosine.min()) < PARALLEL:
            break
        found, place = lengths, i
    if found is None:
        which = read.nonzero().flatten().tolist()
        listed = ", ".join(str(token) for token in which[:6]) + (", ..." if len(which) > 6 else "")
        raise ReadoutError(
            f"the output of example {example} reads {len(which)} tokens ({listed}), and their weights cannot be "
            f"determined (it is not one weighted sum of the last layer's tokens). {QUERY_ADVICE}"
        )
    if float(found.max() / found.min()) > EQUAL:
        weights[read] = found.to(weights)
    return weights / weights.sum(), place


def _gradients(output: Tensor, recorder: Recorder) -> tuple[Tensor, list[Tensor], bool]:
    """Return gradients of the output for a fixed random cotangent.

    Returns:
        The norm on each row of the last call's output, (B, Q); the gradient at each later token state, in order,
        (B, Q, D); and whether the output depends on a later attention pooling.
    """
    leaf, rows = recorder.leaf, recorder.leaf_rows
    if leaf is None or rows is None or not output.requires_grad:
        raise ReadoutError(
            "the output has no gradient with respect to the last attention call; does the model detach it, or run in "
            f"inference_mode? {QUERY_ADVICE}"
        )
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    # The graph is retained for a second gradient, of the input of a last softmax.
    pooled = () if recorder.pool is None else (recorder.pool[1],)
    # States returned by an autograd function of the model have no graph.
    states_behind = [state for state in recorder.token_states if state.requires_grad]
    recorder.is_probing = True
    try:
        at_leaf, *others = torch.autograd.grad(
            output,
            (leaf, *pooled, *states_behind),
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    except (RuntimeError, NotImplementedError) as error:
        raise ReadoutError(
            f"the tokens that the output reads cannot be determined, since an operation after the last attention call "
            f"has no gradient: {error} {QUERY_ADVICE}"
        ) from error
    recorder.is_probing = False
    by_row = rows(at_leaf)  # (B, H, Q, d)
    by_row = by_row.to(torch.promote_types(by_row.dtype, torch.float32))
    norms = by_row.pow(2).sum(dim=(1, 3)).sqrt()
    at_pool, at_states = others[: len(pooled)], others[len(pooled) :]
    at_states = [g.flatten(1, 2) if g.dim() == 4 else g for g in at_states]  # (B, rows, columns, D)
    states = [g if tuple(g.shape[:2]) == tuple(norms.shape) else g.transpose(0, 1) for g in at_states]
    return norms, states, any(bool(g.any()) for g in at_pool)
