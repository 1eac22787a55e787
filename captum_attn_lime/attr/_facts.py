"""`ModelFacts`: what was found out about a model by trying it out, so that each thing is tried out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._memory import Kind, Memory
from captum_attn_lime.attr._passes import ForwardPass
from captum_attn_lime.attr._probing import ValueProbe, mixed_layers
from captum_attn_lime.attr._tokens import TokenMap, carrier_of, find_token_map, plain_token_map


class ModelFacts:
    """Which token each part of a model's input is, and which of its layers something beside attention has mixed.

    Each is found out by running the model on altered copies of the first example, and holds for inputs of the same
    kind on which the model goes through the same operations. What is found on some tokens holds for fewer, too; for
    more it is found once more: a convolution over distant tokens mixes long inputs only.

    Args:
        memory: Where facts are remembered.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def mark_mixed(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        forward_args: tuple[Any, ...],
        done: ForwardPass,
        maps: list[AttentionMap],
    ) -> None:
        """Mark the layers over tokens that something else than attention has mixed."""
        calls = frozenset(m.index for m in maps if m.index is not None)
        n_tokens = maps[0].shape[2]
        key = None if done.kind is None else ("mixed", calls, *_holds_for(done))
        tried, mixed = self._memory.get(key) or (-1, frozenset())
        if not _covers(done.kind, tried, n_tokens) or (mixed and tried != n_tokens):
            mixed = mixed_layers(forward_func, inputs, forward_args, calls)
            self._memory.put(key, (n_tokens, mixed))
        for attention in maps:
            attention.mixed = attention.index in mixed

    def token_map(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        forward_args: tuple[Any, ...],
        done: ForwardPass,
        layer: AttentionMap,
    ) -> TokenMap:
        """Return the token map of the inputs for a layer's keys.

        Args:
            forward_func: The model.
            inputs: Its input tensors.
            forward_args: Its further arguments.
            done: A captured pass of them.
            layer: The layer.

        Raises:
            TokenMapError: The tokens cannot be placed with certainty.
        """
        n_tokens = layer.shape[3]
        # The values of the first layer over the same tokens show what each token was made of. The tokens that are read
        # by cross-attention are those of another stack.
        before = layer.reads if layer.kind == "cross" else layer.follows
        stack = {m.index: m.shape[2] == n_tokens for m in done.maps if m.index is not None and m.index in before}
        first = min((index for index, same in stack.items() if same), default=layer.index)
        of_kind = None if done.kind is None else ("carrier", first, *_holds_for(done))
        # Ids and embeddings that map one to one do so for every length.
        tried, carrier = self._memory.get(of_kind) or (-1, None)
        if carrier is not None and _covers(done.kind, tried, n_tokens):
            plain = plain_token_map(inputs, n_tokens, carrier)
            if plain is not None:
                return plain
        of_shape = None if of_kind is None else (of_kind, tuple(x.shape[1:] for x in inputs), n_tokens)
        found: TokenMap | None = self._memory.get(of_shape)
        if found is None:
            # Before a stage's tokens were merged, attention has mixed them: it must not tell what they are made of.
            silent = {index for index, same in stack.items() if not same and index < (first or 0)}
            probe = ValueProbe(forward_func, forward_args, len(inputs[0]), first or 0, silent)
            convolutions = done.recorder.convolutions
            found = find_token_map(inputs, n_tokens, convolutions, probe, is_first_call=not first)
            carrier = carrier_of(found, inputs, n_tokens)
            if carrier is None:
                self._memory.put(of_shape, found)
            else:
                self._memory.put(of_kind, (n_tokens, carrier))
        return found


def _holds_for(done: ForwardPass) -> tuple[Any, ...]:
    """Return what a fact found on a pass holds for: a kind of input, and the operations that the model goes through.

    A part of a long input, one example without padding perhaps, may go another way than the whole.
    """
    return (done.kind, None if done.kind is not None and done.kind.is_long else done.way)


