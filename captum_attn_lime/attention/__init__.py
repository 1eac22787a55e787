"""Attention maps: captured attention calls as lazy linear operators."""

from captum_attn_lime.attention._combine import Combine, WeightBlock
from captum_attn_lime.attention._dense import DenseMap, HeadFusedMap
from captum_attn_lime.attention._fusion import HeadFusion, check_head_fusion, check_heads, fuse_heads, select_heads
from captum_attn_lime.attention._map import AttentionKind, AttentionMap, DerivedMap
from captum_attn_lime.attention._modified import ModifiedScoreMap
from captum_attn_lime.attention._offload import OffloadedMap, offloaded
from captum_attn_lime.attention._one_row import OneRowMap
from captum_attn_lime.attention._scores import ScoreMap
from captum_attn_lime.attention._windowed import WindowedMap

__all__ = [
    "AttentionKind",
    "AttentionMap",
    "Combine",
    "DenseMap",
    "DerivedMap",
    "HeadFusedMap",
    "HeadFusion",
    "ModifiedScoreMap",
    "OffloadedMap",
    "OneRowMap",
    "ScoreMap",
    "WeightBlock",
    "WindowedMap",
    "check_head_fusion",
    "check_heads",
    "fuse_heads",
    "offloaded",
    "select_heads",
]
