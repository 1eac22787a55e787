"""`AttentionMap`: one captured attention call as a linear operator, with rows and products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from captum_attn_lime.attention import _blocks as blocks
from captum_attn_lime.attention._blocks import Block, rows_of
from captum_attn_lime.attention._combine import Combine, Fuse, FuseWithResidual, Gate, WeightBlock
from captum_attn_lime.attention._fusion import HeadFusion, pick_heads, select_heads
from captum_attn_lime.errors import SelectionError, UnreadableAttentionError

AttentionKind = Literal["self", "windowed", "cross", "pool", "channel", "unknown"]


class AttentionMap(ABC):
    """One captured attention call: a row-stochastic operator A of shape (B, H, Q, K), rows are queries.

    Attributes:
        name: Path of the module that made the call; empty outside modules.
        kind: ``"self"`` if queries and keys come from the same tokens, ``"windowed"`` if each token also sees only
            tokens of its window, ``"cross"`` if they come from different tokens, ``"pool"`` for one learned query,
            ``"channel"`` if queries and keys are features, not tokens, ``"unknown"`` if none of these was recognised.
        is_causal: Whether the call was flagged causal (query i sees keys 0 to i); a mask may be causal without it.
        shape: ``(B, H, Q, K)``: examples, query heads, query tokens, key tokens.
        index: Index of the call in the captured forward pass; None for a map that was not captured.
        follows: Indices of the earlier calls that its query tokens passed through.
        reads: Indices of the earlier calls that its key tokens passed through.
        mixed: Whether tokens were mixed by something other than attention since the first call of its stack, which
            products of layers would ignore; False if this was not tested.
        value: The values that the weights multiply, (B, Hk, K, d) where Hk divides H; None unless requested.
        output_gradient: Gradient of the explained number with respect to the call's output, (B, H, Q, d); None unless
            requested.
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
        self.value: Tensor | None = None
        self._held: tuple[Tensor, int] | None = None  # the values, not copied, and their version at the call
        self.output_gradient: Tensor | None = None
        self._watched: list[tuple[Tensor, int]] = []  # tensors that are not copied, and their versions at the call

    def __repr__(self) -> str:
        causal = ", causal" if self.is_causal else ""
        return f"{type(self).__name__}({self.name!r}, (B, H, Q, K)={self.shape}, {self.kind}{causal})"

    def __copy__(self) -> AttentionMap:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # The version of a copied tensor starts at 0; -1 marks a tensor that was written into.
        def settled(watched: tuple[Tensor, int]) -> tuple[Tensor, int]:
            tensor, version = watched
            return tensor, 0 if tensor._version == version else -1

        held = None if self._held is None else settled(self._held)
        return {**self.__dict__, "_watched": [settled(each) for each in self._watched], "_held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        def counted(watched: tuple[Tensor, int]) -> tuple[Tensor, int]:
            tensor, version = watched
            return tensor, version if version < 0 or tensor.is_inference() else tensor._version

        held = state["_held"]
        self.__dict__.update(state)
        self._watched = [counted(each) for each in state["_watched"]]
        self._held = None if held is None else counted(held)

    def _watch(self, *tensors: Tensor) -> None:
        """Store the versions of tensors that are not copied, to detect writes."""
        self._watched = [(t, t._version) for t in tensors if not t.is_inference()]

    def set_value(self, value: Tensor) -> None:
        """Store the values without a copy; if the model writes into them later, methods that need them raise."""
        self.value = value
        self._held = None if value.is_inference() else (value, value._version)

    def _check_unwritten(self) -> None:
        if any(t._version != version for t, version in self._watched):
            raise UnreadableAttentionError(
                f"the model wrote into the query, key, mask or weights of {self.name!r} after it computed this "
                "attention, so the weights are lost."
            )

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device on which the weights are computed."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; at least float32."""

    @abstractmethod
    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        """Return the weights of selected rows and heads, (B, h, q, K)."""

    def rows(
        self, queries: int | Sequence[int] | slice | Tensor, *, heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return the weights of selected query rows.

        Args:
            queries: Row indices, the same for every example; negative ones count from the end.
            heads: Head indices; all by default.

        Returns:
            ``(B, heads, len(queries), K)``.

        Raises:
            SelectionError: A row or head is out of range.
        """
        self._check_unwritten()
        index = _row_index(queries, self.shape[2], self.name).to(self.device)
        return self._rows(index, select_heads(heads, self.shape[1], name=self.name))

    def reduce(
        self, r: Tensor, combine: Combine, *, heads: int | Sequence[int] | None = None, whole_rows: bool = True
    ) -> Tensor:
        """Return rᵀM, where ``combine`` computes M from the weights of the heads, block by block.

        All other products are special cases, and new methods can use it too. Nothing of size Q·K is stored, and rows
        on which ``r`` is zero for every example are not computed.

        Args:
            r: One weight per query, (B, Q), or several such vectors, (B, R, Q).
            combine: Computes the rows of M, (b, q, k), from a `WeightBlock` with weights (b, h, q, k).
            heads: Head indices; all by default.
            whole_rows: Whether a block must contain all keys that its rows may attend to, and the rows' tokens if the
                map is square. False if ``combine`` treats keys separately: rows may then be split, which is faster.

        Returns:
            ``(B, K)``, or ``(B, R, K)``.

        Raises:
            SelectionError: ``r`` has a wrong shape, or the map lacks what ``combine`` reads.
            UnreadableAttentionError: The product is NaN, since the weights are.

        Example:
            >>> from captum_attn_lime.attention import DenseMap
            >>> layer = DenseMap(torch.tensor([[[[0.0, 1.0]], [[0.5, 0.5]]]]))
            >>> layer.reduce(torch.ones(1, 1), lambda block: block.weights.prod(dim=1))
            tensor([[0.0000, 0.5000]])
        """
        self._check_unwritten()
        batch, queries = self.shape[0], self.shape[2]
        chosen = self._chosen(heads, combine)
        if r.dim() not in (2, 3) or (r.shape[0], r.shape[-1]) != (batch, queries):
            raise SelectionError(
                f"a product with {self.name!r} needs one weight per query, shape (B, Q) = {(batch, queries)}, or "
                f"several such vectors (B, R, Q), but the shape is {tuple(r.shape)}."
            )
        vectors = r.to(device=self.device, dtype=self.dtype)
        vectors = vectors if r.dim() == 3 else vectors[:, None]
        product = self._reduce(vectors, chosen, combine, whole_rows=whole_rows)
        return self._checked(product).reshape(*r.shape[:-1], self.shape[3])

    def vecmat(
        self, r: Tensor, *, head_fusion: HeadFusion = "mean", heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return rᵀA with A fused over heads, without storing Q·K numbers.

        Args:
            r: One weight per query, (B, Q), or several such vectors, (B, R, Q).
            head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
            heads: Head indices; all by default.

        Returns:
            ``(B, K)``, or ``(B, R, K)``.
        """
        return self.reduce(r, Fuse(head_fusion), heads=heads, whole_rows=False)

    def residual_vecmat(
        self,
        r: Tensor,
        *,
        residual: float = 0.5,
        head_fusion: HeadFusion = "mean",
        heads: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Return rᵀÂ for Â = (1 - residual)·A + residual·I, A fused over heads.

        The mean of softmax rows sums to one. Rows fused by max or min do not, and Â is then divided by its row sums.

        Args:
            r: One weight per query, (B, N), or several such vectors, (B, R, N).
            residual: Share of the residual connection.
            head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
            heads: Head indices; all by default.

        Returns:
            ``(B, N)``, or ``(B, R, N)``.

        Raises:
            SelectionError: The map is not square, so the identity cannot be added.
        """
        if self.shape[2] != self.shape[3]:
            raise SelectionError(
                f"the residual connection of {self.name!r} needs square attention, but it has {self.shape[2]} queries "
                f"and {self.shape[3]} keys; use vecmat."
            )
        if head_fusion != "mean":
            return self.reduce(r, FuseWithResidual(head_fusion, residual), heads=heads)
        product = self.vecmat(r, heads=heads)
        return (1 - residual) * product + residual * r.to(product)

    def gated_vecmat(
        self, r: Tensor, *, head_fusion: HeadFusion = "mean", heads: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return rᵀ(A ⊙ ∂A)⁺ fused over heads, where ∂A is the gradient of the explained number with respect to A.

        ∂A = ∂O Vᵀ is computed in blocks from the gradient of the output, so nothing of size Q·K is stored.

        Args:
            r: One weight per query, (B, Q), or several such vectors, (B, R, Q).
            head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads, of the positive parts.
            heads: Head indices; all by default.

        Returns:
            ``(B, K)``, or ``(B, R, K)``.

        Raises:
            SelectionError: The map has no values or no gradient.
        """
        return self.reduce(r, Gate(head_fusion), heads=heads, whole_rows=False)

    def dense(self) -> Tensor:
        """Return all weights, (B, H, Q, K), in memory that grows with Q·K."""
        return self.rows(slice(None))

    @abstractmethod
    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves, (B, N) of bool: padding may not."""

    def first(self, examples: int) -> AttentionMap:
        """Return the map of the first examples of the batch."""
        part = self._first(examples)
        part.copy_labels(self)
        part._watched = self._watched  # keep track of earlier writes
        part.value = None if self.value is None else self.value[:examples]
        part.output_gradient = None if self.output_gradient is None else self.output_gradient[:examples]
        return part

    def copy_labels(self, other: AttentionMap) -> None:
        """Copy what a capture recorded about another map of the same call."""
        self.index, self.follows, self.reads, self.mixed = other.index, other.follows, other.reads, other.mixed
        self._held = other._held

    def with_fused_heads(self, head_fusion: HeadFusion, heads: int | Sequence[int] | None = None) -> AttentionMap:
        """Return the map with its heads fused if it stores their weights; otherwise the map itself."""
        return self

    @abstractmethod
    def _first(self, examples: int) -> AttentionMap:
        """Return the map of the first examples of the batch."""

    def _chosen(self, heads: int | Sequence[int] | None, combine: Combine) -> list[int]:
        """Return the indices of the heads to combine.

        Raises:
            SelectionError: The map does not have them.
        """
        return select_heads(heads, self.shape[1], name=self.name)

    def _blocks(self, r: Tensor, heads: list[int], *, whole_rows: bool) -> Iterator[tuple[Block, Tensor]]:
        """Return the blocks that a product with r (B, R, Q) needs, each with its weights (b, h, q, k)."""
        for part in blocks.whole_rows(needed_rows(r), self.shape, len(heads), self.dtype.itemsize):
            yield part, self._rows(part.queries, heads)

    def _reduce(self, r: Tensor, heads: list[int], combine: Combine, *, whole_rows: bool) -> Tensor:
        """Return rᵀM, (B, R, K), for r (B, R, Q)."""
        out = r.new_zeros(*r.shape[:2], self.shape[3])
        of_heads = cache(partial(self._of_heads, heads))
        for part, weights in self._blocks(r, heads, whole_rows=whole_rows):
            chosen = r[part.examples][:, :, rows_of(part.queries)]  # (b, R, q)
            out[part.examples, :, part.keys] += chosen @ combine(WeightBlock(weights, *part, of_heads))
        return out

    def _of_heads(self, heads: list[int], name: Literal["value", "output_gradient"]) -> Tensor:
        """Return the values of selected heads, (B, h, K, d), or the gradient of their output, (B, h, Q, d).

        Raises:
            SelectionError: The map does not have them.
            UnreadableAttentionError: The model wrote into the values after the call.
        """
        found: Tensor | None = getattr(self, name)
        if found is None:
            raise SelectionError(self._missing_message())
        if name == "value" and self._held is not None and self._held[0]._version != self._held[1]:
            raise UnreadableAttentionError(
                f"the model wrote into the values of {self.name!r} after it computed this attention, so the gradient "
                "of the weights is lost. Choose layers= without it, or use method='rollout'."
            )
        group = self.shape[1] // found.shape[1]  # number of heads that share a value head (grouped queries)
        return pick_heads(found, [head // group for head in heads])

    def _missing_message(self) -> str:
        if self.output_gradient is not None:
            return (
                f"how the weights of {self.name!r} act on values is not known (they come from register_attention, or "
                "multiply more than the values, such as relative positions), so neither is their gradient. "
                "Choose layers= without it, or use a method without gradients (raw, rollout)."
            )
        if self.value is not None:
            return (
                f"no gradient of the target reaches {self.name!r}: the model detaches its output, or does not use it "
                "for this target, or the map comes from capture(). Choose layers= that the gradient reaches, or use a "
                "method without gradients (raw, rollout)."
            )
        return (
            f"{self.name!r} was captured without its values and the gradient of its output, which gradient-gated "
            "methods need; use AttentionAttribution(model, method='relevance')."
        )

    def _checked(self, product: Tensor) -> Tensor:
        """Return a product, checked for NaN.

        Raises:
            UnreadableAttentionError: It has NaN, because the scores have.
        """
        if bool(product.isnan().any()):
            raise UnreadableAttentionError(
                f"a product with the attention of {self.name!r} is NaN: the vector, or the scores of a row with "
                "non-zero weight, have NaN or infinite values, or all keys of such a row are masked. Check the model's "
                "parameters, inputs (torch.isfinite) and mask."
            )
        return product


class DerivedMap(AttentionMap):
    """A map whose weights are computed from another map, ``inner``."""

    inner: AttentionMap

    @property
    def device(self) -> torch.device:
        """The device of the inner map."""
        return self.inner.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inner map."""
        return self.inner.dtype

    def _check_unwritten(self) -> None:
        self.inner._check_unwritten()


def needed_rows(r: Tensor) -> Tensor:
    """Return the rows on which any of the vectors (B, R, Q) is not zero, ascending."""
    return (r != 0).flatten(0, 1).any(dim=0).nonzero().flatten()


def _row_index(queries: int | Sequence[int] | slice | Tensor, n_queries: int, name: str) -> Tensor:
    if isinstance(queries, slice):
        return torch.arange(n_queries)[queries]
    index = torch.as_tensor(queries)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise SelectionError(f"query rows must be integers, but are {index.dtype}.")
    index = index.reshape(-1).to(torch.int64)
    if bool(((index < -n_queries) | (index >= n_queries)).any()):
        raise SelectionError(
            f"query {index.tolist()} is out of range: attention {name!r} has {n_queries} query rows "
            f"(0 to {n_queries - 1})."
        )
    return index % n_queries
