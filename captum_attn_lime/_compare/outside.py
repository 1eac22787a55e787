"""The share of an attribution outside the features: on special tokens, and on tokens that are not part of the input."""

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

# Class tokens of images and tables, registers, prefixes: they have no counterpart in the input.
ELSEWHERE = "tokens outside the input"
_NOT_FEATURES = "cells of no feature"
_TEXTS = ("the first text", "the second text")
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Outside:
    """The part of one attribution that lies outside the features.

    Attributes:
        shares: Share of all magnitudes for each kind of token or cell.
        scores: Score of each token position that is not a feature, if positions have separate scores; the key None
            holds tokens outside the input.
    """

    shares: dict[str, float]
    scores: dict[int | None, float]


def separate_mask(encoding: Encoding) -> Tensor | tuple[Tensor, ...]:
    """Return the feature mask in which each token of a text outside the words is a separate feature."""
    mask = encoding.feature_mask
    if not isinstance(encoding, TextEncoding) or not isinstance(mask, Tensor):
        return mask
    n = len(encoding.feature_names[0])
    return torch.where(mask < n, mask, n + torch.arange(mask.shape[1], device=mask.device))


def outside_of(encoding: Encoding, given: Any, reading: str, total: float | None) -> Outside | None:
    """Return the part of one example's attribution outside the features; None if it has no cells.

    Args:
        encoding: The input.
        given: The method's result: scores in the shapes of the feature mask, possibly with further dimensions.
        reading: How cells are aggregated to features, as in :func:`compare`.
        total: Sum of all tokens' magnitudes, for attention over :func:`separate_mask`; None for other methods.
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
    # NaN marks a column that attention never sees; further dimensions belong to embeddings.
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
        # Together they form one feature, whose score is repeated in each of them.
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
    """Return the shares, one row per kind of token and one column per method; NaN if a method has none."""
    import pandas as pd

    names = list(dict.fromkeys(name for part in found.values() if part for name in part.shares))
    columns = {m: [part.shares.get(name, np.nan) if part else np.nan for name in names] for m, part in found.items()}
    table: DataFrame = pd.DataFrame(columns, index=pd.Index(names, name="token", dtype=object), dtype=float)
    return table


def with_special_tokens(scores: DataFrame, found: Mapping[str, Outside | None], encoding: Encoding) -> DataFrame:
    """Return the scores with additional rows for the tokens that are not features, in the order of the text."""
    import pandas as pd

    places = sorted({k for part in found.values() if part for k in part.scores if k is not None})
    elsewhere = any(None in part.scores for part in found.values() if part)
    rows = [*places, *[None] * elsewhere]
    names = [_token_name(encoding, k) for k in rows]
    columns = {m: [part.scores.get(k, np.nan) if part else np.nan for k in rows] for m, part in found.items()}
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
    """Return a readable name for each cell that is not a feature."""
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


def _token_name(encoding: Encoding, place: int | None) -> str:
    """Return a token's name among the features, in brackets to distinguish it from words."""
    if not isinstance(encoding, TextEncoding):
        return ELSEWHERE
    token = ELSEWHERE if place is None else encoding.tokens[0][place]
    return token if token[:1] + token[-1:] in ("[]", "<>") else f"[{token}]"


def _as_tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
