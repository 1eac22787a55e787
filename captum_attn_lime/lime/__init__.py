"""Official LIME as Captum attributions, and lime's explanations as weights of features and words."""

from captum_attn_lime.lime._captum_recipe import captum_lime, check_captum_lime
from captum_attn_lime.lime._diagnostics import Diagnostics
from captum_attn_lime.lime._explanations import (
    explanation_numbers,
    explanation_prediction,
    explanation_score,
    explanation_spans,
    explanation_weights,
    safe_html,
    token_weights,
    word_weights,
)
from captum_attn_lime.lime._image import LimeImage
from captum_attn_lime.lime._notices import collected_warnings
from captum_attn_lime.lime._pick import SubmodularPicks, submodular_pick
from captum_attn_lime.lime._replicates import Replicates, coefficients_stability, variables_stability
from captum_attn_lime.lime._sequence import LimeSequence
from captum_attn_lime.lime._tabular import LimeTabular
from captum_attn_lime.lime._text import LimeText
from captum_attn_lime.lime._watched import diagnosed

__all__ = [
    "Diagnostics",
    "LimeImage",
    "LimeSequence",
    "LimeTabular",
    "LimeText",
    "Replicates",
    "SubmodularPicks",
    "captum_lime",
    "check_captum_lime",
    "coefficients_stability",
    "collected_warnings",
    "diagnosed",
    "explanation_numbers",
    "explanation_prediction",
    "explanation_score",
    "explanation_spans",
    "explanation_weights",
    "safe_html",
    "submodular_pick",
    "token_weights",
    "variables_stability",
    "word_weights",
]
