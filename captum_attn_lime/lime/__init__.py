"""Official LIME as Captum attributions, and lime's explanations as weights of features and words."""

from captum_attn_lime.lime.explanations import (
    explanation_prediction,
    explanation_score,
    explanation_spans,
    explanation_weights,
    safe_html,
    token_weights,
    word_weights,
)
from captum_attn_lime.lime.image import LimeImage
from captum_attn_lime.lime.sequence import LimeSequence
from captum_attn_lime.lime.tabular import LimeTabular
from captum_attn_lime.lime.text import LimeText

__all__ = [
    "LimeImage",
    "LimeSequence",
    "LimeTabular",
    "LimeText",
    "explanation_prediction",
    "explanation_score",
    "explanation_spans",
    "explanation_weights",
    "safe_html",
    "token_weights",
    "word_weights",
]
