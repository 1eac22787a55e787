"""Search for a model's token map: inputs are altered to see which tokens change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_attn_lime._capture.recorder import PatchConvolution
from captum_attn_lime._util.patch_grid import patch_numbers, patches_per_token
from captum_attn_lime.attr._probing import CHANGE, ValueProbe
from captum_attn_lime.attr._token_map import TokenMap
from captum_attn_lime.errors import TokenMapError

_ADVICE = "Pass token_map=: for each input tensor the token index of each cell, -1 for none."
# Integers this large are token ids; smaller ones may be categories, and every column has categories 0 and 1.
_SURELY_IDS = 64
# Changes of numbers relative to their size; the larger ones are for models that divide by a large scale.
_STEPS = (1.0, 1e3, 1e6)


class _MixedError(TokenMapError):
    """Altering the input does not show the cells of each token."""


def plain_token_map(inputs: tuple[Tensor, ...], n_tokens: int, carrier: int | None = None) -> TokenMap | None:
    """Return the map in which position j of an input is token j; None if no input has as many positions.

    Args:
        inputs: The input tensors, (B, ...).
        n_tokens: Number of tokens.
        carrier: Index of the input; by default the first that fits.
    """
    fitting = [i for i in _fitting(inputs, n_tokens) if carrier in (None, i)]
    if not fitting:
        return None
    carrier = fitting[0]
    out = [torch.full((1,) * (x.dim() - 1), -1) for x in inputs]
    out[carrier] = torch.arange(n_tokens).reshape(-1, *[1] * (inputs[carrier].dim() - 2))
    return TokenMap(out)


def _fitting(inputs: tuple[Tensor, ...], n_tokens: int) -> list[int]:
    return [i for i, x in enumerate(inputs) if x.dim() in (2, 3) and x.shape[1] == n_tokens]


def carrier_of(found: TokenMap, inputs: tuple[Tensor, ...], n_tokens: int) -> int | None:
    """Return the index of the input whose position j is token j in a map; None if there is none."""
    for carrier in _fitting(inputs, n_tokens):
        plain = plain_token_map(inputs, n_tokens, carrier)
        if plain is not None and all(torch.equal(a, b) for a, b in zip(found, plain, strict=True)):
            return carrier
    return None


def find_token_map(
    inputs: tuple[Tensor, ...],
    n_tokens: int,
    convolutions: Sequence[PatchConvolution],
    probe: ValueProbe,
    *,
    is_first_call: bool,
) -> TokenMap:
    """Return the token map of a model's inputs, found by altering the inputs and comparing the tokens.

    Position j of an input is token j if altering half of the positions, and then the other half, changes exactly these
    tokens. Otherwise the groups of cells that may form a token (a column, a position, the pixels of a patch) are
    numbered, and altered according to the binary digits of their numbers. If a token's value changes exactly for the
    digits of number c that are one, the token consists of group c alone. So 2 log2(groups) altered copies suffice.

    Args:
        inputs: The input tensors, (B, ...).
        n_tokens: Number of tokens of the attention.
        convolutions: The convolutions in the forward pass, which show an image's patches.
        probe: Runs the model on altered copies ``(rows, ...)`` of the example.
        is_first_call: Whether the probed call is the model's first.

    Raises:
        TokenMapError: The cells of the tokens cannot be determined with certainty.
    """
    try:
        for carrier in _fitting(inputs, n_tokens):
            if _is_one_to_one(inputs, carrier, n_tokens, probe):
                return plain_token_map(inputs, n_tokens, carrier) or TokenMap()
        return _found_token_map(inputs, n_tokens, convolutions, probe)
    except _MixedError as error:
        # A recurrent encoder's states depend on all earlier ids, and some models need the last token of the ids. The
        # map is then one-to-one if the model's first attention is over the only ids.
        plain = plain_token_map(inputs, n_tokens)
        carriers = [x for x in inputs if x.dim() == 2 and x.shape[1] == n_tokens]
        if is_first_call and plain is not None and len(carriers) == 1 and not carriers[0].is_floating_point():
            return plain
        raise TokenMapError(str(error)) from error.__cause__


def _found_token_map(
    inputs: tuple[Tensor, ...], n_tokens: int, convolutions: Sequence[PatchConvolution], probe: ValueProbe
) -> TokenMap:
    groups = [_cell_groups(x, convolutions, n_tokens) for x in inputs]
    numbers, start = [], 0
    for group in groups:
        numbers.append(torch.where(group < 0, -1, group + start))
        start += int(group.max()) + 1
    token_of = _tokens_of_cells(inputs, numbers, start, n_tokens, probe)
    padded = torch.cat([token_of, torch.tensor([-1])])  # index -1: cells of no group
    found = tuple(padded[n] for n in numbers)
    _check_found(inputs, groups, found, n_tokens, probe)
    return TokenMap(_shrink(x, f) for x, f in zip(inputs, found, strict=True))


def _is_one_to_one(inputs: tuple[Tensor, ...], carrier: int, n_tokens: int, probe: ValueProbe) -> bool:
    """Return whether altering positions of one input changes the tokens of the same index, and no others.

    Some ids may change nothing, since an adapter may replace the id of padding.
    """
    x = inputs[carrier]
    half = torch.rand(n_tokens, generator=torch.Generator().manual_seed(0)) < 0.5
    half[0], half[-1] = True, False
    if n_tokens == 1:
        half[0] = True
    chosen = torch.stack([torch.zeros_like(half), half, ~half]).to(x.device)
    cells = chosen.reshape(3, n_tokens, *[1] * (x.dim() - 2))
    altered = [t[:1].expand(3, *t.shape[1:]) for t in inputs]
    altered[carrier] = torch.where(cells, _other_values(x[:1], _STEPS[0]), x[:1])
    try:
        changed = _changed_tokens(tuple(altered), n_tokens, probe)
    except _MixedError:
        return False
    expected = chosen[1:].cpu()
    if x.is_floating_point():
        return bool((changed == expected).all())
    return bool(changed.any()) and not bool((changed & ~expected).any())


def _cell_groups(x: Tensor, convolutions: Sequence[PatchConvolution], n_tokens: int) -> Tensor:
    """Return the group number of each cell, without the batch: columns, positions along dimension 1, or patches."""
    if x.dim() == 4:
        for convolution in convolutions:
            if tuple(x.shape[1:]) == convolution.input_shape[1:]:
                return _patches(x, convolution, n_tokens)
        cut = _cut_patches(x, n_tokens)
        if cut is not None:
            return _patches(x, cut, n_tokens)
        raise TokenMapError(
            f"an image of shape {tuple(x.shape)} is not passed to a convolution, and cannot be split into square "
            f"patches for {n_tokens} tokens. {_ADVICE}"
        )
    if x.dim() not in (2, 3):
        raise TokenMapError(f"an input of shape {tuple(x.shape)} cannot be matched with attended tokens. {_ADVICE}")
    return torch.arange(x.shape[1]).reshape(-1, *[1] * (x.dim() - 2)).expand(x.shape[1:])


def _cut_patches(x: Tensor, n_tokens: int) -> PatchConvolution | None:
    """Return the smallest square patches of which there are no more than tokens, as a convolution.

    Models may split their image with a reshape. Like all others, these patches are then tested.
    """
    height, width = x.shape[2:]
    for side in range(2, min(height, width) + 1):
        grid = (height // side, width // side)
        if height % side == width % side == 0 and grid[0] * grid[1] <= n_tokens:
            return PatchConvolution(tuple(x.shape), grid, (side, side), (side, side), 0)
    return None


def _patches(x: Tensor, convolution: PatchConvolution, n_tokens: int) -> Tensor:
    """Return the patch of each pixel, or its block of patches, (C, H, W); -1 for pixels beyond the last patch."""
    padding = convolution.padding
    padded = any(padding) if isinstance(padding, (tuple, list)) else padding not in (0, "valid")
    if convolution.kernel != convolution.stride or padded:
        raise TokenMapError(
            f"the image is passed to a convolution with kernel {convolution.kernel}, stride {convolution.stride} and "
            f"padding {padding}; only patches that do not overlap have distinct tokens. {_ADVICE}"
        )
    side = patches_per_token(convolution.grid, n_tokens)
    patch = patch_numbers((x.shape[2], x.shape[3]), convolution.stride, convolution.grid, side)  # (H, W)
    return patch.expand(x.shape[1:])


def _tokens_of_cells(
    inputs: tuple[Tensor, ...], numbers: Sequence[Tensor], n_cells: int, n_tokens: int, probe: ValueProbe
) -> Tensor:
    """Return the token of each numbered group of cells, (cells,), -1 for none."""
    token_of = torch.full((n_cells,), -1)
    bits = max(1, (n_cells).bit_length())
    for step in _STEPS:
        patterns = _changed(inputs, numbers, bits, n_tokens, probe, step)  # (2 * bits, N)
        ones, zeros = patterns[:bits], patterns[bits:]
        touched = (ones | zeros).any(dim=0)
        mixed = touched & ~(ones ^ zeros).all(dim=0)
        if bool(mixed.any()):
            raise _MixedError(
                f"token {int(mixed.nonzero()[0])} depends on several positions, columns or patches of the input (or "
                f"they are mixed before the first layer). {_ADVICE}"
            )
        weights = 2 ** torch.arange(bits)
        codes = (ones.long() * weights[:, None]).sum(dim=0)  # the number of the cell plus one
        for token in touched.nonzero().flatten().tolist():
            cell = int(codes[token]) - 1
            if 0 <= cell < n_cells and token_of[cell] in (-1, token):
                token_of[cell] = token
            else:
                raise TokenMapError(
                    f"tokens {int(token_of[cell])} and {token} depend on the same part of the input. {_ADVICE}"
                )
        if bool((token_of >= 0).all()) or not any(x.is_floating_point() for x in inputs):
            break
    return token_of


def _changed(
    inputs: tuple[Tensor, ...], numbers: Sequence[Tensor], bits: int, n_tokens: int, probe: ValueProbe, step: float
) -> Tensor:
    """Return which tokens change if the cells with a one (then with a zero) in each binary digit are altered."""
    altered = []
    for x, number in zip(inputs, numbers, strict=True):
        code = (number + 1).to(x.device)  # from 1, so that every cell is altered in at least one copy
        digit = torch.stack([(code >> bit) & 1 for bit in range(bits)]).bool()  # (bits, cells...)
        chosen = torch.cat([torch.zeros_like(digit[:1]), digit, ~digit & (code > 0)])
        altered.append(torch.where(chosen, _other_values(x[:1], step), x[:1]))
    return _changed_tokens(tuple(altered), n_tokens, probe)


def _changed_tokens(altered: tuple[Tensor, ...], n_tokens: int, probe: ValueProbe) -> Tensor:
    """Return for each later copy which tokens' values differ from the first copy's, (copies - 1, N)."""
    try:
        value = probe(altered)
    except (IndexError, RuntimeError, ValueError) as error:
        raise _MixedError(f"the model fails on altered copies of the input ({error}). {_ADVICE}") from error
    if value is None or value.shape[0] != len(altered[0]) or value.shape[2] != n_tokens:
        raise TokenMapError(f"the values of the stack's first attention call do not show {n_tokens} tokens. {_ADVICE}")
    value = value.transpose(1, 2).flatten(2).double()  # (copies, N, ...)
    change = (value[1:] - value[:1]).abs().amax(dim=2)
    # Relative to each token's size, since columns may have very different scales.
    return (change > CHANGE * value[:1].abs().amax(dim=2)).cpu()


def _other_values(x: Tensor, step: float) -> Tensor:
    """Return another value for each cell: a shifted number, or a category that every column has."""
    if x.is_floating_point():
        return x + step * x.abs().clamp(min=1.0)
    if x.dtype == torch.bool:
        return ~x
    largest = int(x.max())
    if largest < _SURELY_IDS:
        return torch.where(x == 0, 1, 0).to(x.dtype)
    # Ids: another id of the same text, since a padding id could shift the positions of the others.
    distinct = torch.unique(x)
    return torch.where(x == largest, distinct[-2] if len(distinct) > 1 else largest - 1, largest).to(x.dtype)


def _check_found(
    inputs: tuple[Tensor, ...], groups: Sequence[Tensor], found: Sequence[Tensor], n_tokens: int, probe: ValueProbe
) -> None:
    """Check that some cells have tokens, and that cells without a token, beside others, bypass the attention."""
    for k, (x, group, f) in enumerate(zip(inputs, groups, found, strict=True)):
        missing = (f < 0) & (group >= 0)
        if bool((f >= 0).any()) and bool(missing.any()):
            lost = sorted(set(group[missing].tolist()))
            lost = [number for number in lost if not _bypasses_attention(inputs, k, group == number, probe)]
            if lost:
                raise TokenMapError(
                    f"of an input of shape {tuple(x.shape)} the positions, columns or patches {lost[:8]} change no "
                    f"token, while others do. {_ADVICE}"
                )
    if not any(bool((f >= 0).any()) for f in found):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise TokenMapError(f"inputs of shape {shapes} change none of the {n_tokens} attended tokens. {_ADVICE}")


def _bypasses_attention(inputs: tuple[Tensor, ...], which: int, cells: Tensor, probe: ValueProbe) -> bool:
    """Return whether cells that change no token change the output, which then reads them directly.

    False for ids and images, which are never read in part: such cells were not detected.
    """
    x = inputs[which][:1]
    are_ids = not x.is_floating_point() and x.dtype != torch.bool and int(x.max()) >= _SURELY_IDS
    if are_ids or x.dim() == 4:
        return False
    others = torch.cat([x, *(torch.where(cells.to(x.device), _other_values(x, step), x) for step in _STEPS)])
    altered = [t[:1].expand(len(others), *t.shape[1:]) for t in inputs]
    altered[which] = others
    try:
        outputs = probe.outputs(tuple(altered)).double()
    except (IndexError, RuntimeError, ValueError):
        return False
    return not all(torch.allclose(out, outputs[0], rtol=1e-6, atol=1e-9) for out in outputs[1:])


def _shrink(x: Tensor, found: Tensor) -> Tensor:
    """Return the map with the dimensions along which it is constant reduced to size 1."""
    if not bool((found >= 0).any()):
        return torch.full((1,) * (x.dim() - 1), -1)
    return found[:, :1] if x.dim() == 3 else found[:1] if x.dim() == 4 else found
