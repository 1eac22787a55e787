"""Attention attributions, adapters and official LIME for Captum."""

from captum_attn_lime import features, plot
from captum_attn_lime._capture import capture, register_attention
from captum_attn_lime._compare import Comparison, as_explanation_func, compare
from captum_attn_lime._explained import Explained
from captum_attn_lime.adapters import ImageAdapter, SequenceAdapter, TabularAdapter, TextAdapter, WordTokenizer
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr import AttentionAttribution, Description, describe
from captum_attn_lime.generation import GenerationAttribution, GenerationAttributionResult
from captum_attn_lime.lime import (
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    captum_lime,
    check_captum_lime,
    submodular_pick,
)
from captum_attn_lime.metrics import global_view

__version__ = "0.1.0"

__all__ = [
    "AttentionAttribution",
    "AttentionMap",
    "Comparison",
    "Description",
    "Explained",
    "GenerationAttribution",
    "GenerationAttributionResult",
    "ImageAdapter",
    "LimeImage",
    "LimeSequence",
    "LimeTabular",
    "LimeText",
    "SequenceAdapter",
    "TabularAdapter",
    "TextAdapter",
    "WordTokenizer",
    "as_explanation_func",
    "captum_lime",
    "capture",
    "check_captum_lime",
    "compare",
    "describe",
    "features",
    "global_view",
    "plot",
    "register_attention",
    "submodular_pick",
]
