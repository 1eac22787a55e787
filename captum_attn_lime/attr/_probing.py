"""Experiments with altered inputs: the cells of each token, and whether anything but attention mixes tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._capture import Recorder, record
from captum_attn_lime._capture.recorder import RowView
from captum_attn_lime._util.captum import run_forward
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._inputs import copied, with_extra_example

# Relative tolerance: a token's value has changed if it differs by more than this share of its size.
CHANGE = 1e-5
# Number of rows sampled to determine whether a map is causal.
_SAMPLED_ROWS = 64


class ValueProbe:
    """Runs the model on altered copies of an example and returns the values of one attention call.

    Args:
        forward_func: The model.
        forward_args: Its further arguments, for a batch.
        batch: Number of examples of that batch; the copies use the first one's arguments.
        call: Index of the attention call.
        silent: Earlier calls whose outputs are replaced by zeros, so that attention does not mix the tokens.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        forward_args: tuple[Any, ...],
        batch: int,
        call: int,
        silent: Collection[int] = (),
    ) -> None:
        self._forward_func = forward_func
        self._args = (forward_args, batch)
        self._call = call
        self._silent = silent

    def __call__(self, altered: tuple[Tensor, ...]) -> Tensor | None:
        """Return the values (copies, H, N, ...), or None if there was no such call."""

        def silenced(call: int, output: Tensor, rows: RowView) -> Tensor:
            return torch.zeros_like(output) if call in self._silent else output

        substitute = silenced if self._silent else None
        recorder = run_copies(self._forward_func, altered, self._args, values_at=(self._call,), substitute=substitute)
        value = recorder.values.get(self._call)
        return None if value is None else value[: len(altered[0])]

    def outputs(self, altered: tuple[Tensor, ...]) -> Tensor:
        """Return the model's outputs for the copies, (copies, ...)."""
        with torch.inference_mode(False), torch.no_grad():
            return run_forward(self._forward_func, altered, _repeated(*self._args, len(altered[0])))


def mixed_layers(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    forward_args: tuple[Any, ...],
    layers: Collection[int],
) -> frozenset[int]:
    """Return the layers of a stack whose tokens were mixed by something other than attention.

    A recurrence, a convolution over tokens or a norm over the sequence mixes tokens without attention, and products of
    layers would ignore that. In a run in which the outputs of the stack's attention are zero, except for noise at half
    of the tokens of the first layer, the values of the other tokens must not change in any later layer; and the same
    with the halves exchanged.

    Args:
        forward_func: The model.
        inputs: Its input tensors, (B, ...); only the first example is used.
        forward_args: Its further arguments.
        layers: Indices of the stack's attention calls.
    """
    first, *later = sorted(layers)
    if not later:
        return frozenset()
    noise = _Noise(first, set(layers))
    copies = tuple(x[:1].expand(4, *x.shape[1:]) for x in inputs)
    args = (forward_args, len(inputs[0]))
    recorder = run_copies(forward_func, copies, args, values_at=later, substitute=noise)
    mixed = set()
    for layer in later:
        value = recorder.values.get(layer)
        if value is None or noise.chosen is None or value.shape[2] != len(noise.chosen) or len(value) < len(copies[0]):
            continue  # different tokens from the first layer's: products raise for these
        plain, again, *noisy = value[:4].transpose(1, 2).flatten(2).double()  # (N, ...) each
        size = plain.abs().amax(dim=1)
        if bool(((plain - again).abs().amax(dim=1) > CHANGE * size).any()):
            continue  # the model is random, so equal copies differ
        for copy, chosen in zip(noisy, (noise.chosen, ~noise.chosen), strict=True):
            changed = (copy - plain).abs().amax(dim=1) > CHANGE * size
            if bool((changed.cpu() & ~chosen).any()):
                mixed.add(layer)
    return frozenset(mixed)


