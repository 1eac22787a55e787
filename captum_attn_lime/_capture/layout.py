"""Converts softmax weights from the model's layout to (B, H, Q, K), and its output to (B, H, Q, d)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_attn_lime._capture.operations import MATRIX_TRANSPOSE
from captum_attn_lime._capture.provenance import Fold
from captum_attn_lime._capture.recorder import Recorder, RowView
from captum_attn_lime.errors import UnreadableAttentionError


class Placed(NamedTuple):
    """Weights (B, H, Q, K), the value (B, H, K, d), and a function from the call's output to (B, H, Q, d).

    ``summed`` is the dimension of the value, in the model's layout, that the product sums over.
    """

    weights: Tensor
    value: Tensor
    rows: RowView
    summed: int = -2


def from_matmul(weights: Tensor, value: Tensor, recorder: Recorder) -> Placed:
    """Convert ``weights @ value`` with keys last: (B, H, Q, K), (B, Q, K) or (B * H, Q, K)."""
    if weights.dim() == 4:
        swap = weights.shape[0] != recorder.batch and weights.shape[1] == recorder.batch
        if swap and (fold := recorder.places.fold(value, recorder.batch)) is not None:
            swap = fold.heads > 1  # otherwise windows come first, and the number of heads equals the batch size

        def rows(x: Tensor) -> Tensor:
            return x.transpose(0, 1) if swap else x

        return Placed(rows(weights), rows(value), rows)
    if weights.dim() == 3:
        unfold = _unfold(weights, value, recorder)
        return Placed(unfold(weights), unfold(value), unfold)
    raise UnreadableAttentionError(
        f"the softmax attention in {recorder.module_name!r} has weights of shape {tuple(weights.shape)}; "
        "(B, H, Q, K), (B, Q, K) or (B*H, Q, K) is needed to distinguish examples, heads, queries and keys."
    )


def _unfold(weights: Tensor, value: Tensor, recorder: Recorder) -> Callable[[Tensor], Tensor]:
    """Return the function from (X, ...) to (B, H, ...), where X is the batch, or batch and heads combined."""
    size, batch = weights.shape[0], recorder.batch
    fold = recorder.places.fold(value, batch) or recorder.provenance.fold(weights) or recorder.provenance.fold(value)
    if fold is None and size == batch:
        fold = Fold(size, 1, True)
    if fold is None and batch == 1:
        fold = Fold(1, size, True)
    if fold is None:
        raise UnreadableAttentionError(
            f"the softmax attention in {recorder.module_name!r} has weights of shape {tuple(weights.shape)} for a "
            f"batch of {batch}, and it is unknown how heads and examples share dimension 0. Explain one example at a "
            "time, or reshape from (B, H, N, d) inside the model."
        )

    return unfolding(fold)


def unfolding(fold: Fold) -> Callable[[Tensor], Tensor]:
    """Return the function from (B * H, ...) to (B, H, ...)."""

    def unfold(x: Tensor) -> Tensor:
        if fold.batch_first:
            return x.reshape(fold.batch, fold.heads, *x.shape[1:])
        return x.reshape(fold.heads, fold.batch, *x.shape[1:]).transpose(0, 1)

    return unfold


def transposed(placed: Placed) -> Placed:
    """Return the conversion for ``valueᵀ @ weightsᵀ``, whose output is (..., d, Q)."""
    return placed._replace(rows=lambda x: placed.rows(x.transpose(-1, -2)), summed=-1)


def from_broadcast(weights: Tensor, value: Tensor, axis: int, recorder: Recorder) -> Placed:
    """Convert additive attention, ``(weights * value).sum(axis)``: one row of attention per head.

    ``weights`` is (B, N, 1) for values (B, N, D), or (B, N, H, 1) for (B, N, H, d), with N and H in any order.
    """
    others = [d for d in range(1, weights.dim()) if d != axis and weights.shape[d] != 1]
    if axis == 0 or len(others) > 1:
        raise UnreadableAttentionError(
            f"the additive attention in {recorder.module_name!r} has weights of shape {tuple(weights.shape)} summed "
            f"over dimension {axis}; (B, N, 1) or (B, N, H, 1) is needed to distinguish heads from keys."
        )
    order = [0, *others, axis]
    rest = [d for d in range(weights.dim()) if d not in order]
    heads = weights.shape[others[0]] if others else 1

    def place(x: Tensor, n: int) -> Tensor:
        return x.permute(*order, *rest).reshape(len(x), heads, n, -1)

    n = weights.shape[axis]
    placed = place(weights, n).transpose(-1, -2)  # (B, H, 1, N)
    full = torch.broadcast_tensors(weights, value)[1]  # type: ignore[no-untyped-call]

    def rows(x: Tensor) -> Tensor:
        """Return the sum (B, ...) with the heads before the remaining features, (B, H, 1, d)."""
        kept = x if x.dim() == weights.dim() else x.unsqueeze(axis)
        return place(kept, 1)

    return Placed(placed, place(full, n), rows, axis - value.dim())


def from_einsum(
    equation: str, index: int, weights: Tensor, axis: int, value: Tensor, recorder: Recorder
) -> Placed | None:
    """Convert an einsum of weights and values by its letters; None if it does not contract the softmax dimension."""
    inputs, _, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not out:
        return None
    if "..." in inputs:
        terms, out = _spelled_out(terms, out, index, weights, value)
    term, other = terms[index], terms[1 - index]
    if len(set(term)) != len(term) or len(term) != weights.dim():
        return None
    key = term[axis]
    if key in out or key not in other:
        return None
    sizes = dict(zip(term, weights.shape, strict=True))
    batch = [c for c in term if c in out and c in other]
    queries = [c for c in term if c in out and c not in other]
    heads: list[str] = []
    if len(batch) == 2:
        # The letter with the batch size is the batch; if both have it, or the batch size is unknown, the first.
        second = sizes[batch[1]] == recorder.batch and sizes[batch[0]] != recorder.batch
        example = batch[1] if second else batch[0]
        heads = [c for c in batch if c != example]
        batch = [example]
    elif len(queries) == 2:
        # Keys shared by all heads: the query letter has the keys' length, or is next to the keys.
        same = [c for c in queries if sizes[c] == sizes[key]]
        query = same[0] if len(same) == 1 else min(queries, key=lambda c: abs(term.index(c) - axis))
        heads = [c for c in queries if c != query]
        queries = [query]
    if len(batch) != 1 or len(queries) > 1 or len(heads) > 1:
        raise UnreadableAttentionError(
            f"the einsum attention {equation!r} in {recorder.module_name!r} cannot be interpreted as examples, heads, "
            "queries and keys; register the weights with register_attention."
        )
    if recorder.batch is not None and _differs_by_query(term, axis, batch[0], queries + heads, sizes, recorder.batch):
        return None
    return _by_letters(term, other, out, batch + heads, queries, key, weights, value)


def _differs_by_query(term: str, axis: int, shared: str, others: list[str], sizes: dict[str, int], batch: int) -> bool:
    """Return whether the second operand has a row for each query and key, shared by all examples.

    Relative positions do: "bhij,ijd->bhid" has the query letter where values have the letter of the examples.
    """
    beside_keys = abs(term.index(shared) - axis) == 1
    is_query = beside_keys and any(sizes[c] == batch and term.index(c) < term.index(shared) for c in others)
    return bool(sizes[shared] % batch) or is_query


def _spelled_out(terms: list[str], out: str, index: int, weights: Tensor, value: Tensor) -> tuple[list[str], str]:
    """Return an einsum's terms with ``...`` replaced by letters; shapes broadcast from the right."""
    dims = (weights.dim(), value.dim()) if index == 0 else (value.dim(), weights.dim())
    free = [c for c in "ABCDEFGHIJKLMNOP" if c not in "".join(terms)]
    hidden = [n - len(t) + 3 if "..." in t else 0 for t, n in zip(terms, dims, strict=True)]
    letters = "".join(free[: max(hidden)])
    spelled = [t.replace("...", letters[len(letters) - n :]) for t, n in zip(terms, hidden, strict=True)]
    return spelled, out.replace("...", letters)


