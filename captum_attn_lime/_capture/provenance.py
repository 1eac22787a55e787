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

from captum_attn_lime._capture.operations import (
    ASSEMBLES,
    JOINS,
    LOOKUPS,
    PRODUCTS,
    PROJECTIONS,
    RESHAPES,
    SAME_TOKENS,
    SPLITS,
    VIEWS,
    WRITES,
)
from captum_attn_lime._capture.weak import TensorTable

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


class Fold(NamedTuple):
    """A dimension of size ``batch * heads`` that was made from a batch and a head dimension."""

    batch: int
    heads: int
    batch_first: bool  # whether the batch is the slower of the two

    @property
    def size(self) -> int:
        """The folded dimension's size."""
        return self.batch * self.heads


class Known(NamedTuple):
    """What is known of one tensor.

    Attributes:
        number: Its number, shared with its views and reshapes; 0 where it has none yet.
        origins: The numbers of the tensors that it is a projection of.
        lineage: The attention calls that its tokens passed through as queries.
        pairs: The pairs of factors whose products it is made of.
        parts: What it was put together from.
        fold: How its dimension 0 was made from batch and heads.
        piece: The number of the tensor it was split off along the features, and how many pieces there are.
        packed: How many heads' single queries were packed into the dimension of the queries.
        is_written: Whether the model writes into its memory piece by piece.
        is_learned: Whether it is made of parameters alone.
    """

    number: int = 0
    origins: Origins = _NONE
    lineage: Lineage = _NONE
    pairs: Pairs = _NO_PAIRS
    parts: tuple[Side, ...] = ()
    fold: Fold | None = None
    piece: tuple[int, int] | None = None
    packed: int = 1
    is_written: bool = False
    is_learned: bool = False


_NOTHING = Known()


