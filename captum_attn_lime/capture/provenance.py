"""Where tensors come from: enough to tell self- from cross-attention and to unfold heads from the batch.

Shapes cannot tell self-attention from cross-attention (a decoder's cross-attention can be square), but the projections
can: queries and keys of self-attention are projections of the same tensor. Each tensor therefore remembers which
tensors its last projection was applied to (its *origins*); a product of two tensors remembers both sides' origins (its
*pairs*), which is how a score matrix tells what its queries and keys were. And each tensor knows its *lineage*: the
attention calls that its tokens passed through as queries. Layers that follow one another form one stack; two towers, or
an encoder and a decoder, do not, however equal their lengths.

A key-value cache holds keys of several forward passes, put together by a concatenation or written into one buffer. Such
a tensor remembers its *parts*, each with its own origins and lineage: the newest keys are projections of the tensor
that the queries are projections of, and the older ones came by the ways of earlier passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

from captum_attn_lime.capture.weak import TensorTable

Origins = frozenset[int]
Lineage = frozenset[int]


class Side(NamedTuple):
    """One factor of a product: what it is a projection of, and the attention calls its tokens passed through."""

    origins: Origins
    lineage: Lineage
    is_learned: bool
    tensor: int  # the factor's own number, the same for its views


Pairs = frozenset[tuple[Side, Side]]
Compared = frozenset[tuple[int, int]]
_NONE: Origins = frozenset()
_NO_PAIRS: Pairs = frozenset()
# Along a residual stream origins add up; only the newest matter for the next attention call.
_KEPT = 32

# How x.mT and x.T reach a function mode.
MATRIX_TRANSPOSE: Callable[..., Any] = Tensor.mT.__get__  # type: ignore[attr-defined]
_TRANSPOSE: Callable[..., Any] = Tensor.T.__get__  # type: ignore[attr-defined]

_PROJECTIONS: frozenset[Callable[..., Any]] = frozenset({F.linear, torch.conv1d, torch.conv2d, torch.addmm})
# Token ids are chosen, not computed from token to token: what is looked up by them begins a way of its own.
_LOOKUPS: frozenset[Callable[..., Any]] = frozenset({F.embedding, torch.embedding})
# How keys are put together after their projection: side by side, or into a buffer that already holds others.
_WRITES: frozenset[Callable[..., Any]] = frozenset(
    {
        Tensor.__setitem__,
        Tensor.copy_,
        Tensor.index_copy_,
        Tensor.index_put_,
        Tensor.scatter_,
    }
)
_ASSEMBLES: frozenset[Callable[..., Any]] = _WRITES | {
    torch.cat,
    torch.concat,
    torch.concatenate,
    torch.index_copy,
    Tensor.index_copy,
    torch.slice_scatter,
    Tensor.slice_scatter,
}
_PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        torch.bmm,
        Tensor.bmm,
        torch.einsum,
        torch.baddbmm,
        Tensor.baddbmm,
    }
)
_RESHAPES: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten}
)
_SAME_TOKENS: frozenset[Callable[..., Any]] = _RESHAPES | {
    Tensor.transpose,
    torch.transpose,
    Tensor.swapaxes,
    MATRIX_TRANSPOSE,
    _TRANSPOSE,
    Tensor.permute,
    torch.permute,
    Tensor.contiguous,
    Tensor.to,
    Tensor.float,
}
# What may return a part of a tensor in the same memory.
_VIEWS: frozenset[Callable[..., Any]] = _SAME_TOKENS | {
    Tensor.__getitem__,
    Tensor.narrow,
    torch.narrow,
    Tensor.unflatten,
    Tensor.unsqueeze,
    Tensor.squeeze,
    Tensor.expand,
    Tensor.detach,
}


class Fold(NamedTuple):
    """A dimension of size ``batch * heads`` that was made from a batch and a head dimension."""

    batch: int
    heads: int
    batch_first: bool  # whether the batch is the slower of the two

    @property
    def size(self) -> int:
        """The folded dimension's size."""
        return self.batch * self.heads


