"""`OneRowMap`: a layer that a model computes for one token only, as an operator over all tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_attn_lime.attention._combine import Combine
from captum_attn_lime.attention._map import AttentionMap, DerivedMap


class OneRowMap(DerivedMap):
    """A last layer that was computed only for the one token that the prediction reads, as a layer over all tokens.

    Every row equals the computed row, so the product with a vector that is zero on all other tokens is that of the
    whole layer. A method then treats it like any other layer.

    Args:
        inner: The layer's map, with one query.

    Example:
        >>> from captum_attn_lime.attention import DenseMap
        >>> layer = OneRowMap(DenseMap(torch.tensor([[[[0.25, 0.75]]]])))
        >>> layer.residual_vecmat(torch.tensor([[1.0, 0.0]]))
        tensor([[0.6250, 0.3750]])
    """

    def __init__(self, inner: AttentionMap) -> None:
        batch, heads, _, keys = inner.shape
        super().__init__((batch, heads, keys, keys), name=inner.name, kind="self", is_causal=False)
        self.copy_labels(inner)
        self.inner = inner
        self.value = inner.value
        if inner.output_gradient is not None:
            self.output_gradient = inner.output_gradient.expand(-1, -1, keys, -1)

    def reads_itself(self) -> Tensor:
        """Return which tokens the row attends to, (B, N) of bool."""
        return self.rows(0).amax(dim=(1, 2)) > 0

    def _chosen(self, heads: int | Sequence[int] | None, combine: Combine) -> list[int]:
        return self.inner._chosen(heads, combine)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        row = self.inner._rows(torch.zeros(1, dtype=torch.int64, device=self.device), heads)
        return row.expand(-1, -1, len(queries), -1)

    def _first(self, examples: int) -> AttentionMap:
        return OneRowMap(self.inner.first(examples))