class Provenance:
    """Follows what is known from tensor to tensor; holds tensors weakly."""

    def __init__(self) -> None:
        self._known: TensorTable[Known] = TensorTable()
        self._next = 0
        self._asked: dict[int, tuple[Lineage, Origins]] = {}  # by call: its queries' lineage and origins
        self._rows: dict[int, int] = {}  # by a projected tensor's number, how many rows it has

    def _of(self, tensor: Tensor) -> Known:
        return self._known.get(tensor, _NOTHING)

    def entry(self, tensor: Tensor) -> Known | None:
        """Return all that is known of a tensor, to be put back by `restore` in another capture."""
        return self._known.get(tensor)

    def restore(self, tensor: Tensor, known: Known | None) -> None:
        """Put back what was known of a tensor."""
        if known is not None:
            self._known[tensor] = known

    def tables(self) -> tuple[int, dict[int, tuple[Lineage, Origins]], dict[int, int]]:
        """Return what is known of calls and numbers, apart from tensors."""
        return self._next, dict(self._asked), dict(self._rows)

    def restore_tables(self, tables: tuple[int, dict[int, tuple[Lineage, Origins]], dict[int, int]]) -> None:
        """Put back what was known of calls and numbers."""
        self._next, self._asked, self._rows = tables[0], dict(tables[1]), dict(tables[2])

    def lineage(self, tensor: Tensor) -> Lineage:
        """Return the attention calls that the tensor's tokens passed through as queries."""
        return self._of(tensor).lineage

    def same_source(self, query: Tensor, key: Tensor) -> bool | None:
        """Return whether query and key are projections of one tensor; None where that was not seen."""
        return self._same({(self._side(query), side) for side in self._sides(key)})

    def scores_same_source(self, scores: Tensor) -> bool | None:
        """Return whether the scores are a product of projections of one tensor; None where that was not seen."""
        return self._same(self._of(scores).pairs)

    def _same(self, pairs: Pairs | set[tuple[Side, Side]]) -> bool | None:
        same = _same(pairs)
        # Layers that take over an earlier layer's keys: other states, but of the same tokens.
        return None if same is False and any(self._is_earlier(q, k) for q, k in pairs) else same

    def _is_earlier(self, query: Side, key: Side) -> bool:
        """Return whether keys are projections of what the queries' tokens were at an earlier call on their way."""
        earlier = [self._asked[call] for call in query.lineage if call in self._asked]
        return any(key.lineage == lineage and key.origins & origins for lineage, origins in earlier)

    def compared(self, scores: Tensor) -> Compared:
        """Return the pairs of tensors, by number, whose products the scores are made of."""
        return frozenset((q.tensor, k.tensor) for q, k in self._of(scores).pairs)

    def pair(self, query: Tensor, key: Tensor) -> tuple[int, int]:
        """Return the numbers of query and key, as `compared` gives them."""
        return self._number(query), self._number(key)

    def is_learned(self, tensor: Tensor) -> bool:
        """Return whether a tensor is made of parameters alone, as the query of an attention pooling is."""
        return self._of(tensor).is_learned or isinstance(tensor, nn.Parameter)

    def scores_of_learned(self, scores: Tensor) -> bool:
        """Return whether the queries of the scores are made of parameters alone."""
        return any(query.is_learned for query, _ in self._of(scores).pairs)

    def is_of_features(self, scores: Tensor, groups: int) -> bool:
        """Return whether softmaxes are over each token's own features, as dynamic taps are: a linear layer's output."""
        known = self._of(scores)
        rows = [self._rows.get(origin, 0) for origin in known.origins]
        return not known.pairs and len(rows) == 1 and rows[0] > 1 and groups % rows[0] == 0

    def attended(self, output: Tensor, query: Tensor, call: int) -> None:
        """Make the output of an attention call an origin of its own, with the lineage of its queries and the call."""
        asking = [side.origins for side, _ in self._of(query).pairs] or [self._side(query).origins]
        self._asked[call] = (self.lineage(query), _NONE.union(*asking))
        self._known[output] = Known(lineage=self.lineage(query) | {call})

    def bridge(self, given: Tensor, result: Tensor) -> None:
        """Take the result of a module that could not be watched for a projection of what it was given.

        Quantised layers and autograd functions of a model's own are such; anything seen of the result is kept.
        """
        known = self._of(result)
        if not known.origins and not known.lineage:
            origins = frozenset({self._number(given)})
            self._known[result] = known._replace(origins=origins, lineage=self.lineage(given))

    def is_buffer(self, tensor: Tensor) -> bool:
        """Return whether the model writes into the tensor's memory piece by piece, and may do so again."""
        return self._of(tensor).is_written

    def packed_heads(self, query: Tensor) -> int:
        """Return how many heads' single queries were packed into the dimension of the queries; 1 where none were."""
        return self._of(query).packed

    def fold(self, tensor: Tensor) -> Fold | None:
        """Return how the tensor's dimension 0 was folded from batch and heads, if that was seen."""
        found = self._of(tensor).fold
        return found if found is not None and tensor.shape[0] == found.size else None

    def _sides(self, tensor: Tensor) -> tuple[Side, ...]:
        """Return what the tensor is as a whole, and each of the parts it was put together from."""
        return (*self._of(tensor).parts, self._side(tensor))

    def _side(self, tensor: Tensor) -> Side:
        number = self._number(tensor)
        known = self._of(tensor)
        # What is a projection of nothing that was seen is its own origin, told from what is one by its sign.
        return Side(known.origins or frozenset({-number}), known.lineage, self.is_learned(tensor), number)

    def _number(self, tensor: Tensor) -> int:
        known = self._of(tensor)
        if known.number:
            return known.number
        self._next += 1
        self._known[tensor] = known._replace(number=self._next)
        return self._next

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
        if _takes_all(func, args):
            func = Tensor.unsqueeze
        is_learned = all(self.is_learned(source) for source in sources)
        if func in LOOKUPS:
            sources = [s for s in sources if s.is_floating_point()]
        if _projects(func) or (func in PRODUCTS and any(isinstance(s, nn.Parameter) for s in sources)):
            self._project(func, sources, results, is_learned)
            return
        known = [self._of(source) for source in sources]
        made = _joined(known, is_learned)
        if func in PRODUCTS and len(sources) >= 2:
            pairs = {(self._side(sources[-2]), side) for side in self._sides(sources[-1])}
            # A product's rows are its first factor's.
            made = made._replace(pairs=made.pairs | pairs, lineage=self.lineage(sources[-2]))
        parts = self._assembled(func, sources, known)
        if len(parts) > 1 or func in WRITES or (known and known[0].is_written and func in VIEWS):
            is_view = bool(known) and known[0].is_written and func in VIEWS
            parts = parts if len(parts) > 1 else ()
            made = made._replace(parts=parts, is_written=func in WRITES or is_view)
        if func in SPLITS and results[0].shape[:-1] == sources[0].shape[:-1]:
            made = made._replace(piece=(self._number(sources[0]), len(results)))
        elif func in JOINS and (fold := _stacked_heads(sources, known, results[0])) is not None:
            made = made._replace(fold=fold)
        for result in results:
            self._store(func, sources, result, made, batch)

    def _store(
        self, func: Callable[..., Any], sources: list[Tensor], result: Tensor, made: Known, batch: int | None
    ) -> None:
        if func in RESHAPES:
            fold = _made_fold(sources[0], result, batch)
            heads = _packed_heads(sources[0], result)
            if fold is not None or heads > 1:
                made = made._replace(fold=fold or made.fold, packed=heads)
        if func in SAME_TOKENS:
            made = made._replace(number=self._number(sources[0]))
        if made is not _NOTHING or result in self._known:
            self._known[result] = made

    def _assembled(self, func: Callable[..., Any], sources: list[Tensor], known: list[Known]) -> tuple[Side, ...]:
        """Return the parts of a result: what is put together here, or what its sources were put together from."""
        if func in ASSEMBLES:
            pieces = [s for s in sources if s.is_floating_point() and self._of(s).origins]
            return tuple(dict.fromkeys(side for s in pieces for side in self._sides(s)))[-_KEPT:]
        with_parts = [k.parts for k in known if k.parts]
        return tuple(dict.fromkeys(side for parts in with_parts for side in parts))[-_KEPT:] if with_parts else ()

    def _project(
        self, func: Callable[..., Any], sources: list[Tensor], results: list[Tensor], is_learned: bool
    ) -> None:
        # torch.addmm(bias, x, weight) has its input second, every other projection first.
        inputs = [s for s in sources[(func is torch.addmm) :] if not isinstance(s, nn.Parameter)]
        if not inputs:
            if is_learned:
                for result in results:
                    self._known[result] = Known(is_learned=True)
            return
        given = inputs[0]
        known = self._of(given)
        origins = frozenset({self._number(given)}) | self._through(func, given)
        for result in results:
            # Scores that are mixed from head to head stay scores.
            pairs = known.pairs if given.dim() == 4 and result.shape == given.shape else _NO_PAIRS
            self._known[result] = Known(
                origins=origins, lineage=known.lineage, pairs=pairs, fold=known.fold, is_learned=is_learned
            )

    def _through(self, func: Callable[..., Any], given: Tensor) -> Origins:
        """Return what a linear layer's input is itself one projection of, token by token; else nothing.

        Latent attention projects its tokens down and up again, queries and keys each by their own way.
        """
        if func is not F.linear:
            return _NONE
        rows = self._rows[self._number(given)] = given.numel() // max(given.shape[-1], 1)
        origins = self._of(given).origins
        return origins if [self._rows.get(origin) for origin in origins] == [rows] else _NONE


