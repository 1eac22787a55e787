"""Attention attributions, adapters and official LIME for Captum."""

from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attribution import AttentionAttribution
from captum_attn_lime.capture import capture

__version__ = "0.1.0"

__all__ = ["AttentionAttribution", "AttentionMap", "capture"]
