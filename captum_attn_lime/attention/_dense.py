"""`DenseMap`: attention stored as its weights; `HeadFusedMap`: the same with its heads fused."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_attn_lime.attention import _blocks as blocks
from captum_attn_lime.attention._blocks import Block, rows_of
from captum_attn_lime.attention._combine import Combine, Fuse
from captum_attn_lime.attention._fusion import HeadFusion, fuse_heads, pick_heads, select_heads
from captum_attn_lime.attention._map import AttentionKind, AttentionMap, needed_rows
from captum_attn_lime.errors import SelectionError


class DenseMap(AttentionMap):
    """Attention stored as the weights that the model computed itself (eager attention, explicit softmax).

    Args:
        weights: ``(B, H, Q, K)``.
        name: Module path.
        kind: Kind of the call.
    """

    def __init__(self, weights: Tensor, *, name: str = "", kind: AttentionKind = "unknown") -> None:
        batch, heads, queries, keys = weights.shape
        super().__init__((batch, heads, queries, keys), name=name, kind=kind, is_causal=False)
        self.weights = weights.detach()
        self._watch(self.weights)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.weights.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; at least float32."""
        return torch.promote_types(self.weights.dtype, torch.float32)

    def reads_itself(self) -> Tensor:
        """Return which tokens attend to themselves, or are attended to by others, (B, N) of bool.

        An even row is padding, whose scores were all masked by the same number. Models may mask each token's own key,
        and small weights round to zero, so a token that others attend to is not padding either.
        """
        self._check_unwritten()
        return reads_itself(self.weights)

    def _first(self, examples: int) -> DenseMap:
        return DenseMap(self.weights[:examples], name=self.name, kind=self.kind)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return pick_heads(self.weights[:, :, rows_of(queries)], heads).to(self.dtype)

    def _blocks(self, r: Tensor, heads: list[int], *, whole_rows: bool) -> Iterator[tuple[Block, Tensor]]:
        everything, size = (0, self.shape[3]), self.dtype.itemsize
        for part in blocks.tiles(needed_rows(r), self.shape, len(heads), size, lambda _: everything, whole_rows=True):
            yield part, pick_heads(self.weights[part.examples, :, rows_of(part.queries)], heads).to(self.dtype)

    def with_fused_heads(self, head_fusion: HeadFusion, heads: int | Sequence[int] | None = None) -> AttentionMap:
        """Return the map with its weights fused over heads, a copy of the size of one head."""
        return HeadFusedMap(self, head_fusion, heads)


class HeadFusedMap(AttentionMap):
    """Attention stored as weights fused over heads, N² numbers instead of H·N².

    Products work only with the same head fusion and heads.

    Args:
        attention: The map with its heads.
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        heads: Head indices; all by default.

    Example:
        >>> weights = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
        >>> HeadFusedMap(DenseMap(weights), "mean").vecmat(torch.ones(1, 1))
        tensor([[0.7500, 0.2500]])
    """

    def __init__(
        self, attention: DenseMap, head_fusion: HeadFusion = "mean", heads: int | Sequence[int] | None = None
    ) -> None:
        super().__init__(attention.shape, name=attention.name, kind=attention.kind, is_causal=attention.is_causal)
        self.copy_labels(attention)
        self.head_fusion, self.heads = head_fusion, select_heads(heads, self.shape[1], name=self.name)
        # (B, Q, K), a copy: the model may write into its weights afterwards
        weights = pick_heads(attention.weights, self.heads).to(attention.dtype)
        self.fused = fuse_heads(weights, head_fusion)
        queries, keys = self.shape[2:]
        self._reads_itself = reads_itself(attention.weights) if queries == keys else None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.fused.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; at least float32."""
        return self.fused.dtype

    def reads_itself(self) -> Tensor:
        """Return which tokens attend to themselves, or are attended to by others, (B, N) of bool."""
        if self._reads_itself is None:
            raise SelectionError(f"{self.name!r} is not square, so its tokens cannot attend to themselves.")
        return self._reads_itself

    def rows(
        self, queries: int | Sequence[int] | slice | Tensor, *, heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Raise a SelectionError, since heads are not stored."""
        raise self._has_no_heads()

    def _has_no_heads(self) -> SelectionError:
        return SelectionError(
            f"{self.name!r} was captured with its heads fused ({self.head_fusion}); capture(model) stores the heads."
        )

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return self.fused[:, None, rows_of(queries)]

    def _chosen(self, heads: int | Sequence[int] | None, combine: Combine) -> list[int]:
        chosen = super()._chosen(heads, combine)
        if not isinstance(combine, Fuse):
            raise self._has_no_heads()
        if combine.head_fusion != self.head_fusion or chosen != self.heads:
            raise SelectionError(
                f"{self.name!r} was captured with {self.head_fusion!r} over heads {self.heads}, not with "
                f"{combine.head_fusion!r} over heads {chosen}; capture(model) stores the heads."
            )
        return chosen

    def _first(self, examples: int) -> HeadFusedMap:
        part = copy.copy(self)
        part.shape, part.fused = (examples, *self.shape[1:]), self.fused[:examples]
        part._reads_itself = None if self._reads_itself is None else self._reads_itself[:examples]
        return part


def reads_itself(weights: Tensor) -> Tensor:
    """Return which tokens attend to themselves, or are attended to by others, (B, N), from weights (B, H, N, N)."""
    is_read = weights.diagonal(dim1=-2, dim2=-1).amax(dim=1) > 0
    even = (weights.amax(dim=-1) == weights.amin(dim=-1)).all(dim=1)
    real = ~even | even.all(dim=1, keepdim=True)
    if not bool((is_read | ~real).all()):
        by_row = weights.amax(dim=1) * real[..., None]  # (B, Q, K)
        is_read = is_read | (by_row.amax(dim=1) > 0)
    return is_read & real