def _joined(known: list[Known], is_learned: bool) -> Known:
    """Return what is known of a result that is made of several tensors element by element, or of parts of them."""
    informed = [k for k in known if k.origins or k.lineage or k.pairs or k.fold]
    if not informed:
        return Known(is_learned=True) if is_learned else _NOTHING
    first = informed[0]
    if len(informed) == 1:
        return Known(0, first.origins, first.lineage, first.pairs, fold=first.fold, is_learned=is_learned)
    origins = _NONE.union(*(k.origins for k in informed))
    if len(origins) > _KEPT:
        origins = frozenset(sorted(origins)[-_KEPT:])
    fold = next((k.fold for k in informed if k.fold is not None), None)
    return Known(
        origins=origins,
        lineage=_NONE.union(*(k.lineage for k in informed)),
        pairs=_NO_PAIRS.union(*(k.pairs for k in informed)),
        fold=fold,
        is_learned=is_learned,
    )


def _projects(func: Callable[..., Any]) -> bool:
    """Return whether an operation is a projection: a linear layer, quantised ones included, or a convolution."""
    is_custom = type(func) in (OpOverload, OpOverloadPacket)
    return func in PROJECTIONS or (is_custom and "linear" in func.__name__)


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


def _takes_all(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Return whether an index takes all of a tensor, as x[:, None] does, which only adds dimensions of size 1."""
    index = args[1] if func is Tensor.__getitem__ and len(args) > 1 else 0
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or (isinstance(p, slice) and p == slice(None)) for p in parts)


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


def _stacked_heads(pieces: list[Tensor], known: list[Known], joined: Tensor) -> Fold | None:
    """Return the fold that joining all pieces of a (B, N, H * d) along the batch makes, one head after the other."""
    sources = {k.piece for k in known}
    piece = known[0].piece if known else None
    if len(sources) != 1 or piece is None or piece[1] != len(pieces):
        return None
    batch = pieces[0].shape[0]
    return Fold(batch, len(pieces), False) if joined.shape[0] == batch * len(pieces) else None


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor)]


def _results(func: Callable[..., Any], out: Any) -> list[Tensor]:
    """Return the tensors that an operation has made or written, with what a written view is a part of."""
    results = _tensors(out if isinstance(out, (tuple, list)) else (out,))
    return results + _tensors(r._base for r in results) if func in WRITES else results


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (tuple, list)):
            yield from value
        else:
            yield value
