"""`WeightBlock`, the argument of the function in `AttentionMap.reduce`, and the functions that combine heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_attn_lime.attention._blocks import examples_of, rows_of
from captum_attn_lime.attention._fusion import HeadFusion, check_head_fusion, fuse_heads


@dataclass(frozen=True, eq=False, repr=False)
class WeightBlock:
    """A part of an attention map: some query rows of some examples, and the keys that they may attend to.

    In a `WindowedMap` the examples are windows, and rows and keys are positions in them.

    Attributes:
        weights: The weights of the selected heads, (b, h, q, k); read-only.
        examples: Slice of the batch.
        queries: Row indices, (q,).
        keys: Slice of the keys; the rows' weights on other keys are zero, or in other blocks.
    """

    weights: Tensor
    examples: slice
    queries: Tensor
    keys: slice
    _of_heads: Callable[[Literal["value", "output_gradient"]], Tensor]  # (B, h, ...)

    @property
    def value(self) -> Tensor:
        """The values that the weights multiply, (b, h, k, d).

        Raises:
            SelectionError: The values were not captured.
        """
        return examples_of(self._of_heads("value"), self.examples)[:, :, self.keys].to(self.weights.dtype)

    @property
    def output_gradient(self) -> Tensor:
        """The gradient of the explained number with respect to the call's output, (b, h, q, d).

        Raises:
            SelectionError: The gradient was not computed.
        """
        return self._of_heads("output_gradient")[self.examples][:, :, rows_of(self.queries)].to(self.weights.dtype)


Combine = Callable[[WeightBlock], Tensor]  # (b, h, q, k) to (b, q, k)


@dataclass(frozen=True)
class Fuse:
    """The heads' mean, maximum or minimum."""

    head_fusion: HeadFusion

    def __post_init__(self) -> None:
        check_head_fusion(self.head_fusion)

    def __call__(self, block: WeightBlock) -> Tensor:
        """Return the fused weights, (b, q, k)."""
        return fuse_heads(block.weights, self.head_fusion)


MEAN = Fuse("mean")


@dataclass(frozen=True)
class FuseWithResidual(Fuse):
    """Rows of (1 - residual)·A + residual·I, with A fused over heads, divided by their sums; needs whole rows."""

    residual: float

    def __call__(self, block: WeightBlock) -> Tensor:
        """Return the rows, (b, q, k)."""
        rows = (1 - self.residual) * super().__call__(block)
        places = torch.arange(len(block.queries), device=rows.device)
        rows[:, places, block.queries.to(rows.device) - (block.keys.start or 0)] += self.residual
        sums = rows.sum(dim=-1, keepdim=True)
        return rows / sums.masked_fill(sums == 0, 1.0)  # a row of zeros stays zero


@dataclass(frozen=True)
class Gate:
    """(A ⊙ ∂A)⁺ fused over heads, with the gradient of the weights computed from that of the output: ∂A = ∂O Vᵀ."""

    head_fusion: HeadFusion

    def __post_init__(self) -> None:
        check_head_fusion(self.head_fusion)

    def __call__(self, block: WeightBlock) -> Tensor:
        """Return the fused positive parts, (b, q, k)."""
        gradient = block.output_gradient @ block.value.transpose(-1, -2)  # (b, h, q, k)
        return fuse_heads(gradient.mul_(block.weights).relu_(), self.head_fusion)
