"""What a capture keeps of each attention call, and where: it follows from what is to be computed from the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from captum_attn_lime.attention import AttentionMap, HeadFusion, ScoreMap, offloaded
from captum_attn_lime.attention._fusion import check_head_fusion
from captum_attn_lime.errors import InputError


@dataclass(frozen=True)
class Keep:
    """What a capture keeps of each call beside what tells its weights, and where.

    By default a fused call keeps its query, key and masks, memory that grows with the tokens, and a call whose weights
    the model computed itself keeps those, H·N² of them.

    Attributes:
        values: Keep the value tensors too (``attention.value``).
        head_fusion: Fuse weights that the model computed itself over their heads as they pass by, and keep no heads:
            N² in place of H·N². Such maps give products with that fusion only. None keeps the heads.
        heads: The heads that are fused; all by default.
        offload: Where queries and keys are moved as soon as they are captured: ``"cpu"``, the memory of the machine of
            a model on another device, or a folder, in which they lie in files until the maps are forgotten. A product
            then brings back one layer at a time.

    Example:
        >>> Keep(offload="cpu")
        Keep(values=False, head_fusion=None, heads=None, offload='cpu')
    """

    values: bool = False
    head_fusion: HeadFusion | None = None
    heads: int | Sequence[int] | None = None
    offload: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.head_fusion is not None:
            check_head_fusion(self.head_fusion)
        if self.offload is not None and self.offload != "cpu" and not Path(self.offload).is_dir():
            raise InputError(f"offload={self.offload!r} is no folder; pass 'cpu' or a folder that exists.")

    def of(self, attention: AttentionMap, value: Tensor) -> AttentionMap:
        """Return the map in the form in which it is kept."""
        if self.values:
            attention.hold_value(value.detach())
        elif self.head_fusion is not None and attention.shape[2] > 1 and attention.kind != "cross":
            attention = attention.with_fused_heads(self.head_fusion, self.heads)
        if isinstance(attention, ScoreMap) and not self.values:
            attention.own_memory()
        return attention if self.offload is None else offloaded(attention, self.offload)