class Provenance:
    """Follows origins, pairs and folds from tensor to tensor; holds tensors weakly."""

    def __init__(self) -> None:
        self._ids: TensorTable[int] = TensorTable()
        self._origins: TensorTable[Origins] = TensorTable()
        self._pairs: TensorTable[Pairs] = TensorTable()
        self._folds: TensorTable[Fold] = TensorTable()
        self._lineage: TensorTable[Lineage] = TensorTable()
        self._parts: TensorTable[tuple[Side, ...]] = TensorTable()
        self._written: TensorTable[bool] = TensorTable()
        self._groups: TensorTable[int] = TensorTable()
        self._learned: TensorTable[bool] = TensorTable()
        self._next = 0

    def origins(self, tensor: Tensor) -> Origins:
        """Return the ids of the tensors that ``tensor`` is a projection of; minus its own id if it is none."""
        found = self._origins.get(tensor)
        return frozenset({-self._id(tensor)}) if found is None else found

    def lineage(self, tensor: Tensor) -> Lineage:
        """Return the attention calls that the tensor's tokens passed through as queries."""
        return self._lineage.get(tensor, _NONE)

    def same_source(self, query: Tensor, key: Tensor) -> bool | None:
        """Return whether query and key are projections of one tensor; None where that was not seen."""
        return _same({(self._side(query), side) for side in self._sides(key)})

    def scores_same_source(self, scores: Tensor) -> bool | None:
        """Return whether the scores are a product of projections of one tensor; None where that was not seen."""
        return _same(self._pairs.get(scores, _NO_PAIRS))

    def compared(self, scores: Tensor) -> Compared:
        """Return the pairs of tensors, by number, whose products the scores are made of."""
        return frozenset((q.tensor, k.tensor) for q, k in self._pairs.get(scores, _NO_PAIRS))

    def pair(self, query: Tensor, key: Tensor) -> tuple[int, int]:
        """Return the numbers of query and key, as `compared` gives them."""
        return self._id(query), self._id(key)

    def is_learned(self, tensor: Tensor) -> bool:
        """Return whether a tensor is made of parameters alone, as the query of an attention pooling is."""
        return isinstance(tensor, nn.Parameter) or tensor in self._learned

    def scores_of_learned(self, scores: Tensor) -> bool:
        """Return whether the queries of the scores are made of parameters alone."""
        return any(query.is_learned for query, _ in self._pairs.get(scores, _NO_PAIRS))

    def attended(self, output: Tensor, query: Tensor, call: int) -> None:
        """Make the output of an attention call an origin of its own, with the lineage of its queries and the call."""
        self._origins.pop(output, None)
        self._pairs.pop(output, None)
        self._lineage[output] = self.lineage(query) | {call}

    def bridge(self, given: Tensor, result: Tensor) -> None:
        """Take the result of a module that could not be watched for a projection of what it was given.

        Quantised layers and autograd functions of a model's own are such; anything seen of the result is kept.
        """
        if result in self._origins or result in self._lineage:
            return
        self._origins[result] = frozenset({self._id(given)})
        if lineage := self.lineage(given):
            self._lineage[result] = lineage

    def is_buffer(self, tensor: Tensor) -> bool:
        """Return whether the model writes into the tensor's memory piece by piece, and may do so again."""
        return tensor in self._written

    def packed_heads(self, query: Tensor) -> int:
        """Return how many heads' single queries were packed into the dimension of the queries; 1 where none were."""
        return self._groups.get(query, 1)

    def _sides(self, tensor: Tensor) -> tuple[Side, ...]:
        """Return what the tensor is as a whole, and each of the parts it was put together from."""
        return (*self._parts.get(tensor, ()), self._side(tensor))

    def _side(self, tensor: Tensor) -> Side:
        return Side(self.origins(tensor), self.lineage(tensor), self.is_learned(tensor), self._id(tensor))

    def fold(self, tensor: Tensor) -> Fold | None:
        """Return how the tensor's dimension 0 was folded from batch and heads, if that was seen."""
        found = self._folds.get(tensor)
        return found if found is not None and tensor.shape[0] == found.size else None

    def follow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        batch: int | None,
    ) -> None:
        """Carry what is known of the arguments over to the results."""
        results = _results(func, out)
        sources = _tensors(_flat(args, kwargs))
        if not results or not sources:
            return
        self._note_learned(sources, results)
        if func in _LOOKUPS:
            sources = [s for s in sources if s.is_floating_point()]
        if _projects(func) or (func in _PRODUCTS and any(isinstance(s, nn.Parameter) for s in sources)):
            self._project(func, sources, results)
            return
        origins = self._union(sources)
        pairs = frozenset().union(*(self._pairs.get(s, _NO_PAIRS) for s in sources))
        lineage = _NONE.union(*(self.lineage(s) for s in sources))
        if func in _PRODUCTS and len(sources) >= 2:
            pairs |= {(self._side(sources[-2]), side) for side in self._sides(sources[-1])}
            lineage = self.lineage(sources[-2])  # a product's rows are its first factor's
        folds = [f for f in (self._folds.get(s) for s in sources) if f is not None]
        if func in _RESHAPES and (made := _made_fold(sources[0], results[0], batch)) is not None:
            folds = [made]
        self._note_memory(func, sources, results)
        for result in results:
            if origins:
                self._origins[result] = origins
            if pairs:
                self._pairs[result] = pairs
            if lineage:
                self._lineage[result] = lineage
            if folds:
                self._folds[result] = folds[0]
            if func in _SAME_TOKENS:
                self._ids[result] = self._id(sources[0])

    def _note_learned(self, sources: list[Tensor], results: list[Tensor]) -> None:
        learned = all(self.is_learned(source) for source in sources)
        if not learned and not self._learned:
            return
        for result in results:
            if learned:
                self._learned[result] = True
            else:
                self._learned.pop(result, None)  # written in place

    def _assembled(self, func: Callable[..., Any], sources: list[Tensor]) -> tuple[Side, ...]:
        """Return the parts of a result: what is put together here, or what its sources were put together from."""
        if func in _ASSEMBLES:
            pieces = [s for s in sources if s.is_floating_point() and s in self._origins]
            parts = [side for s in pieces for side in self._sides(s)]
        else:
            parts = [side for s in sources for side in self._parts.get(s, ())] if self._parts else []
        return tuple(dict.fromkeys(parts))[-_KEPT:]

    def _note_memory(self, func: Callable[..., Any], sources: list[Tensor], results: list[Tensor]) -> None:
        """Note the parts of results, buffers and their views, and single queries whose heads are packed."""
        parts = self._assembled(func, sources)
        is_view = bool(self._written) and func in _VIEWS and sources[0] in self._written
        for result in results:
            if len(parts) > 1:
                self._parts[result] = parts
            if func in _WRITES or is_view:
                self._written[result] = True
            if func in _RESHAPES and (heads := _packed_heads(sources[0], result)) > 1:
                self._groups[result] = heads

    def _project(self, func: Callable[..., Any], sources: list[Tensor], results: list[Tensor]) -> None:
        # torch.addmm(bias, x, weight) has its input second, every other projection first.
        inputs = [s for s in sources[(func is torch.addmm) :] if not isinstance(s, nn.Parameter)]
        if not inputs:
            return
        origin, lineage = frozenset({self._id(inputs[0])}), self.lineage(inputs[0])
        for result in results:
            self._origins[result] = origin
            if inputs[0].dim() == 4 and result.shape == inputs[0].shape and inputs[0] in self._pairs:
                self._pairs[result] = self._pairs[inputs[0]]  # scores, mixed from head to head
            if lineage:
                self._lineage[result] = lineage
            fold = self._folds.get(inputs[0])
            if fold is not None:
                self._folds[result] = fold

    def _union(self, tensors: Iterable[Tensor]) -> Origins:
        union = _NONE.union(*(self._origins.get(t, _NONE) for t in tensors))
        return frozenset(sorted(union)[-_KEPT:]) if len(union) > _KEPT else union

    def _id(self, tensor: Tensor) -> int:
        found = self._ids.get(tensor)
        if found is None:
            self._next += 1
            found = self._ids[tensor] = self._next
        return found


