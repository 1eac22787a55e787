"""`DenseMap`: attention whose probabilities the model computed itself; `HeadFusedMap`: the same without its heads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_attn_lime.attention import _blocks as blocks
from captum_attn_lime.attention._blocks import Block, Gate, Weights, rows_of
from captum_attn_lime.attention._fusion import HeadFusion, fuse_heads, select_heads
from captum_attn_lime.attention._map import AttentionKind, AttentionMap, needed_rows, pick_heads
from captum_attn_lime.errors import SelectionError


class DenseMap(AttentionMap):
    """Attention whose probabilities the model computed itself (eager and hand-written softmax).

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
        """The weights' type, or float32 where that is narrower."""
        return torch.promote_types(self.weights.dtype, torch.float32)

    def reads_itself(self) -> Tensor:
        """Return which tokens attend to themselves, or are attended to by others, (B, N) of bool.

        A row that is the same for all keys is that of padding whose scores were all masked by the same number. Models
        may mask each token's own key, and small weights round to zero: a token that others read is none of padding.
        """
        self._check_unwritten()
        return reads_itself(self.weights)

    def _first(self, examples: int) -> DenseMap:
        return DenseMap(self.weights[:examples], name=self.name, kind=self.kind)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return pick_heads(self.weights[:, :, rows_of(queries)], heads).to(self.dtype)

    def _parts(self, r: Tensor, heads: list[int], *, cut_keys: bool = True) -> tuple[Weights, Iterator[Block]]:
        def weights(block: Block) -> Tensor:
            part = self.weights[block.examples, :, rows_of(block.queries)]
            return pick_heads(part, heads).to(self.dtype)

        everything, size = (0, self.shape[3]), self.dtype.itemsize
        return weights, blocks.tiles(needed_rows(r), self.shape, len(heads), size, lambda _: everything, cut_keys=False)

    def with_fused_heads(self, head_fusion: HeadFusion, heads: int | Sequence[int] | None = None) -> AttentionMap:
        """Return the map with its weights fused over heads: a copy of one head's size."""
        return HeadFusedMap(self, head_fusion, heads)


class HeadFusedMap(AttentionMap):
    """Weights that the model computed itself, of which only the fusion over heads was kept, N² in place of H·N².

    Its verbs work for that head fusion and those heads only.

    Args:
        attention: The map with its heads.
        head_fusion: How they are fused.
        heads: Which heads; all by default.

    Example:
        >>> weights = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
        >>> HeadFusedMap(DenseMap(weights), "mean").vecmat(torch.ones(1, 1))
        tensor([[0.7500, 0.2500]])
    """

    def __init__(
        self, attention: DenseMap, head_fusion: HeadFusion = "mean", heads: int | Sequence[int] | None = None
    ) -> None:
        super().__init__(attention.shape, name=attention.name, kind=attention.kind, is_causal=attention.is_causal)
        self.take_labels(attention)
        self.head_fusion, self.heads = head_fusion, select_heads(heads, self.shape[1], name=self.name)
        # (B, Q, K), a tensor of its own: the model may write into its weights now
        weights = pick_heads(attention.weights, self.heads).to(attention.dtype)
        self.fused = fuse_heads(weights, head_fusion)
        queries, keys = self.shape[2:]
        self._reads_itself = reads_itself(attention.weights) if queries == keys else None
        self._dtype = attention.dtype
        self._watch()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.fused.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type, or float32 where that is narrower."""
        return self._dtype

    def reads_itself(self) -> Tensor:
        """Return which tokens attend to themselves, or are attended to by others, (B, N) of bool."""
        if self._reads_itself is None:
            raise SelectionError(f"{self.name!r} is not square, so no token of it attends to itself.")
        return self._reads_itself

    def rows(
        self, queries: int | Sequence[int] | slice | Tensor, *, heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Raise: heads were not kept."""
        raise self._has_no_heads()

    def _has_no_heads(self) -> SelectionError:
        return SelectionError(
            f"{self.name!r} was captured with its heads fused ({self.head_fusion}); capture it with Keep() to read "
            "heads."
        )

    def _gate(self, heads: list[int]) -> Gate:
        raise self._has_no_heads()

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return self.fused[:, None, rows_of(queries)].to(self.dtype)

    def _checked(
        self, r: Tensor, heads: int | Sequence[int] | None, head_fusion: str
    ) -> tuple[Tensor, list[int], HeadFusion]:
        vectors, chosen, fusion = super()._checked(r, heads, head_fusion)
        self.check_heads(chosen, fusion)
        return vectors, chosen, fusion

    def check_heads(self, heads: list[int], head_fusion: HeadFusion) -> None:
        """Raise where another fusion, or other heads, than those that were kept are asked for."""
        if head_fusion != self.head_fusion or heads != self.heads:
            raise SelectionError(
                f"{self.name!r} was captured with {self.head_fusion!r} over heads {self.heads}; {head_fusion!r} over "
                f"heads {heads} was asked for. Capture it with Keep() to keep its heads."
            )

    def _first(self, examples: int) -> HeadFusedMap:
        part = copy.copy(self)
        part.shape, part.fused = (examples, *self.shape[1:]), self.fused[:examples]
        part._reads_itself = None if self._reads_itself is None else self._reads_itself[:examples]
        return part


def reads_itself(weights: Tensor) -> Tensor:
    """Return which tokens attend to themselves, or are attended to by others, (B, N), by the weights (B, H, N, N)."""
    own = weights.diagonal(dim1=-2, dim2=-1).amax(dim=1) > 0
    even = (weights.amax(dim=-1) == weights.amin(dim=-1)).all(dim=1)
    real = ~even | even.all(dim=1, keepdim=True)
    if not bool((own | ~real).all()):
        by_row = weights.amax(dim=1) * real[..., None]  # (B, Q, K)
        own = own | (by_row.amax(dim=1) > 0)
    return own & real
