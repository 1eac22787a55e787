"""`Keep`: what a capture stores of each attention call, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from captum_attn_lime.attention import AttentionMap, HeadFusion, ScoreMap, check_head_fusion, offloaded
from captum_attn_lime.errors import InputError


@dataclass(frozen=True)
class Keep:
    """What a capture stores of each call, and where.

    By default the map of a fused call stores query, key and masks, in memory linear in the tokens. The map of a call
    whose weights the model computed itself stores those, H·N² numbers.

    Attributes:
        values: Whether to store the value tensors too (``attention.value``).
        head_fusion: How to fuse weights that the model computed itself over their heads during the capture: N² numbers
            instead of H·N². Such maps support only products with this fusion. None stores all heads.
        heads: The heads to fuse; all by default.
        offload: Where to move queries and keys during the capture: ``"cpu"``, for a model on another device, or a
            folder for files that exist as long as the maps. A product then loads one layer at a time.

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
            raise InputError(f"offload={self.offload!r} is not a folder; pass 'cpu' or an existing folder.")

    def of(self, attention: AttentionMap, value: Tensor) -> AttentionMap:
        """Return the map in the form in which it is stored."""
        if self.values:
            attention.set_value(value.detach())
        elif self.head_fusion is not None and attention.shape[2] > 1 and attention.kind != "cross":
            attention = attention.with_fused_heads(self.head_fusion, self.heads)
        if isinstance(attention, ScoreMap) and not self.values:
            attention.compact()
        return attention if self.offload is None else offloaded(attention, self.offload)