def _projects(func: Callable[..., Any]) -> bool:
    """Return whether an operation is a projection: a linear layer, quantised ones included, or a convolution."""
    is_custom = isinstance(func, (OpOverload, OpOverloadPacket))
    return func in _PROJECTIONS or (is_custom and "linear" in func.__name__)


def _same(pairs: Iterable[tuple[Side, Side]]) -> bool | None:
    pairs = list(pairs)
    # Ancestors are shared by an encoder and a decoder that read the same ids: the way since then must be the same too.
    if any(q.origins & k.origins and q.lineage == k.lineage for q, k in pairs):
        return True
    # Different projections' inputs may be two forms of the same tokens (x and x + position), unless they came by
    # different ways.
    if not pairs or any(q.lineage == k.lineage for q, k in pairs):
        return None
    return False


def _packed_heads(before: Tensor, after: Tensor) -> int:
    """Return how many heads a reshape (B, G * Hk, 1, d) to (B, Hk, G, d) packs into the queries' dimension, else 1.

    With grouped queries and a single query, G heads that share a key can be given to the kernel as G queries.
    """
    old, new = before.shape, after.shape
    packs = len(old) == len(new) == 4 and old[2] == 1 and new[2] > 1 and new[1] * new[2] == old[1]
    return int(new[2]) if packs and (old[0], old[3]) == (new[0], new[3]) else 1


def _made_fold(before: Tensor, after: Tensor, batch: int | None) -> Fold | None:
    """Return the fold a reshape makes, or None.

    Two layouts are in use: (B, H, N, d) to (B*H, N, d), also with H first, and (N, B, H*d) to (N, B*H, d).
    """
    old, new = before.shape, after.shape
    if len(old) == len(new) + 1 and len(new) == 3 and new[0] == old[0] * old[1] and new[1:] == old[2:]:
        first, second = old[0], old[1]
        # Where both or neither have the batch's size, the batch is what lies further apart in memory.
        told_by_size = (first == batch) != (second == batch)
        batch_first = first == batch if told_by_size else before.stride(0) >= before.stride(1)
        return Fold(first, second, True) if batch_first else Fold(second, first, False)
    sequence_first = len(old) == len(new) == 3 and new[0] == old[0] and new[1] > old[1] and new[1] % old[1] == 0
    if sequence_first and new[1] * new[2] == old[1] * old[2]:
        return Fold(old[1], new[1] // old[1], True)
    return None


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor)]


def _results(func: Callable[..., Any], out: Any) -> list[Tensor]:
    """Return the tensors that an operation has made or written, with what a written view is a part of."""
    results = _tensors(out if isinstance(out, (tuple, list)) else (out,))
    return results + _tensors(r._base for r in results) if func in _WRITES else results


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (tuple, list)):
            yield from value
        else:
            yield value
