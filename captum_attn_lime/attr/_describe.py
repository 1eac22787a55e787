"""`describe`: a model's attention layers, the tokens that its prediction reads, and the meaning of its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_forward_args
from captum_attn_lime.adapters._targets import plain_target
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.attr._passes import Request
from captum_attn_lime.attr._probing import looks_causal
from captum_attn_lime.attr._token_map import TokenMap
from captum_attn_lime.errors import AttentionKindError, ExplanationError, ReadoutError, TokenMapError


@dataclass(frozen=True)
class LayerDescription:
    """One attention call of a model.

    Attributes:
        index: Index among all calls.
        name: Path of the module.
        kind: ``"self"``, ``"windowed"``, ``"cross"``, ``"pool"``, ``"channel"`` or ``"unknown"``.
        shape: (B, H, Q, K).
        causal: Whether no query attends to later keys.
        explained: Whether the call belongs to the stack that explanations use.
        mixed: Whether something other than attention mixed its tokens since the stack's first layer.
    """

    index: int
    name: str
    kind: str
    shape: tuple[int, int, int, int]
    causal: bool
    explained: bool
    mixed: bool


@dataclass(frozen=True, repr=False)
class Description:
    """The result of `describe`.

    Attributes:
        layers: All attention calls, in order.
        query: The weights with which each example's prediction reads the last layer's tokens, (B, Q); None if unknown.
        token_map: For each input tensor the token of each cell, -1 for none; None if unknown.
        prefix: Tokens without a part of the input: CLS, distillation and register tokens.
        padding: Tokens that are padding, (B, N) of bool; None if the last layer is not over one sequence.
        problems: The messages of the errors that an attribution would raise.
    """

    layers: tuple[LayerDescription, ...]
    query: Tensor | None
    token_map: TokenMap | None
    prefix: tuple[int, ...]
    padding: Tensor | None
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(layer.kind for layer in self.layers).items())
        found = {"query": self.query, "token map": self.token_map}
        known = " and ".join(name for name, value in found.items() if value is not None) or "nothing else"
        return f"Description({kinds}; {known} known)"

    def __str__(self) -> str:
        """Return the description as readable text."""
        lines = [f"{len(self.layers)} attention calls"]
        width = max(len(layer.name) for layer in self.layers)
        for layer in self.layers:
            batch, heads, queries, keys = layer.shape
            marks = [
                "causal" if layer.causal else "",
                "" if layer.explained else "not in the explained stack",
                "tokens mixed by something other than attention" if layer.mixed else "",
            ]
            noted = ", ".join(mark for mark in marks if mark)
            size = f"{batch} x {heads} heads, {queries} queries x {keys} keys"
            lines.append(f"  {layer.index:>3}  {layer.name:<{width}}  {layer.kind:<8}  {size}  {noted}".rstrip())
        if self.query is not None:
            lines += [f"example {i} reads {_read_tokens(row)}" for i, row in enumerate(self.query)]
        if self.padding is not None and bool(self.padding.any()):
            lines += [f"example {i} has {int(row.sum())} padding tokens" for i, row in enumerate(self.padding)]
        if self.token_map is not None:
            lines.append(f"tokens without a part of the input: {_listed(self.prefix) or 'none'}")
        return "\n".join([*lines, *(f"not known: {problem}" for problem in self.problems)])


def describe(
    forward_func: Callable[..., Any],
    inputs: TensorOrTuple,
    additional_forward_args: Any = None,
    *,
    target: Target = None,
) -> Description:
    """Return a description of a model's attention on some inputs; ``print`` it to read it.

    Args:
        forward_func: The model, or any function of tensors that runs one.
        inputs: Its input tensors, batch first.
        additional_forward_args: Its further arguments.
        target: For outputs with one row per token: (position, class), whose position is then the query.

    Raises:
        TargetError: The output has no such target.
        NoAttentionError: No attention was captured.
        UnreadableAttentionError: The model has attention that cannot be captured.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> print(describe(lambda x: encoder(x)[:, 0], torch.randn(1, 5, 8)))
        2 attention calls
            0  layers.0.self_attn  self      1 x 2 heads, 5 queries x 5 keys
            1  layers.1.self_attn  self      1 x 2 heads, 5 queries x 5 keys
        example 0 reads token 0
        tokens without a part of the input: none
    """
    tensors, forward_args = as_tuple(inputs), format_forward_args(additional_forward_args)
    model, problems = ExplainedModel(forward_func), []
    with model.explaining():
        target = plain_target(target, forward_func, tensors, forward_args)
        try:
            run = model.run(tensors, forward_args, Request(target))
        except (AttentionKindError, ReadoutError) as error:
            problems.append(str(error))
            run = model.run(tensors, forward_args, Request(target, readout=False))
        token_map: TokenMap | None = None
        try:
            token_map = model.token_map(run, run.last)
        except TokenMapError as error:
            problems.append(str(error))
        for stack in _stacks(run.maps):
            model.check_mixing(run, stack)
    layers = tuple(_layer(m, m is run.last or any(m is one for one in run.maps)) for m in run.calls)
    return Description(
        layers, run.readout, token_map, _prefix(token_map, run.last), _padding(run.last), tuple(problems)
    )


def _stacks(maps: Sequence[AttentionMap]) -> list[list[AttentionMap]]:
    """Return the maps grouped into stacks whose tokens pass from layer to layer: an encoder, a decoder."""
    stacks: list[list[AttentionMap]] = []
    for attention in maps:
        followed = next((stack for stack in stacks if stack[-1].index in attention.follows), None)
        if followed is None:
            stacks.append([attention])
        else:
            followed.append(attention)
    return stacks


def _layer(attention: AttentionMap, explained: bool) -> LayerDescription:
    index = -1 if attention.index is None else attention.index
    causal = looks_causal(attention)
    return LayerDescription(index, attention.name, attention.kind, attention.shape, causal, explained, attention.mixed)


def _prefix(token_map: TokenMap | None, layer: AttentionMap) -> tuple[int, ...]:
    if token_map is None:
        return ()
    placed = {int(i) for index in token_map for i in torch.unique(index)}
    return tuple(i for i in range(layer.shape[3]) if i not in placed)


def _padding(layer: AttentionMap) -> Tensor | None:
    if layer.kind not in ("self", "windowed") or layer.shape[2] != layer.shape[3]:
        return None
    try:
        return ~layer.reads_itself()
    except ExplanationError:
        return None


def _read_tokens(weights: Tensor) -> str:
    read = weights.nonzero().flatten().tolist()
    if len(read) == 1:
        return f"token {read[0]}"
    even = float(weights[read].max() / weights[read].min()) < 1.001
    return f"the {'mean' if even else 'weighted mean'} of {len(read)} tokens: {_listed(read)}"


def _listed(tokens: Sequence[int]) -> str:
    """Return token numbers as text, with ranges as "first to last"."""
    runs: list[list[int]] = []
    for token in tokens:
        if runs and token == runs[-1][-1] + 1:
            runs[-1].append(token)
        else:
            runs.append([token])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
