"""Attention attributions, adapters and official LIME for Captum."""

from typing import TYPE_CHECKING, Any

from captum_attn_lime import adapters, attention, errors, features, lime, methods, metrics, perturb, plot, testing
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
    submodular_pick,
)
from captum_attn_lime.metrics import global_view

if TYPE_CHECKING:
    from captum_attn_lime.lime import LimeExplanation

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
    "LimeExplanation",
    "LimeImage",
    "LimeSequence",
    "LimeTabular",
    "LimeText",
    "SequenceAdapter",
    "TabularAdapter",
    "TextAdapter",
    "WordTokenizer",
    "adapters",
    "as_explanation_func",
    "attention",
    "captum_lime",
    "capture",
    "compare",
    "describe",
    "errors",
    "features",
    "global_view",
    "lime",
    "methods",
    "metrics",
    "perturb",
    "plot",
    "register_attention",
    "submodular_pick",
    "testing",
]


def __getattr__(name: str) -> Any:
    """Return ``LimeExplanation``, which imports the lime package, when it is asked for."""
    if name == "LimeExplanation":
        from captum_attn_lime.lime import LimeExplanation

        return LimeExplanation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
