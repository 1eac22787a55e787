"""Whether a model's end treats each token separately: read off the autograd graph behind the last attention call.

Behind its last attention call a transformer has a few steps that treat each token separately (projection, feed-forward
layer, norms), and then a head that picks or pools tokens. Which tokens the head reads can then be seen at the last
token state, at the price of a gradient through the head alone, if two things hold: everything that reaches the output
from the attention call passes through that state, and no step before it mixes tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from torch import Tensor

Node = Any  # torch.autograd.graph.Node
Shape = tuple[int, ...]

# Autograd's names for steps whose result has its tokens where its operands have them, whatever the shapes.
_POINTWISE = frozenset(
    f"{name}Backward0"
    for name in (
        "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Rsqrt", "Exp", "Tanh", "Sigmoid", "Silu", "Gelu", "Relu",
        "Elu", "LeakyRelu", "Hardswish", "Hardsigmoid", "Hardtanh", "Softplus", "Mish", "Clamp", "Clone", "ToCopy",
        "Erf", "NativeDropout", "LogSigmoid",
    )
) | frozenset({"AddBackward1", "MulBackward1", "DivBackward1", "SubBackward1", "PowBackward1"})  # fmt: skip
# Steps that rearrange cells: the tokens stay in their order if what lies before them does.
_VIEWS = frozenset(
    f"{name}Backward0" for name in ("View", "UnsafeView", "ReshapeAlias", "Reshape", "Unsqueeze", "Squeeze", "Alias")
) | frozenset({"SqueezeBackward1"})  # fmt: skip
_SWAPS = frozenset({"TransposeBackward0", "PermuteBackward0"})
_LINEAR = frozenset({"AddmmBackward0", "MmBackward0"})  # over (tokens, features)
_LINEAR_ANY = frozenset({"LinearBackward0", "MkldnnLinearBackward0"})  # over (..., features)
# Over the last dimension, which is kept: parts of a norm.
_REDUCTIONS = frozenset({"MeanBackward1", "SumBackward1", "VarBackward0", "StdBackward0", "LinalgVectorNormBackward0"})
_NORMS = frozenset({"NativeLayerNormBackward0", "FusedRmsNormBackward0"})
_SPLITS = frozenset({"SplitBackward0", "SplitWithSizesBackward0", "ChunkBackward0", "SliceBackward0", "CatBackward0"})


def last_state(output: Tensor, leaf: Tensor, states: Sequence[Tensor], batch: int, tokens: int) -> Tensor | None:
    """Return the latest token state through which all goes, and before which each token is treated separately.

    Args:
        output: What the model puts out, with its graph.
        leaf: The attention call's output, where the graph begins.
        states: Token states between the two, in order.
        batch: Number of examples.
        tokens: Number of tokens.

    Returns:
        One of the states, or None where that cannot be read off the graph.
    """
    start = _node_of(leaf)
    if start is None or output.grad_fn is None or tokens < 2 or tokens == batch:
        return None
    for state in reversed(states[-4:]):
        node = state.grad_fn
        if node is None or len(node._input_metadata) > 1 or _reaches(output.grad_fn, start, without=node):
            continue  # one of several results of a step says nothing of the others
        return state if _is_tokenwise(node, start, batch, tokens) else None
    return None


def _node_of(leaf: Tensor) -> Node | None:
    """Return the node at which gradients of a leaf arrive."""
    if leaf.grad_fn is not None:
        return leaf.grad_fn
    node = leaf.view_as(leaf).grad_fn
    return None if node is None else node.next_functions[0][0]


def _reaches(node: Node, goal: Node, *, without: Node | None = None) -> bool:
    """Return whether a way leads from a node back to another one, without going through a third."""
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
    """Return whether every step on a way from a node back to the start treats each token separately."""
    leads: dict[Node, bool] = {start: True}

    def leads_to_start(here: Node) -> bool:
        if here not in leads:
            leads[here] = False
            for found in _before(here):  # all of them, for each is asked about later
                leads[here] = leads_to_start(found) or leads[here]
        return leads[here]

    leads_to_start(node)
    way = {here: [s for s in _before(here) if leads.get(s)] for here, does in leads.items() if does}
    way[start] = []
    steps = _Steps(way, batch, tokens)
    return all(steps.keeps_tokens(here) for here in way if here is not start)


class _Steps:
    """The steps on the way, by the shapes of their results.

    Args:
        way: Each step, with those before it that lie on the way.
        batch: Number of examples.
        tokens: Number of tokens.
    """

    def __init__(self, way: dict[Node, list[Node]], batch: int, tokens: int) -> None:
        self._way = way
        self._batch, self._tokens = batch, tokens

    def keeps_tokens(self, node: Node) -> bool:
        """Return whether a step leaves each token where it is and mixes none."""
        name, shape, sources = node.name(), _shape(node), self._way[node]
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
        """Return which dimension counts tokens: the only one of their number, or the first of (tokens * batch, D).

        Where another dimension has the same size, it could be mistaken, and there is none.
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
        """Return which dimension counts tokens, from the end, as broadcasting aligns them."""
        return len(_shape(node)) - (self._axis(node) or 0)

    def _groups(self, node: Node) -> int:
        """Return how many groups of tokens a layout has in front of its tokens; -1 where that is not one number.

        (B, N, D) has B, (N, B, D) has one. Folded to two dimensions either looks alike, and the step before decides.
        """
        if not self._is_folded(node):
            return prod(_shape(node)[: self._axis(node) or 0])
        before = {self._groups(s) for s in self._way[node]}
        return before.pop() if len(before) == 1 else -1


def _shape(node: Node) -> Shape:
    """Return the shape of a step's result."""
    found = node._input_metadata
    return tuple(int(size) for size in found[0].shape) if found else ()