def _by_letters(
    term: str,
    other: str,
    out: str,
    lead: list[str],
    queries: list[str],
    key: str,
    weights: Tensor,
    value: Tensor,
) -> Placed:
    def arrange(x: Tensor, letters: str, last: list[str]) -> Tensor:
        """Return x as (B, H or 1, *last or 1, the rest)."""
        present = [c for c in lead if c in letters]
        rest = [c for c in letters if c not in present and c not in last]
        x = x.permute(*[letters.index(c) for c in (*present, *last, *rest)])
        x = x.reshape(*x.shape[: len(present) + len(last)], -1)
        if len(present) == 1:
            x = x.unsqueeze(1)
        return x if last else x.unsqueeze(2)

    placed = arrange(weights, term, queries)  # (B, H, Q, K)
    rows: RowView = lambda x: arrange(x, out, queries)  # noqa: E731
    return Placed(placed, arrange(value, other, [key]), rows, other.index(key))


def moved_axis(func: Callable[..., Any], args: tuple[Any, ...], before: Tensor, after: Tensor, axis: int) -> int | None:
    """Return the position of the softmax dimension after an operation that moves dimensions; None if it is lost."""
    if func in (Tensor.transpose, torch.transpose, Tensor.swapaxes):
        a, b = (d % before.dim() for d in args[1:3])
        return int({a: b, b: a}.get(axis, axis))
    if func in (Tensor.permute, torch.permute):
        order = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return [d % before.dim() for d in order].index(axis)
    if func == MATRIX_TRANSPOSE:
        return {before.dim() - 1: before.dim() - 2, before.dim() - 2: before.dim() - 1}.get(axis, axis)
    if func in (Tensor.unsqueeze, torch.unsqueeze):
        return axis + int(args[1] % after.dim() <= axis)
    if after.shape == before.shape:
        return axis
    if func is Tensor.__getitem__ and after.dim() == before.dim():
        return axis  # a slice, possibly along the keys, as when attention sinks are cut off
    same_size = [d for d in range(after.dim()) if after.shape[d] == before.shape[axis]]
    if axis == before.dim() - 1 and after.dim() - 1 in same_size:
        return after.dim() - 1
    return same_size[0] if len(same_size) == 1 else None
