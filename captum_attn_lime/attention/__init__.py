"""Attention as a lazy linear operator: what produced the weights is kept, and a few verbs compute from it."""

from captum_attn_lime.attention.dense import DenseMap, HeadFusedMap
from captum_attn_lime.attention.fusion import HeadFusion, fuse_heads, select_heads
from captum_attn_lime.attention.map import AttentionKind, AttentionMap
from captum_attn_lime.attention.modified import ModifiedScoreMap
from captum_attn_lime.attention.offload import OffloadedMap, offloaded
from captum_attn_lime.attention.scores import ScoreMap
from captum_attn_lime.attention.windowed import WindowedMap

__all__ = [
    "AttentionKind",
    "AttentionMap",
    "DenseMap",
    "HeadFusedMap",
    "HeadFusion",
    "ModifiedScoreMap",
    "OffloadedMap",
    "ScoreMap",
    "WindowedMap",
    "fuse_heads",
    "offloaded",
    "select_heads",
]
