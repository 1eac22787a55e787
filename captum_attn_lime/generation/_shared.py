"""`SharedMap`: one example's attention map, repeated for a batch of queries."""

from __future__ import annotations

from torch import Tensor

from captum_attn_lime.attention import AttentionMap, Combine, DerivedMap


class SharedMap(DerivedMap):
    """One example's map repeated n times, for n queries: each attention row is computed once for all of them."""

    def __init__(self, inner: AttentionMap, n: int) -> None:
        shape = (n, *inner.shape[1:])
        super().__init__(shape, name=inner.name, kind=inner.kind, is_causal=inner.is_causal)
        self.copy_labels(inner)
        self.inner = inner

    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves, (n, N) of bool."""
        return self.inner.reads_itself().expand(self.shape[0], -1)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return self.inner.rows(queries, heads=heads).expand(self.shape[0], -1, -1, -1)

    def _first(self, examples: int) -> AttentionMap:
        return SharedMap(self.inner, min(examples, self.shape[0]))

    def _reduce(self, r: Tensor, heads: list[int], combine: Combine, *, whole_rows: bool) -> Tensor:
        found = self.inner.reduce(r.flatten(0, 1)[None], combine, heads=heads, whole_rows=whole_rows)  # (1, n * R, K)
        return found.reshape(*r.shape[:2], -1)
