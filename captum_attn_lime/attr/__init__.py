"""Attention as a Captum attribution, and descriptions of a model's attention."""

from captum_attn_lime.attr._attribution import AttentionAttribution
from captum_attn_lime.attr._describe import Description, describe

__all__ = ["AttentionAttribution", "Description", "describe"]
