"""Test whether a model treats each token separately after its last attention call, from the autograd graph.

After its last attention call a transformer has a few operations that treat each token separately (projection,
feed-forward layer, norms), and then a head that selects or pools tokens. A gradient through the head alone, at the last
token state, shows which tokens the head reads, if every path from the attention call to the output passes through that
state, and no operation before it mixes tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from torch import Tensor

Node = Any  # torch.autograd.graph.Node
Shape = tuple[int, ...]

# Autograd's names of elementwise operations, with the tokens of the result aligned to those of the operands.
_POINTWISE = frozenset(
    f"{name}Backward0"
    for name in (
        "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Rsqrt", "Exp", "Tanh", "Sigmoid", "Silu", "Gelu", "Relu",
        "Elu", "LeakyRelu", "Hardswish", "Hardsigmoid", "Hardtanh", "Softplus", "Mish", "Clamp", "Clone", "ToCopy",
        "Erf", "NativeDropout", "LogSigmoid",
    )
) | frozenset({"AddBackward1", "MulBackward1", "DivBackward1", "SubBackward1", "PowBackward1"})  # fmt: skip
# Reshapes: the tokens keep their order if the dimensions before them keep their size.
_VIEWS = frozenset(
    f"{name}Backward0" for name in ("View", "UnsafeView", "ReshapeAlias", "Reshape", "Unsqueeze", "Squeeze", "Alias")
) | frozenset({"SqueezeBackward1"})  # fmt: skip
_SWAPS = frozenset({"TransposeBackward0", "PermuteBackward0"})
_LINEAR = frozenset({"AddmmBackward0", "MmBackward0"})  # over (tokens, features)
_LINEAR_ANY = frozenset({"LinearBackward0", "MkldnnLinearBackward0"})  # over (..., features)
# Reductions over the last dimension with keepdim, as in norms.
_REDUCTIONS = frozenset({"MeanBackward1", "SumBackward1", "VarBackward0", "StdBackward0", "LinalgVectorNormBackward0"})
_NORMS = frozenset({"NativeLayerNormBackward0", "FusedRmsNormBackward0"})
_SPLITS = frozenset({"SplitBackward0", "SplitWithSizesBackward0", "ChunkBackward0", "SliceBackward0", "CatBackward0"})


def last_state(output: Tensor, leaf: Tensor, states: Sequence[Tensor], batch: int, tokens: int) -> Tensor | None:
    """Return the last token state on all paths to the output, before which each token is treated separately.

    Args:
        output: The model's output, with its graph.
        leaf: The attention call's output, where the graph begins.
        states: Token states between the two, in order.
        batch: Number of examples.
        tokens: Number of tokens.

    Returns:
        One of the states, or None if the graph does not show one.
    """
    start = _node_of(leaf)
    if start is None or output.grad_fn is None or tokens < 2 or tokens == batch:
        return None
    for state in reversed(states[-4:]):
        node = state.grad_fn
        if node is None or len(node._input_metadata) > 1 or _reaches(output.grad_fn, start, without=node):
            continue  # one of several results of an operation, or not on all paths
        return state if _is_tokenwise(node, start, batch, tokens) else None
    return None


def _node_of(leaf: Tensor) -> Node | None:
    """Return the node that accumulates the gradient of a leaf."""
    if leaf.grad_fn is not None:
        return leaf.grad_fn
    node = leaf.view_as(leaf).grad_fn
    return None if node is None else node.next_functions[0][0]


def _reaches(node: Node, goal: Node, *, without: Node | None = None) -> bool:
    """Return whether a path leads from a node back to another one, without passing through a third."""
    seen, waiting = {without}, [node]
    while waiting:
        here = waiting.pop()
        if here is goal:
            return True
        if here is None or here in seen:
            continue
        seen.add(here)
        waiting.extend(_before(here))
    return False


def _before(node: Node) -> Iterator[Node]:
    return (found for found, _ in node.next_functions if found is not None)


def _is_tokenwise(node: Node, start: Node, batch: int, tokens: int) -> bool:
    """Return whether every operation on a path from a node back to the start treats each token separately."""
    leads: dict[Node, bool] = {start: True}

    def leads_to_start(here: Node) -> bool:
        if here not in leads:
            leads[here] = False
            for found in _before(here):  # no early exit: `leads` must be complete
                leads[here] = leads_to_start(found) or leads[here]
        return leads[here]

    leads_to_start(node)
    paths = {here: [s for s in _before(here) if leads.get(s)] for here, does in leads.items() if does}
    paths[start] = []
    operations = _Operations(paths, batch, tokens)
    return all(operations.keeps_tokens(here) for here in paths if here is not start)


class _Operations:
    """The operations on the paths to the start, and the shapes of their results.

    Args:
        paths: Each operation, with its predecessors on the paths.
        batch: Number of examples.
        tokens: Number of tokens.
    """

    def __init__(self, paths: dict[Node, list[Node]], batch: int, tokens: int) -> None:
        self._paths = paths
        self._batch, self._tokens = batch, tokens

    def keeps_tokens(self, node: Node) -> bool:
        """Return whether an operation keeps the tokens separate and in order."""
        name, shape, sources = node.name(), _shape(node), self._paths[node]
        place = self._axis(node)
        if place is None or any(self._axis(s) is None for s in sources):
            return False
        if name in _POINTWISE:
            return all(self._from_the_end(s) == self._from_the_end(node) for s in sources)
        if name in _VIEWS:
            return all(self._groups(s) == self._groups(node) for s in sources)
        if name in _SWAPS:
            return not self._is_folded(node) and not any(self._is_folded(s) for s in sources)
        if name in _LINEAR:
            return self._is_folded(node)
        if name in _LINEAR_ANY or name in _SPLITS or name in _NORMS or name in _REDUCTIONS:
            is_over_features = place < len(shape) - 1
            if name in _NORMS:
                over = getattr(node, "_saved_normalized_shape", None)
                return is_over_features and over is not None and len(over) == 1
            return is_over_features and (name not in _REDUCTIONS or shape[-1] == 1)
        return False

    def _axis(self, node: Node) -> int | None:
        """Return the dimension of the tokens: the only one of that size, or the first of (tokens * batch, D).

        None if another dimension has the same size.
        """
        shape = _shape(node)
        if self._is_folded(node):
            return 0 if shape[1] not in (self._tokens, shape[0]) else None
        whole = [i for i, size in enumerate(shape) if size == self._tokens]
        return whole[0] if len(whole) == 1 and self._batch in (1, *shape) else None

    def _is_folded(self, node: Node) -> bool:
        shape = _shape(node)
        return len(shape) == 2 and shape[0] == self._batch * self._tokens

    def _from_the_end(self, node: Node) -> int:
        """Return the dimension of the tokens, counted from the end as in broadcasting."""
        return len(_shape(node)) - (self._axis(node) or 0)

    def _groups(self, node: Node) -> int:
        """Return the number of groups of tokens before the dimension of the tokens; -1 if it is ambiguous.

        (B, N, D) has B, (N, B, D) has one. Folded to two dimensions they look alike, and the predecessors decide.
        """
        if not self._is_folded(node):
            return prod(_shape(node)[: self._axis(node) or 0])
        before = {self._groups(s) for s in self._paths[node]}
        return before.pop() if len(before) == 1 else -1


def _shape(node: Node) -> Shape:
    """Return the shape of an operation's result."""
    found = node._input_metadata
    return tuple(int(size) for size in found[0].shape) if found else ()