def _covers(kind: Kind | None, tried: int, n_tokens: int) -> bool:
    """Return whether what was found on some tokens is to be taken for as many as there are now."""
    return tried >= 0 if kind is not None and kind.is_long else tried >= n_tokens


def shortened(
    inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], *, longer_than: int, to: int
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]] | None:
    """Return a part of a long sequence, of one example with its further arguments; None if there is none that will do.

    What holds of a model's way through its layers, which call is the last, what mixes tokens, which input carries them,
    holds of every length, and is found out faster on a few tokens. They are the beginning, unless that is padding.

    Args:
        inputs: Tensors (B, N) or (B, N, D).
        forward_args: Further arguments; those by example and token are cut too.
        longer_than: What is called long.
        to: How many tokens are kept.

    Example:
        >>> import torch
        >>> ids = torch.arange(2000).expand(2, -1)
        >>> short, (mask,) = shortened((ids,), (torch.ones(2, 2000),), longer_than=1000, to=16)
        >>> short[0].shape, mask.shape
        (torch.Size([1, 16]), torch.Size([1, 16]))
    """
    batch = len(inputs[0])
    lengths = {x.shape[1] for x in inputs if x.dim() in (2, 3)}
    if len(lengths) != 1 or any(x.dim() not in (2, 3) for x in inputs) or min(lengths) <= max(longer_than, to):
        return None
    (length,) = lengths
    tensors = [x for x in (*inputs, *forward_args) if isinstance(x, Tensor)]
    by_token = [x for x in tensors if x.dim() in (2, 3) and x.shape[:2] == (batch, length)]
    part = _telling_part([x for x in by_token if x.dim() == 2 or x.shape[2] != length], length, to)
    if part is None:
        return None
    example, start = part

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        is_by_example = len(x) == batch
        x = x[example : example + 1] if is_by_example else x
        for axis in range(int(is_by_example), x.dim()):
            if x.shape[axis] == length:
                x = x.narrow(axis, start, to)
        return x

    short = tuple(x[example : example + 1, start : start + to] for x in inputs)  # features may be as many as tokens
    return short, tuple(cut(x) for x in forward_args)


def _telling_part(by_token: list[Tensor], length: int, to: int) -> tuple[int, int] | None:
    """Return an example and the start of a part of it that is not mere padding; None where there is none.

    Padding shows nothing of what mixes tokens. It is told by not varying where the rest of the row does: the part lies
    at the beginning, or around the first place at which one of the tensors varies.
    """
    varying = [(x[:, 1:] != x[:, :-1]).reshape(len(x), length - 1, -1).any(dim=2).cpu() for x in by_token]
    for example in range(len(by_token[0]) if by_token else 1):
        rows = [(x[example].cpu(), varies[example]) for x, varies in zip(by_token, varying, strict=True)]
        firsts = [int(varies.nonzero()[0]) + 1 for _, varies in rows if bool(varies.any())]
        starts = {0, *(max(0, min(first - to // 2, length - to)) for first in firsts)}
        for start in sorted(starts):
            if all(_tells(row, varies, start, to) for row, varies in rows):
                return example, start
    return None


def _tells(row: Tensor, varies: Tensor, start: int, to: int) -> bool:
    """Return whether a part of a row has enough of what the whole row has.

    Args:
        row: (N,) or (N, D).
        varies: Where the row is not as at the token before, (N - 1,).
        start: Where the part begins.
        to: How long it is.
    """
    if row.dim() == 1 and bool(((row == 0) | (row == 1)).all()):
        features = [row == 0, row == 1]  # a mask, or kinds of tokens: some of each
        parts = [where[start : start + to] for where in features]
    else:
        features, parts = [varies], [varies[start : start + to - 1]]
    return all(
        4 * int(part.sum()) >= len(part) or int(part.sum()) == int(where.sum())
        for where, part in zip(features, parts, strict=True)
    )
