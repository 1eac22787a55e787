"""From tokens to input cells: which token each cell of the input belongs to, and how tokens' scores are laid on cells.

A *token map* is one integer tensor per input tensor, broadcastable to it without its batch dimension, that holds for
each cell the index of its token, or -1 where the cell belongs to none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from captum_attn_lime.capture.recorder import PatchConvolution
from captum_attn_lime.errors import InputError, TokenMapError

TokenMap = tuple[Tensor, ...]
Probe = Callable[[tuple[Tensor, ...], int], "Tensor | None"]

_ASK = "Pass token_map=: for each input tensor the token index of each cell, -1 for none."
# How many altered copies of an example go through the model at once when its tokens are looked for.
_PROBE_ROWS = 64
# How far numbers are moved, in their own size: further where a model that divides by a large scale did not notice.
_STEPS = (1.0, 1e3, 1e6)


def place(scores: Tensor, token_map: TokenMap, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the tokens' scores (B, N) on the cells of each input; cells without a token get 0.

    Example:
        >>> place(torch.tensor([[0.2, 0.8]]), (torch.tensor([1, 0, -1]),), (torch.zeros(1, 3),))
        (tensor([[0.8000, 0.2000, 0.0000]]),)
    """
    padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)  # index -1 is the zero
    return tuple(
        padded[:, index.to(scores.device).expand(x.shape[1:])].contiguous()
        for index, x in zip(token_map, inputs, strict=True)
    )


def check_token_map(token_map: Tensor | Sequence[Tensor], inputs: tuple[Tensor, ...], n_tokens: int) -> TokenMap:
    """Return a user's token map as a tuple, checked against the inputs and the number of tokens."""
    maps = (token_map,) if isinstance(token_map, Tensor) else tuple(token_map)
    if len(maps) != len(inputs):
        raise InputError(f"token_map has {len(maps)} tensor(s) for {len(inputs)} input tensor(s); pass one for each.")
    for index, x in zip(maps, inputs, strict=True):
        try:
            index.expand(x.shape[1:])
        except RuntimeError:
            raise InputError(
                f"token_map of shape {tuple(index.shape)} does not broadcast to an input's cells, "
                f"shape {tuple(x.shape[1:])}."
            ) from None
        if index.is_floating_point() or (index.numel() and (int(index.min()) < -1 or int(index.max()) >= n_tokens)):
            raise InputError(f"token_map must hold token indices from 0 to {n_tokens - 1}, or -1 for none.")
    return maps


def find_token_map(
    inputs: tuple[Tensor, ...], n_tokens: int, convolutions: Sequence[PatchConvolution], probe: Probe
) -> TokenMap:
    """Return the token map of a model's inputs.

    Ids (B, N) and embeddings (B, N, D) map one to one. Images map through the patch convolution. Everything else, and
    the number of tokens before the patches, is found by altering one cell at a time and looking which token's value in
    the first attention call changes.

    Args:
        inputs: The input tensors, (B, ...).
        n_tokens: Number of tokens of the attention.
        convolutions: The convolutions seen in the forward pass.
        probe: Runs the model on altered copies ``(rows, ...)`` of the example and returns the first attention call's
            value, (rows, H, N, ...).

    Raises:
        TokenMapError: The tokens cannot be placed with certainty.
    """
    nothing = [torch.full((1,) * (x.dim() - 1), -1) for x in inputs]
    for position, x in enumerate(inputs):
        # Rows of numbers (B, n) are not taken as they stand: a table's columns may be in another order.
        ids_or_embeddings = x.is_floating_point() if x.dim() == 3 else x.dim() == 2 and not x.is_floating_point()
        if ids_or_embeddings and x.shape[1] == n_tokens:
            index = torch.arange(n_tokens)
            nothing[position] = index if x.dim() == 2 else index[:, None]
            return tuple(nothing)
    for position, x in enumerate(inputs):
        for convolution in convolutions:
            if x.dim() == 4 and tuple(x.shape) == convolution.input_shape:
                nothing[position] = _from_patches(inputs, position, convolution, n_tokens, probe)
                return tuple(nothing)
    if all(x.dim() == 2 for x in inputs):
        return _from_columns(inputs, n_tokens, probe)
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    raise TokenMapError(f"inputs of shape {shapes} cannot be matched with {n_tokens} attended tokens. {_ASK}")


