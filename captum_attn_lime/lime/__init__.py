"""Official LIME as Captum attributions, and readers of lime's explanations as weights of features and words."""

from typing import TYPE_CHECKING, Any

from captum_attn_lime.lime._captum_recipe import captum_lime
from captum_attn_lime.lime._diagnosed import diagnosed
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
from captum_attn_lime.lime._pick import SubmodularPicks, submodular_pick
from captum_attn_lime.lime._pooled import explain_until_separated, pooled
from captum_attn_lime.lime._sequence import LimeSequence
from captum_attn_lime.lime._stability import Replicates, coefficients_stability, variables_stability
from captum_attn_lime.lime._tabular import LimeTabular
from captum_attn_lime.lime._text import LimeText
from captum_attn_lime.lime._warnings import collected_warnings

if TYPE_CHECKING:
    from captum_attn_lime.lime._image_result import LimeImageExplanation
    from captum_attn_lime.lime._result import LimeExplanation

__all__ = [
    "Diagnostics",
    "LimeExplanation",
    "LimeImage",
    "LimeImageExplanation",
    "LimeSequence",
    "LimeTabular",
    "LimeText",
    "Replicates",
    "SubmodularPicks",
    "captum_lime",
    "coefficients_stability",
    "collected_warnings",
    "diagnosed",
    "explain_until_separated",
    "explanation_numbers",
    "explanation_prediction",
    "explanation_score",
    "explanation_spans",
    "explanation_weights",
    "pooled",
    "safe_html",
    "submodular_pick",
    "token_weights",
    "variables_stability",
    "word_weights",
]


def __getattr__(name: str) -> Any:
    """Import the explanation classes, which need the lime package, on first use."""
    if name == "LimeExplanation":
        from captum_attn_lime.lime._result import LimeExplanation

        return LimeExplanation
    if name == "LimeImageExplanation":
        from captum_attn_lime.lime._image_result import LimeImageExplanation

        return LimeImageExplanation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
