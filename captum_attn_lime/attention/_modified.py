"""`ModifiedScoreMap`: attention whose scores are modified by functions of position, as in flex_attention."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime.attention._blocks import Block
from captum_attn_lime.attention._dense import DenseMap
from captum_attn_lime.attention._map import AttentionKind
from captum_attn_lime.attention._scores import ScoreMap

ScoreMod = Callable[..., Tensor]
MaskMod = Callable[..., Tensor]


class ModifiedScoreMap(ScoreMap):
    """Attention stored as query and key, with the functions that modify and mask its scores.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, Hk, K, d)`` where Hk divides H.
        score_mod: Function of a score and its example, head, query and key index that returns the modified score.
        mask_mod: Function of example, head, query and key index that returns whether the query may attend to the key.
        scale: Factor on the scores; 1/√d by default.
        name: Module path.
        kind: Kind of the call.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> ModifiedScoreMap(q, q, mask_mod=lambda b, h, i, j: i >= j).dense()
        tensor([[[[1.0000, 0.0000],
                  [0.5000, 0.5000]]]])
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        *,
        score_mod: ScoreMod | None = None,
        mask_mod: MaskMod | None = None,
        scale: float | None = None,
        name: str = "",
        kind: AttentionKind = "unknown",
    ) -> None:
        super().__init__(query, key, scale=scale, name=name, kind=kind)
        self.score_mod, self.mask_mod = score_mod, mask_mod

    def __reduce_ex__(self, protocol: Any) -> Any:
        try:
            pickle.dumps((self.score_mod, self.mask_mod))
        except (pickle.PicklingError, AttributeError, TypeError):  # local functions: store their results
            dense = DenseMap(self.dense(), name=self.name, kind=self.kind)
            dense.copy_labels(self)
            dense.value, dense.output_gradient = self.value, self.output_gradient
            return copy.copy, (dense,)
        return super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModifiedScoreMap:
        other = object.__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def _scores(self, block: Block, heads: list[int]) -> Tensor:
        scores = super()._scores(block, heads)  # (b, h, q, k)
        where = (
            torch.arange(self.shape[0], device=self.device)[block.examples],
            torch.tensor(heads, device=self.device),
            block.queries.to(self.device),
            torch.arange(self.shape[3], device=self.device)[block.keys],
        )
        if self.score_mod is not None:
            scores = _vectorised(self.score_mod, with_score=True)(scores, *where).to(scores.dtype)
        if self.mask_mod is not None:
            allowed = _vectorised(self.mask_mod, with_score=False)(*where)
            scores = scores.masked_fill(~allowed, -math.inf)
        return scores

    def reads_itself(self) -> Tensor:
        """Return which tokens may attend to themselves according to the mask function, (B, N) of bool."""
        self._check_unwritten()
        batch, heads, n, _ = self.shape
        if self.mask_mod is None:
            return torch.ones(batch, n, dtype=torch.bool, device=self.device)
        token = torch.arange(n, device=self.device)
        diagonal = torch.vmap(lambda b, h, i: self.mask_mod(b, h, i, i), (None, None, 0))  # type: ignore[misc]
        by_head = torch.vmap(torch.vmap(diagonal, (None, 0, None)), (0, None, None))
        examples, all_heads = (torch.arange(k, device=self.device) for k in (batch, heads))
        return by_head(examples, all_heads, token).any(dim=1)

    def _first(self, examples: int) -> ModifiedScoreMap:
        return ModifiedScoreMap(
            self.query[:examples],
            self.key[:examples],
            score_mod=self.score_mod,
            mask_mod=self.mask_mod,
            scale=self.scale,
            name=self.name,
            kind=self.kind,
        )

    def _mean_product(self, r: Tensor) -> None:
        return None  # no kernel supports the functions


def _vectorised(function: Callable[..., Tensor], *, with_score: bool) -> Callable[..., Tensor]:
    """Return the function vectorised over tensors of examples, heads, queries and keys."""
    lead = (0,) if with_score else ()
    for axis in (3, 2, 1, 0):
        function = torch.vmap(function, (*lead, *(0 if k == axis else None for k in range(4))))
    return function