def _from_patches(
    inputs: tuple[Tensor, ...], position: int, convolution: PatchConvolution, n_tokens: int, probe: Probe
) -> Tensor:
    """Return the token of each pixel, (1, H, W)."""
    (rows, columns), (stride_y, stride_x) = convolution.grid, convolution.stride
    padding = convolution.padding
    padded = any(padding) if isinstance(padding, (tuple, list)) else padding not in (0, "valid")
    if convolution.kernel != convolution.stride or padded or rows * columns > n_tokens:
        raise TokenMapError(
            f"the image goes through a convolution with kernel {convolution.kernel}, stride {convolution.stride} and "
            f"padding {padding} onto a grid of {rows} x {columns}, for {n_tokens} attended tokens; patches that do "
            f"not overlap are needed to say which pixels are which token's. {_ASK}"
        )
    height, width = inputs[position].shape[2:]
    y, x = torch.arange(height) // stride_y, torch.arange(width) // stride_x
    patch = torch.where((y < rows)[:, None] & (x < columns), y[:, None] * columns + x, -1)  # (H, W)
    last = rows * columns - 1
    altered = tuple(t[:1].repeat(2, *[1] * (t.dim() - 1)) for t in inputs)
    for row, index in enumerate((0, last)):
        altered[position][row][:, patch.to(altered[position].device) == index] += 1.0
    first_token, last_token = _changed_tokens(inputs, altered, n_tokens, probe)
    if first_token is None or last_token is None or last_token - first_token != last:
        raise TokenMapError(
            f"the first and the last of {last + 1} patches were found at tokens {first_token} and {last_token}, so "
            f"patches and tokens are not in the same order. {_ASK}"
        )
    return torch.where(patch < 0, -1, patch + first_token)[None]


def _from_columns(inputs: tuple[Tensor, ...], n_tokens: int, probe: Probe) -> TokenMap:
    """Return the token of each column of one or several tables, (columns,) each."""
    places = [(t, column) for t, x in enumerate(inputs) for column in range(x.shape[1])]
    found: dict[tuple[int, int], int] = {}
    for step in _STEPS:
        missing = [place for place in places if place not in found]
        for start in range(0, len(missing), _PROBE_ROWS):
            chunk = missing[start : start + _PROBE_ROWS]
            altered = tuple(x[:1].repeat(len(chunk), 1) for x in inputs)
            for row, (t, column) in enumerate(chunk):
                altered[t][row, column] = _other_value(inputs[t], column, step)
            changed = _changed_tokens(inputs, altered, n_tokens, probe)
            found.update({place: token for place, token in zip(chunk, changed, strict=True) if token is not None})
    tokens = [found.get(place, -1) for place in places]
    if -1 in tokens or len(set(tokens)) != len(tokens):
        raise TokenMapError(
            f"the columns of the input were found at tokens {tokens} (-1: changing the column changed no token); "
            f"one token for each column is needed. {_ASK}"
        )
    starts = torch.tensor([0] + [x.shape[1] for x in inputs]).cumsum(0).tolist()
    return tuple(torch.tensor(tokens[a:b]) for a, b in pairwise(starts))


def _other_value(x: Tensor, column: int, step: float) -> float:
    """Return another value than the first example's: some steps away, or a category that every column has."""
    value = x[0, column].item()
    if x.is_floating_point():
        return float(value) + step * max(1.0, abs(float(value)))
    return 1 if value == 0 else 0


def _changed_tokens(
    inputs: tuple[Tensor, ...], altered: tuple[Tensor, ...], n_tokens: int, probe: Probe
) -> list[int | None]:
    """Return, for each altered copy of the first example, the one token whose value changed; None for no token."""
    both = tuple(torch.cat([x[:1], a]) for x, a in zip(inputs, altered, strict=True))
    value = probe(both, len(both[0]))
    if value is None or value.shape[0] != len(both[0]) or value.shape[2] != n_tokens:
        raise TokenMapError(f"the values of the first attention call do not show {n_tokens} tokens. {_ASK}")
    value = value.transpose(1, 2).flatten(2).double()  # (rows, N, ...)
    change = (value[1:] - value[:1]).abs().amax(dim=2)  # (altered rows, N)
    # Against each token's own size: columns of very different scale stand side by side.
    changed = change > 1e-5 * value[:1].abs().amax(dim=2)
    if bool((changed.sum(dim=1) > 1).any()):
        raise TokenMapError(f"one part of the input changes several tokens before the first attention call. {_ASK}")
    return [int(row.nonzero()[0]) if bool(row.any()) else None for row in changed]
