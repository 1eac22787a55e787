"""`SharedMap`: one example's attention map, repeated for a batch of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_attn_lime.attention import AttentionMap, Combine


class SharedMap(AttentionMap):
    """One example's map repeated n times, for n queries: each attention row is computed once for all of them."""

    def __init__(self, inner: AttentionMap, n: int) -> None:
        shape = (n, *inner.shape[1:])
        super().__init__(shape, name=inner.name, kind=inner.kind, is_causal=inner.is_causal)
        self.copy_labels(inner)
        self._inner = inner
        self._watch()

    @property
    def device(self) -> torch.device:
        """Where the weights are computed."""
        return self._inner.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        return self._inner.dtype

    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves, (n, N) of bool."""
        return self._inner.reads_itself().expand(self.shape[0], -1)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return self._inner.rows(queries, heads=heads).expand(self.shape[0], -1, -1, -1)

    def _first(self, examples: int) -> AttentionMap:
        return SharedMap(self._inner, min(examples, self.shape[0]))

    def _reduce(self, r: Tensor, heads: list[int], combine: Combine, *, whole_rows: bool) -> Tensor:
        found = self._inner.reduce(r.flatten(0, 1)[None], combine, heads=heads, whole_rows=whole_rows)  # (1, n * R, K)
        return found.reshape(*r.shape[:2], -1)
