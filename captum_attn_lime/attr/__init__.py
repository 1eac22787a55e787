"""From a model to scores: attention as a Captum attribution, and a description of what was found in the model."""

from captum_attn_lime.attr._attribution import AttentionAttribution
from captum_attn_lime.attr._describe import Description, describe

__all__ = ["AttentionAttribution", "Description", "describe"]