class _Noise:
    """Substitute for a stack's attention outputs: zeros, but noise in the first layer of the third and fourth copy.

    The third copy has noise at the chosen tokens, the fourth at all others.
    """

    def __init__(self, first: int, layers: set[int]) -> None:
        self._first, self._layers = first, layers
        self.chosen: Tensor | None = None  # tokens with noise, (N,) of bool

    def __call__(self, call: int, output: Tensor, rows: RowView) -> Tensor:
        if call not in self._layers:
            return output
        if call != self._first or len(rows(output)) < 4:
            return torch.zeros_like(output)
        # The gradient of a sum over chosen rows has the noise on exactly these rows, in the model's layout.
        with torch.enable_grad():
            place = torch.zeros_like(output).requires_grad_()
            by_row = rows(place)  # (B, H, N, d)
            generator = torch.Generator().manual_seed(0)
            self.chosen = torch.rand(by_row.shape[2], generator=generator) < 0.5
            self.chosen[0] = True
            noise = torch.randn(by_row.shape, generator=generator).to(by_row)
            noise[2] *= self.chosen.to(noise)[:, None]
            noise[3] *= (~self.chosen).to(noise)[:, None]
            noise[:2], noise[4:] = 0.0, 0.0
            (at_place,) = torch.autograd.grad((by_row * noise).sum(), place)
        return torch.empty_like(output).copy_(at_place)  # with the output's strides, which a view may need


def _repeated(forward_args: tuple[Any, ...], batch: int, n: int) -> tuple[Any, ...] | None:
    """Return further arguments with the first example repeated n times; other arguments are unchanged."""

    def repeated(x: Any) -> Any:
        is_by_example = isinstance(x, Tensor) and x.dim() and len(x) == batch
        return x[:1].expand(n, *x.shape[1:]) if is_by_example else x

    return tuple(repeated(x) for x in forward_args) or None


def run_copies(
    forward_func: Callable[..., Any], copies: tuple[Tensor, ...], args: tuple[tuple[Any, ...], int], **watch: Any
) -> Recorder:
    """Run the model on copies of one example, and return the recorder.

    Args:
        forward_func: The model.
        copies: Its input tensors, (copies, ...).
        args: Its further arguments for a batch, and the batch size.
        watch: Options of `record`.
    """

    def run(copies: tuple[Tensor, ...], *, dense: bool = False) -> Recorder:
        n = len(copies[0])
        inputs, forward_args = copied(tuple(x.contiguous() for x in copies)), _repeated(*args, n)
        if dense and forward_args is not None:
            forward_args = tuple(x.contiguous() if isinstance(x, Tensor) else x for x in forward_args)
        forward_args = copied(forward_args)
        try:
            with torch.inference_mode(False), torch.no_grad(), record(forward_func, batch=n, **watch) as recorder:
                run_forward(forward_func, inputs, forward_args)
        except RuntimeError as error:
            if dense or "refers to a single memory location" not in str(error):
                raise
            return run(copies, dense=True)  # the model writes into its further arguments
        return recorder

    with without_drawing():
        recorder = run(copies)
        if recorder.is_ambiguous:  # as many heads as copies
            recorder = run(tuple(with_extra_example(x, len(copies[0])) for x in copies))
    return recorder


def looks_causal(attention: AttentionMap) -> bool:
    """Return whether no query attends to later keys, tested on a sample of rows.

    Example:
        >>> from captum_attn_lime.attention import ScoreMap
        >>> x = torch.zeros(1, 1, 3, 4)
        >>> looks_causal(ScoreMap(x, x, is_causal=True, kind="self")), looks_causal(ScoreMap(x, x, kind="self"))
        (True, False)
    """
    _, _, queries, keys = attention.shape
    if attention.kind not in ("self", "windowed") or keys < 2:
        return False
    if attention.is_causal:
        return True
    step = max(1, queries // _SAMPLED_ROWS)
    rows = torch.arange(0, queries, step)
    behind = torch.arange(keys) > rows[:, None] + keys - queries  # (q, K)
    real = attention.reads_itself()[:, rows] if queries == keys else torch.ones(attention.shape[0], len(rows)).bool()
    weights = attention.rows(rows).amax(dim=1)  # (B, q, K)
    is_behind = behind.to(weights.device) & real.to(weights.device)[..., None]
    return bool(is_behind.any()) and not bool((weights > 0)[is_behind].any())
