"""`ModelFacts`: what was found out about a model by trying it out, so that each thing is tried out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.passes import ForwardPass
from captum_attn_lime.probing import ValueProbe, mixed_layers
from captum_attn_lime.tokens import TokenMap, carrier_of, find_token_map, plain_token_map


class ModelFacts:
    """Which token each part of a model's input is, and which of its layers something beside attention has mixed."""

    def __init__(self) -> None:
        # With each fact the function it belongs to, held so that another one cannot come to have its id.
        self._token_maps: dict[Any, tuple[Any, TokenMap]] = {}
        self._carriers: dict[Any, tuple[Any, int | None]] = {}
        self._mixed: dict[Any, tuple[Any, frozenset[int]]] = {}

    def mark_mixed(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        forward_args: tuple[Any, ...],
        maps: list[AttentionMap],
    ) -> None:
        """Mark the layers over tokens that something else than attention has mixed."""
        calls = frozenset(m.index for m in maps if m.index is not None)
        kinds = tuple((x.dim(), x.dtype) for x in inputs)
        key = (id(forward_func), calls, kinds, _kinds_of(forward_args, inputs))
        if key not in self._mixed:
            self._mixed[key] = (forward_func, mixed_layers(forward_func, inputs, forward_args, calls))
        for attention in maps:
            attention.mixed = attention.index in self._mixed[key][1]

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
        kind = (id(forward_func), first, tuple((x.dim(), x.dtype) for x in inputs))
        key = (kind, tuple(x.shape[1:] for x in inputs), n_tokens)
        if key not in self._token_maps:
            carrier = self._carriers.get(kind, (None, None))[1]
            found = None if carrier is None else plain_token_map(inputs, n_tokens, carrier)
            if found is None:
                # Before a stage's tokens were merged, attention has mixed them: it must not tell what they are made of.
                silent = {index for index, same in stack.items() if not same and index < (first or 0)}
                probe = ValueProbe(forward_func, forward_args, len(inputs[0]), first or 0, silent)
                convolutions = done.recorder.convolutions
                found = find_token_map(inputs, n_tokens, convolutions, probe, is_first_call=not first)
                # Ids and embeddings that map one to one do so for every length.
                self._carriers[kind] = (forward_func, carrier_of(found, inputs, n_tokens))
            self._token_maps[key] = (forward_func, found)
        return self._token_maps[key][1]


def _kinds_of(forward_args: tuple[Any, ...], inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Return what further arguments are, apart from the inputs' sizes: they may switch parts of a model on."""
    sizes = {size for x in inputs for size in x.shape[1:]}
    return tuple(
        tuple("input's" if size in sizes else size for size in x.shape[1:]) if isinstance(x, Tensor) else repr(x)
        for x in forward_args
    )


def shortened(
    inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], *, longer_than: int, to: int
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]] | None:
    """Return the beginning of a long sequence, one example with its further arguments; None if it is not long.

    What holds of a model's way through its layers, which call is the last, what mixes tokens, which input carries them,
    holds of every length, and is found out faster on a few tokens.

    Args:
        inputs: Tensors (B, N) or (B, N, D).
        forward_args: Further arguments; those by example and token are cut too.
        longer_than: What is called long.
        to: How many tokens are kept.

    Example:
        >>> import torch
        >>> ids = torch.zeros(2, 2000)
        >>> short, (mask,) = shortened((ids,), (torch.ones(2, 2000),), longer_than=1000, to=16)
        >>> short[0].shape, mask.shape
        (torch.Size([1, 16]), torch.Size([1, 16]))
    """
    batch = len(inputs[0])
    lengths = {x.shape[1] for x in inputs if x.dim() in (2, 3)}
    if len(lengths) != 1 or any(x.dim() not in (2, 3) for x in inputs) or min(lengths) <= longer_than:
        return None
    (length,) = lengths

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        x = x[:1] if len(x) == batch else x
        for axis in range(1, x.dim()):
            if x.shape[axis] == length:
                x = x.narrow(axis, 0, to)
        return x

    return tuple(cut(x) for x in inputs), tuple(cut(x) for x in forward_args)
