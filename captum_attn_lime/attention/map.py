"""`AttentionMap`: one captured attention call as a linear operator with the verbs rows, vecmat, row_sums and dense."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_attn_lime.attention import blocks, fused
from captum_attn_lime.attention.fusion import HeadFusion, check_head_fusion, select_heads
from captum_attn_lime.errors import SelectionError, UnreadableAttentionError

# What is added to a score to mask it: -10,000 in old models, the least number of the type in new ones.
_MASKED = -9_000.0

AttentionKind = Literal["self", "windowed", "cross", "pool", "channel", "unknown"]


class AttentionMap(ABC):
    """One captured attention call: a row-stochastic operator A of shape (B, H, Q, K), rows are queries.

    Attributes:
        name: Path of the module that made the call; empty where no module was entered.
        kind: ``"self"`` where queries and keys come from the same tokens, ``"windowed"`` where that is so and each
            token sees only those of its window, ``"cross"`` where they do not come from the same tokens, ``"pool"`` for
            attention without a query of its own (one learned row), ``"channel"`` where queries and keys are features
            and not tokens, ``"unknown"`` where the call did not tell.
        is_causal: Whether the call was flagged causal (query i sees keys up to i); a mask may be causal without it.
        shape: ``(B, H, Q, K)``: examples, query heads, query tokens, key tokens.
        index: Which call of the captured forward pass it was; None for a map made by hand.
        follows: Indices of the calls that its query tokens had passed through before.
        reads: Indices of the calls that its key tokens had passed through before.
        mixed: Whether tokens were mixed by something else than attention since the first call of its stack, as far as
            that was looked for; products of layers would leave that out.
    """

    def __init__(self, shape: tuple[int, int, int, int], *, name: str, kind: AttentionKind, is_causal: bool) -> None:
        self.shape = shape
        self.name = name
        self.kind: AttentionKind = kind
        self.is_causal = is_causal
        self.index: int | None = None
        self.follows: frozenset[int] = frozenset()
        self.reads: frozenset[int] = frozenset()
        self.mixed = False

    def __repr__(self) -> str:
        causal = ", causal" if self.is_causal else ""
        return f"{type(self).__name__}({self.name!r}, (B, H, Q, K)={self.shape}, {self.kind}{causal})"

    def _watch(self, *tensors: Tensor) -> None:
        """Remember the state of tensors that are kept as the model made them, not copied."""
        self._watched = [(t, t._version) for t in tensors if not t.is_inference()]

    def _check_unwritten(self) -> None:
        if any(t._version != version for t, version in self._watched):
            raise UnreadableAttentionError(
                f"the model has written into the query, key, mask or weights of {self.name!r} since it computed this "
                "attention, so the weights can no longer be read."
            )

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are computed."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The floating type of the weights; at least float32."""

    @abstractmethod
    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        """Return the weights of chosen rows and heads, (B, h, q, K)."""

    def rows(
        self, queries: int | Sequence[int] | slice | Tensor, *, heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return the weights of chosen query rows.

        Args:
            queries: Row indices, the same for every example; negative ones count from the end.
            heads: Head indices; all by default.

        Returns:
            ``(B, heads, len(queries), K)``.

        Raises:
            SelectionError: A row or head the map does not have.
        """
        self._check_unwritten()
        index = _row_index(queries, self.shape[2], self.name).to(self.device)
        return self._rows(index, select_heads(heads, self.shape[1], name=self.name))

    def vecmat(
        self, r: Tensor, *, head_fusion: HeadFusion = "mean", heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return rᵀA with A fused over heads, in memory that does not grow with Q·K.

        Rows on which ``r`` is zero for every example are not computed at all.

        Args:
            r: One weight per query, (B, Q).
            head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
            heads: Head indices; all by default.

        Returns:
            ``(B, K)``.
        """
        self._check_unwritten()
        chosen = select_heads(heads, self.shape[1], name=self.name)
        return self._vecmat(self._check_vector(r), chosen, check_head_fusion(head_fusion))

    def row_sums(self, *, head_fusion: HeadFusion = "mean", heads: int | Sequence[int] | None = None) -> Tensor:
        """Return the sum of each fused row, (B, Q): 1 for the mean of plain softmax rows, not so for max or min."""
        self._check_unwritten()
        chosen = select_heads(heads, self.shape[1], name=self.name)
        return blocks.row_sums(self._rows, self.shape, chosen, check_head_fusion(head_fusion), self.device)

    def dense(self) -> Tensor:
        """Return all weights, (B, H, Q, K): memory grows with Q·K, so ask only for what is to be looked at."""
        return self.rows(slice(None))

    @abstractmethod
    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves, (B, N) of bool: padding may not."""

    def first(self, examples: int) -> AttentionMap:
        """Return the map of the first examples of the batch."""
        part = self._first(examples)
        part.index, part.follows, part.reads, part.mixed = self.index, self.follows, self.reads, self.mixed
        return part

    @abstractmethod
    def _first(self, examples: int) -> AttentionMap:
        """Return the map of the first examples of the batch."""

    def _vecmat(self, r: Tensor, heads: list[int], head_fusion: HeadFusion) -> Tensor:
        return blocks.vecmat(self._rows, self.shape, r, heads, head_fusion)

    def _check_vector(self, r: Tensor) -> Tensor:
        expected = (self.shape[0], self.shape[2])
        if tuple(r.shape) != expected:
            raise SelectionError(
                f"vecmat on {self.name!r} needs one weight per query, shape (B, Q) = {expected}, "
                f"but got {tuple(r.shape)}."
            )
        return r.to(device=self.device, dtype=self.dtype)


class ScoreMap(AttentionMap):
    """Attention kept as what a fused kernel was given: query, key, masks, scale and causal flag; linear in tokens.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, Hk, K, d)`` where Hk divides H (grouped queries).
        masks: Each broadcastable to ``(B, H, Q, K)``: boolean (True may be attended to) or added to the scores.
        scale: Factor on the scores; 1/√d by default.
        is_causal: Query i sees keys 0 to i only.
        name: Module path.
        kind: Kind of the call.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> ScoreMap(q, q, is_causal=True).dense()
        tensor([[[[1.0000, 0.0000],
                  [0.5000, 0.5000]]]])
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        *,
        masks: Sequence[Tensor] = (),
        scale: float | None = None,
        is_causal: bool = False,
        name: str = "",
        kind: AttentionKind = "unknown",
    ) -> None:
        batch = max(query.shape[0], key.shape[0])
        shape = (batch, query.shape[1], query.shape[2], key.shape[2])
        super().__init__(shape, name=name, kind=kind, is_causal=is_causal)
        self.query, self.key = query.detach(), key.detach()
        self.masks = tuple(m.detach() for m in masks)
        self.scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        self._log_sums: Tensor | None = None
        self._watch(self.query, self.key, *self.masks)

    @property
    def device(self) -> torch.device:
        """The device of the query."""
        return self.query.device

    @property
    def dtype(self) -> torch.dtype:
        """The query's type, or float32 where that is narrower."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        scores = self._scores(queries, heads)
        weights = scores.softmax(dim=-1)
        # A row that may attend to nothing gives 0/0; the kernels give it zeros.
        nothing = (scores == -math.inf).all(dim=-1, keepdim=True)
        return weights.masked_fill(nothing, 0.0).expand(self.shape[0], -1, -1, -1)

    def _scores(self, queries: Tensor, heads: list[int]) -> Tensor:
        """Return the scores of chosen rows and heads with all masks applied, (B, h, q, K)."""
        head = torch.tensor(heads, device=self.device)
        group = self.shape[1] // self.key.shape[1]  # grouped queries: this many heads share a key head
        q = _pick_heads(self.query[:, :, queries], heads).to(self.dtype) * self.scale  # (B, h, q, d)
        k = _pick_heads(self.key, [h // group for h in heads]).to(self.dtype)  # (B, h, K, d)
        scores = q @ k.transpose(-1, -2)  # (B, h, q, K)
        for mask in self.masks:
            part = _mask_part(mask, queries, head)
            if part.dtype == torch.bool:
                scores = scores.masked_fill(~part, -math.inf)
            else:
                scores = scores + part.to(self.dtype)
        if self.is_causal:
            keys = torch.arange(self.shape[3], device=self.device)
            scores = scores.masked_fill(keys > queries[:, None], -math.inf)
        return scores

    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves, (B, N) of bool, as the masks say."""
        self._check_unwritten()
        n = self.shape[2]
        allowed = torch.ones(self.shape[0], n, dtype=torch.bool, device=self.device)
        for mask in self.masks:
            part = mask if mask.dtype == torch.bool else mask > _MASKED
            full = part.expand(*part.shape[:-2], n, n) if part.dim() >= 2 else part.expand(n, n)
            own = full.diagonal(dim1=-2, dim2=-1)  # (..., N)
            # (H, N) of a mask (H, Q, K) that all examples share, or (B, H, N): some head.
            allowed = allowed & (own.any(dim=-2) if own.dim() >= 2 else own)
        return allowed

    def _first(self, examples: int) -> ScoreMap:
        masks = [m[:examples] if m.dim() == 4 and len(m) == self.shape[0] else m for m in self.masks]
        query, key = (x[:examples] for x in (self.query, self.key))
        return ScoreMap(
            query, key, masks=masks, scale=self.scale, is_causal=self.is_causal, name=self.name, kind=self.kind
        )

    def _vecmat(self, r: Tensor, heads: list[int], head_fusion: HeadFusion) -> Tensor:
        # A few rows are cheaper one by one than two passes of the kernel over all of them.
        few = int((r != 0).any(dim=0).sum()) * 8 < self.shape[2]
        if head_fusion == "mean" and heads == list(range(self.shape[1])) and not few and bool((r >= 0).all()):
            call = fused.readable(self.query, self.key, self.masks, self.scale, self.is_causal)
            if call is not None and self._log_sums is None:
                self._log_sums = fused.row_log_sums(call)
            if call is not None and self._log_sums is not None:
                return fused.vecmat(call, self._log_sums, r)
        return super()._vecmat(r, heads, head_fusion)


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
        own = self.weights.diagonal(dim1=-2, dim2=-1).amax(dim=1) > 0
        even = (self.weights.amax(dim=-1) == self.weights.amin(dim=-1)).all(dim=1)
        real = ~even | even.all(dim=1, keepdim=True)
        if not bool((own | ~real).all()):
            by_row = self.weights.amax(dim=1) * real[..., None]  # (B, Q, K)
            own = own | (by_row.amax(dim=1) > 0)
        return own & real

    def _first(self, examples: int) -> DenseMap:
        return DenseMap(self.weights[:examples], name=self.name, kind=self.kind)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return _pick_heads(self.weights[:, :, queries], heads).to(self.dtype)


def _pick_heads(x: Tensor, heads: list[int]) -> Tensor:
    """Return ``x[:, heads]``, without a copy where that is all of them."""
    return x if heads == list(range(x.shape[1])) else x[:, heads]


def _mask_part(mask: Tensor, queries: Tensor, heads: Tensor) -> Tensor:
    """Return the mask's chosen rows and heads; a mask that is shared over rows or heads stays shared."""
    if mask.dim() >= 2 and mask.shape[-2] != 1:
        mask = mask[..., queries, :]
    if mask.dim() >= 3 and mask.shape[-3] != 1:
        mask = mask[..., heads, :, :]
    return mask


def _row_index(queries: int | Sequence[int] | slice | Tensor, n_queries: int, name: str) -> Tensor:
    if isinstance(queries, slice):
        return torch.arange(n_queries)[queries]
    index = torch.as_tensor(queries)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise SelectionError(f"query rows must be integers, but came as {index.dtype}.")
    index = index.reshape(-1).to(torch.int64)
    if bool(((index < -n_queries) | (index >= n_queries)).any()):
        raise SelectionError(
            f"query {index.tolist()} is out of range: attention {name!r} has {n_queries} query rows "
            f"(0 to {n_queries - 1})."
        )
    return index % n_queries
