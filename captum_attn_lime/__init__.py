"""Attention attributions, adapters and official LIME for Captum."""

from captum_attn_lime import features, plot
from captum_attn_lime.adapters import ImageAdapter, SequenceAdapter, TabularAdapter, TextAdapter, WordTokenizer
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attribution import AttentionAttribution
from captum_attn_lime.capture import Keep, capture, register_attention
from captum_attn_lime.compare import Comparison, compare
from captum_attn_lime.describe import Description, describe
from captum_attn_lime.generation import GenerationAttribution, GenerationAttributionResult
from captum_attn_lime.lime import LimeImage, LimeSequence, LimeTabular, LimeText

__version__ = "0.1.0"

__all__ = [
    "AttentionAttribution",
    "AttentionMap",
    "Comparison",
    "Description",
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
    "capture",
    "compare",
    "describe",
    "features",
    "plot",
    "register_attention",
]
