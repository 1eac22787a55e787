"""`ScoreMap`: attention stored as the arguments of a fused kernel: query, key and masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_attn_lime.attention import _blocks as blocks
from captum_attn_lime.attention import _fused as fused
from captum_attn_lime.attention import _masks as masks
from captum_attn_lime.attention._blocks import EVERYTHING, Block, examples_of, rows_of
from captum_attn_lime.attention._combine import MEAN, Combine
from captum_attn_lime.attention._fusion import pick_heads
from captum_attn_lime.attention._map import AttentionKind, AttentionMap, needed_rows

# Rows are computed in blocks, without the kernel, if they are fewer than this fraction of all rows.
_FEW = 8
# Tensors are copied if their storage is this many times larger than needed, unless it is small in bytes.
_WASTED, _LITTLE = 1.25, 2**20


class ScoreMap(AttentionMap):
    """Attention stored as query, key, masks, scale and causal flag, in memory linear in the tokens.

    Args:
        query: ``(B, H, Q, d)``, or ``(B, 1, Q, d)`` if all heads share it.
        key: ``(B, Hk, K, d)`` where Hk divides H (grouped queries).
        masks: Each broadcastable to ``(B, H, Q, K)``: boolean (True for keys to attend to) or added to the scores.
        scale: Factor on the scores; 1/√d by default.
        is_causal: Query i sees keys 0 to i only.
        name: Module path.
        kind: Kind of the call.
        log_sums: The log-sum-exp of each row's masked scores, ``(B, H, Q)``, if the forward pass computed it; products
            then need one pass over the scores instead of two.

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
        log_sums: Tensor | None = None,
    ) -> None:
        if query.shape[1] == 1:
            query = query.expand(-1, key.shape[1], -1, -1)  # one query for all heads
        batch = max(query.shape[0], key.shape[0])
        shape = (batch, query.shape[1], query.shape[2], key.shape[2])
        super().__init__(shape, name=name, kind=kind, is_causal=is_causal)
        self.query, self.key = query.detach(), key.detach()
        self.masks = tuple(m.detach() for m in masks)
        self.scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        self.log_sums = None if log_sums is None else log_sums.detach()
        self._watch(self.query, self.key, *self.masks)

    @property
    def device(self) -> torch.device:
        """The device of the query."""
        return self.query.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the query; at least float32."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def compact(self) -> None:
        """Copy query and key if they keep larger tensors alive, such as a joint projection."""
        of_function = torch._C._functorch.is_functorch_wrapped_tensor
        if of_function(self.query) or of_function(self.key):
            return  # tensors inside a transform of torch.func have no storage
        if max(self.query.untyped_storage().nbytes(), self.key.untyped_storage().nbytes()) <= _LITTLE:
            return
        held: dict[int, int] = {}
        for x in (self.query, self.key):
            held[x.untyped_storage().data_ptr()] = held.get(x.untyped_storage().data_ptr(), 0) + x.nbytes
        if any(
            x.untyped_storage().nbytes() > max(_WASTED * held[x.untyped_storage().data_ptr()], _LITTLE)
            for x in (self.query, self.key)
        ):
            self.query, self.key = (x.clone(memory_format=torch.contiguous_format) for x in (self.query, self.key))
            self._watch(*self.masks)

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        scores = self._scores(Block(EVERYTHING, queries, EVERYTHING), heads)
        weights = scores.softmax(dim=-1)
        # A row without allowed keys is 0/0; the kernels return zeros for it.
        if scores.shape[-1] > 0 and bool((nothing := scores.amax(dim=-1, keepdim=True) == -math.inf).any()):
            weights = weights.masked_fill_(nothing, 0.0)
        return weights.expand(self.shape[0], -1, -1, -1)

    def _scores(self, block: Block, heads: list[int]) -> Tensor:
        """Return the masked scores of a block for selected heads, (b, h, q, k)."""
        rows, every = rows_of(block.queries), heads == list(range(self.shape[1]))
        group = self.shape[1] // self.key.shape[1]  # number of heads that share a key head (grouped queries)
        query = examples_of(self.query, block.examples)[:, :, rows]
        q = pick_heads(query, heads).to(self.dtype) * self.scale  # (b, h, q, d)
        key = examples_of(self.key, block.examples)[:, :, block.keys]
        k = pick_heads(key, [h // group for h in heads]).to(self.dtype)  # (b, h, k, d)
        scores = q @ k.transpose(-1, -2)  # (b, h, q, k)
        chosen = None if every else torch.tensor(heads, device=self.device)
        for mask in self.masks:
            part = masks.part_of(mask, block.examples, chosen, rows, block.keys)
            if part.dtype == torch.bool:
                scores.masked_fill_(~part, -math.inf)
            else:
                scores += part.to(self.dtype)
        if self.is_causal and len(block.queries) > 0:
            keys = torch.arange(self.shape[3], device=self.device)[block.keys]
            if int(keys[-1]) > int(block.queries.min()):
                scores.masked_fill_(keys > block.queries[:, None].to(self.device), -math.inf)
        return scores

    def _blocks(self, r: Tensor, heads: list[int], *, whole_rows: bool) -> Iterator[tuple[Block, Tensor]]:
        sums, size = self.log_sums, self.dtype.itemsize
        if sums is None or not fused.is_exact(sums, r):
            yield from super()._blocks(r, heads, whole_rows=whole_rows)
            return

        def key_range(rows: Tensor) -> tuple[int, int]:
            return masks.key_range(self.masks, self.is_causal, self.shape[3], rows)

        by_head = pick_heads(sums, heads)
        for part in blocks.tiles(needed_rows(r), self.shape, len(heads), size, key_range, whole_rows=whole_rows):
            of_rows = by_head[part.examples][:, :, rows_of(part.queries), None]
            yield part, self._scores(part, heads).sub_(of_rows).exp_()

    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves according to the masks, (B, N) of bool."""
        self._check_unwritten()
        return masks.self_allowed(self.masks, self.shape[0], self.shape[2], self.device)

    def _first(self, examples: int) -> ScoreMap:
        parts = [m[:examples] if m.dim() == 4 and len(m) == self.shape[0] else m for m in self.masks]
        return ScoreMap(
            self.query[:examples],
            self.key[:examples],
            masks=parts,
            scale=self.scale,
            is_causal=self.is_causal,
            name=self.name,
            kind=self.kind,
            log_sums=None if self.log_sums is None else self.log_sums[:examples],
        )

    def _reduce(self, r: Tensor, heads: list[int], combine: Combine, *, whole_rows: bool) -> Tensor:
        product = self._mean_product(r) if combine == MEAN and heads == list(range(self.shape[1])) else None
        return super()._reduce(r, heads, combine, whole_rows=whole_rows) if product is None else product

    def _mean_product(self, r: Tensor) -> Tensor | None:
        """Return rᵀA with the mean over all heads, from a kernel; None if blocks are cheaper or no kernel applies."""
        if len(needed_rows(r)) * _FEW < self.shape[2] or r.shape[1] > self.query.shape[-1]:
            return None
        if self.device.type != "cpu":
            return fused.by_gradient(self.query, self.key, self.masks, self.scale, self.is_causal, r)
        call = fused.readable(self.query, self.key, self.masks, self.scale, self.is_causal)
        if call is None:
            return None
        if self.log_sums is None:
            self.log_sums = fused.row_log_sums(call)
        if not fused.is_exact(self.log_sums, r):
            return None
        if r.shape[1] == 1 and bool((r >= 0).all()):
            return fused.vecmat(call, self.log_sums, r[:, 0])[:, None]
        return fused.matmat(call, self.log_sums, r)
