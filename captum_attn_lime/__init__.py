"""Attention attributions, adapters and official LIME for Captum."""

from captum_attn_lime import features, plot
from captum_attn_lime.adapters import ImageAdapter, SequenceAdapter, TabularAdapter, TextAdapter, WordTokenizer
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attribution import AttentionAttribution
from captum_attn_lime.capture import Keep, capture, register_attention
from captum_attn_lime.compare import compare
from captum_attn_lime.comparison import Comparison
from captum_attn_lime.describe import Description, describe
from captum_attn_lime.explained import Explained
from captum_attn_lime.explanation_func import as_explanation_func
from captum_attn_lime.generation import GenerationAttribution, GenerationAttributionResult
from captum_attn_lime.global_view import global_view
from captum_attn_lime.lime import (
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    captum_lime,
    check_captum_lime,
    submodular_pick,
)

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
    "Keep",
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
