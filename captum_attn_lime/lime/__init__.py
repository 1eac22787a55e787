"""Official LIME as Captum attributions, and lime's explanations as weights of features and words."""

from captum_attn_lime.lime.explanations import explanation_spans, explanation_weights, word_weights
from captum_attn_lime.lime.tabular import LimeTabular
from captum_attn_lime.lime.text import LimeText

__all__ = ["LimeTabular", "LimeText", "explanation_spans", "explanation_weights", "word_weights"]
