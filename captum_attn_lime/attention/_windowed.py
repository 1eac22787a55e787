"""`WindowedMap`: attention inside windows of tokens, as an operator over all tokens of an example."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captum_attn_lime.attention._combine import Combine, WeightBlock
from captum_attn_lime.attention._fusion import HeadFusion
from captum_attn_lime.attention._map import AttentionKind, AttentionMap, DerivedMap
from captum_attn_lime.errors import InputError


class WindowedMap(DerivedMap):
    """Attention within windows, (windows, H, w, w), as (B, H, N, N): zero between tokens of different windows.

    Only the attention within the windows is stored and computed, so memory and time grow with N·w, not with N².
    A position of a window may have no token, if the grid of tokens was padded to whole windows. The weight on such
    positions is dropped, so rows of their window sum to less than 1.

    Args:
        inner: The windows' attention, (windows, H, w, w).
        token: The token at each position of each window, (windows, w): example · N + token, or -1 for none. Each token
            of each example has one position, and a window has tokens of one example.
        examples: Number of examples B.
        name: Module path; by default the inner map's.

    Raises:
        InputError: The index does not fit the inner map, or tokens are missing or duplicated.

    Example:
        >>> from captum_attn_lime.attention import DenseMap
        >>> even = DenseMap(torch.full((2, 1, 2, 2), 0.5), kind="self")
        >>> WindowedMap(even, torch.tensor([[0, 2], [1, -1]]), examples=1).dense()
        tensor([[[[0.5000, 0.0000, 0.5000],
                  [0.0000, 0.5000, 0.0000],
                  [0.5000, 0.0000, 0.5000]]]])
    """

    def __init__(self, inner: AttentionMap, token: Tensor, *, examples: int, name: str | None = None) -> None:
        windows, heads, width, keys = inner.shape
        if tuple(token.shape) != (windows, width) or keys != width:
            raise InputError(
                f"windows of shape {inner.shape} need one token for each position, shape {(windows, width)}, but the "
                f"index has shape {tuple(token.shape)}."
            )
        token = token.to(inner.device)
        slot = _slots(token, examples)
        n = slot.shape[1]
        kind: AttentionKind = "windowed" if inner.kind == "self" else inner.kind
        super().__init__((examples, heads, n, n), name=inner.name if name is None else name, kind=kind, is_causal=False)
        self.inner = inner
        self.token = token  # (windows, w): example * N + token, -1 for none
        self._slot = slot  # (B, N): window * w + position

    def by_token(self, x: Tensor) -> Tensor:
        """Return a tensor over the windows, (windows, H, w, d), as a tensor over the tokens, (B, H, N, d)."""
        windows, heads, width = x.shape[:3]
        by_place = x.transpose(1, 2).reshape(windows * width, heads, -1)
        return by_place[self._slot].transpose(1, 2)

    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves, (B, N) of bool."""
        return self.inner.reads_itself().flatten()[self._slot]

    def _first(self, examples: int) -> WindowedMap:
        n = self.shape[2]
        token = torch.where(self.token < examples * n, self.token, -1)
        return WindowedMap(self.inner, token, examples=examples, name=self.name)

    def with_fused_heads(self, head_fusion: HeadFusion, heads: int | Sequence[int] | None = None) -> AttentionMap:
        """Return the map with the windows' weights fused over heads, if they are stored."""
        inner = self.inner.with_fused_heads(head_fusion, heads)
        if inner is self.inner:
            return self
        fused = WindowedMap(inner, self.token, examples=self.shape[0], name=self.name)
        fused.copy_labels(self)
        return fused

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        batch, _, n, _ = self.shape
        width = self.token.shape[1]
        slot = self._slot[:, queries]  # (B, q)
        places, which = torch.unique(slot % width, return_inverse=True)
        inner = self.inner._rows(places, heads)  # (windows, h, places, w)
        window = slot // width
        weights = inner.transpose(1, 2)[window, which]  # (B, q, h, w)
        token = torch.where(self.token >= 0, self.token % n, n)  # within the example; n for none
        keys = token[window].unsqueeze(2).expand_as(weights)  # (B, q, h, w)
        # Positions without a token are scattered to an extra last column, which is then removed.
        out = weights.new_zeros(batch, len(queries), len(heads), n + 1).scatter_(3, keys, weights)
        return out[..., :n].transpose(1, 2)

    def _chosen(self, heads: int | Sequence[int] | None, combine: Combine) -> list[int]:
        return self.inner._chosen(heads, combine)

    def _reduce(self, r: Tensor, heads: list[int], combine: Combine, *, whole_rows: bool) -> Tensor:
        inner, held = self.inner, self.token >= 0  # (windows, w)
        if self.value is not None or self.output_gradient is not None:
            inner = copy.copy(inner)
            inner.value = None if self.value is None else self._by_position(self.value)
            inner.output_gradient = None if self.output_gradient is None else self._by_position(self.output_gradient)
            inner._held = self._held

        def of_tokens(block: WeightBlock) -> Tensor:
            return combine(replace(block, weights=block.weights * held[block.examples, None, None, block.keys]))

        # Keys without a token are dropped from the product. They matter only to a combination of whole rows.
        combined = of_tokens if whole_rows and not bool(held.all()) else combine
        vectors = self._by_position(r[..., None]).squeeze(-1)  # (windows, R, w)
        passed = inner._reduce(vectors, heads, combined, whole_rows=whole_rows)
        return self.by_token(passed[..., None]).squeeze(-1)

    def _by_position(self, x: Tensor) -> Tensor:
        """Return a tensor over the tokens, (B, h, N, d), as (windows, h, w, d); zero at positions without a token."""
        by_token = x.transpose(1, 2).flatten(0, 1)  # (B * N, h, d)
        held = (self.token >= 0)[..., None, None]
        return torch.where(held, by_token[self.token.clamp(min=0)], 0.0).transpose(1, 2)


def _slots(token: Tensor, examples: int) -> Tensor:
    """Return the position of each token, (B, N): the inverse of an index (windows, w)."""
    held = token >= 0
    total = int(held.sum())
    n = total // examples if examples > 0 else 0
    flat = token.flatten()
    places = held.flatten().nonzero().flatten()
    owner = torch.where(held, token // max(n, 1), -1)
    whole = (
        total > 0
        and total == n * examples
        and bool((flat[places].sort().values == torch.arange(total, device=token.device)).all())
        and bool((~held | (owner == owner.amax(dim=1, keepdim=True))).all())
    )
    if not whole:
        raise InputError(
            f"{token.shape[0]} windows have {total} tokens for {examples} examples; each token of each example must "
            "have one position, and a window must have tokens of one example."
        )
    slot = torch.empty(total, dtype=torch.int64, device=token.device)
    slot[flat[places]] = places
    return slot.reshape(examples, n)
