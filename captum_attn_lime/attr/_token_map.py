"""`TokenMap`: the token of each input cell, and the conversion of token scores to cells and features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_attn_lime.errors import InputError
from captum_attn_lime.features import pool, spread


class TokenMap(tuple[Tensor, ...]):
    """For each input tensor the token index of each cell, -1 for none.

    The tensors are integers, and broadcast to the inputs without their batch dimension.

    Example:
        >>> TokenMap((torch.tensor([0, 1, 2]), torch.tensor([-1])))
        TokenMap((3,): tokens 0 to 2, (1,): no token)
    """

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for index in self:
            some = index[index >= 0]
            tokens = f"tokens {int(some.min())} to {int(some.max())}" if some.numel() else "no token"
            shown.append(f"{tuple(index.shape)}: {tokens}")
        return f"TokenMap({', '.join(shown)})"


def place(scores: Tensor, token_map: TokenMap, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the tokens' scores (B, N) on the cells of each input.

    Cells without a token are NaN, since attention does not see them even if the output depends on them. Two kinds of
    cells are 0: pixels of an image outside its patches, which the model does not read, and other integer tensors
    beside token ids, such as masks, token types, or the ids of another stack.

    Example:
        >>> place(torch.tensor([[0.2, 0.8]]), TokenMap((torch.tensor([1, 0, -1]),)), (torch.zeros(1, 3),))
        (tensor([[0.8000, 0.2000,    nan]]),)
    """
    out = []
    scores = scores if scores.is_floating_point() else scores.to(torch.get_default_dtype())  # integers have no NaN
    whole = [not x.is_floating_point() for x in inputs]
    has_ids = any(w and bool((index >= 0).all()) for w, index in zip(whole, token_map, strict=True))
    for index, x, is_whole in zip(token_map, inputs, whole, strict=True):
        is_placed = bool((index >= 0).any())
        goes_with_ids = has_ids and is_whole and not is_placed
        is_zero = goes_with_ids or (x.dim() == 4 and is_placed)
        none = scores.new_full((len(scores), 1), 0.0 if is_zero else float("nan"))
        padded = torch.cat([scores, none], dim=1)  # for index -1
        out.append(padded[:, index.to(scores.device).expand(x.shape[1:])].contiguous())
    return tuple(out)


def by_feature(
    cells: tuple[Tensor, ...], index: TokenMap, feature_mask: Tensor | tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return each feature's total on all its cells; a token's score is first divided among the token's cells."""
    counts = torch.zeros(max(int(i.max()) for i in index) + 2)
    expanded = [i.expand(x.shape[1:]) for i, x in zip(index, cells, strict=True)]
    for i in expanded:
        counts.index_add_(0, i.flatten() + 1, torch.ones(i.numel()))
    shares = tuple(x / counts[i + 1].to(x) for i, x in zip(expanded, cells, strict=True))
    masks = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    # A feature is NaN if all its cells are.
    totals = pool(tuple(x.nan_to_num() for x in shares), masks, "sum")
    known = pool(tuple((~x.isnan()).to(x) for x in shares), masks, "sum")
    totals = totals.masked_fill(known == 0, float("nan"))
    full = tuple(m.to(x.device).expand(x.shape) for m, x in zip(masks, cells, strict=True))
    return spread(totals, full)


def check_token_map(token_map: Tensor | Sequence[Tensor], inputs: tuple[Tensor, ...], n_tokens: int) -> TokenMap:
    """Return a user's token map, validated against the inputs and the number of tokens."""
    maps = TokenMap((token_map,) if isinstance(token_map, Tensor) else token_map)
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
