"""What of an attribution lies on no feature: on special tokens, and on tokens that are no part of the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.adapters import Encoding, TextEncoding
from captum_attn_lime.features import is_repeated, pool

if TYPE_CHECKING:
    from pandas import DataFrame

# Class tokens of pictures and tables, registers, prefixes: nothing of the input stands for them.
ELSEWHERE = "tokens outside the input"
_NOT_FEATURES = "cells of no feature"
_TEXTS = ("the first text", "the second text")
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Outside:
    """What one attribution leaves outside the features.

    Attributes:
        shares: For each kind of token or cell its share of all magnitudes.
        scores: For each position that is no feature its score, where each has its own; positions count tokens, and
            None stands for tokens outside the input.
    """

    shares: dict[str, float]
    scores: dict[int | None, float]


def separate_mask(encoding: Encoding) -> Tensor | tuple[Tensor, ...]:
    """Return the feature mask in which each token of a text that is no word is a feature of its own."""
    mask = encoding.feature_mask
    if not isinstance(encoding, TextEncoding) or not isinstance(mask, Tensor):
        return mask
    n = len(encoding.feature_names[0])
    return torch.where(mask < n, mask, n + torch.arange(mask.shape[1], device=mask.device))


def outside_of(encoding: Encoding, given: Any, reading: str, total: float | None) -> Outside | None:
    """Return what one example's attribution leaves outside the features; None if it is not made of cells.

    Args:
        encoding: The input.
        given: What the method gave: scores in the shapes of the feature mask, with or without further dimensions.
        reading: How cells become features, as in :func:`compare`.
        total: Sum of all tokens' magnitudes, of attention over :func:`separate_mask`; None of other methods.
    """
    n = len(encoding.feature_names[0])
    masks = _as_tuple(encoding.feature_mask)
    parts = _as_tuple(given)
    if any(not isinstance(part, (Tensor, np.ndarray)) for part in parts) or len(parts) != len(masks):
        return None
    tensors = [
        part.detach().cpu().double() if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float64))
        for part in parts
    ]
    if any(t.shape[: m.dim()] != m.shape for t, m in zip(tensors, masks, strict=True)):
        return None
    # A column that attention never sees has no value; further dimensions are an embedding's.
    cells = tuple(t.nan_to_num().reshape(*m.shape, -1).sum(dim=-1) for t, m in zip(tensors, masks, strict=True))
    masks = tuple(m.cpu() for m in masks)
    repeated = reading == "first" or (reading == "auto" and is_repeated(cells, masks))
    ids = torch.cat([m.reshape(-1) for m in masks])
    flat = torch.cat([c.reshape(-1) for c in cells])
    inside = float((pool(cells, masks, "first")[0, :n] if repeated else flat[ids < n]).abs().sum())
    places = [int(k) for k in (ids >= n).nonzero().flatten()]
    names = _names(encoding, places)
    found = dict.fromkeys(names, 0.0)
    scores: dict[int | None, float] = {}
    if repeated and total is None:
        # Together they are one feature, whose score each of them carries.
        joint = abs(float(flat[places[0]])) if places else 0.0
        found = {", ".join(found): joint} if joint else {}
    else:
        for k, name in zip(places, names, strict=True):
            found[name] += abs(float(flat[k]))
        scores |= {k: float(flat[k]) for k in places} if isinstance(encoding, TextEncoding) else {}
    known = inside + sum(found.values())
    whole = max(known, total or 0.0)
    if whole - known > _ROUNDING * whole:
        found[ELSEWHERE] = scores[None] = whole - known
    return Outside({name: value / whole if whole else 0.0 for name, value in found.items()}, scores)


def share_table(found: Mapping[str, Outside | None]) -> DataFrame:
    """Return the shares, one row per kind of token and one column per method; NaN where a method has none."""
    import pandas as pd

    names = list(dict.fromkeys(name for own in found.values() if own for name in own.shares))
    columns = {m: [own.shares.get(name, np.nan) if own else np.nan for name in names] for m, own in found.items()}
    table: DataFrame = pd.DataFrame(columns, index=pd.Index(names, name="token", dtype=object), dtype=float)
    return table


def with_special_tokens(scores: DataFrame, found: Mapping[str, Outside | None], encoding: Encoding) -> DataFrame:
    """Return a table of scores with rows for the tokens that are no feature, at their places in the text."""
    import pandas as pd

    places = sorted({k for own in found.values() if own for k in own.scores if k is not None})
    elsewhere = any(None in own.scores for own in found.values() if own)
    rows = [*places, *[None] * elsewhere]
    names = [_written(encoding, k) for k in rows]
    columns = {m: [own.scores.get(k, np.nan) if own else np.nan for k in rows] for m, own in found.items()}
    special = pd.DataFrame(columns, index=pd.Index(names, name=scores.index.name, dtype=object), dtype=float)
    table = pd.concat([scores, special])
    n = len(scores)
    first = list(range(n))
    if places and isinstance(encoding.feature_mask, Tensor):
        ids = encoding.feature_mask[0].tolist()
        first = [ids.index(k) for k in range(n)]
    order = np.argsort([*first, *places, *[np.inf] * elsewhere], kind="stable")
    ordered: DataFrame = table.iloc[order]
    return ordered


def _names(encoding: Encoding, places: list[int]) -> list[str]:
    """Return what readers call each of the cells that are no feature."""
    if not isinstance(encoding, TextEncoding):
        return [_NOT_FEATURES] * len(places)
    explained = set(encoding.text_indices[0])
    out = []
    for k in places:
        span = encoding.token_spans[0][k]
        if span is None:
            out.append(encoding.tokens[0][k])
        else:
            out.append("spaces and signs between words" if span[0] in explained else _TEXTS[span[0]])
    return out


def _written(encoding: Encoding, place: int | None) -> str:
    """Return what stands for a token among features: in brackets, so that it is not taken for a word."""
    if not isinstance(encoding, TextEncoding):
        return ELSEWHERE
    token = ELSEWHERE if place is None else encoding.tokens[0][place]
    return token if token[:1] + token[-1:] in ("[]", "<>") else f"[{token}]"


def _as_tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
