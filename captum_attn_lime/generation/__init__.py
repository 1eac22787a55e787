"""Attention attributions for generated text."""

from captum_attn_lime.generation._attribution import GenerationAttribution, GenerationAttributionResult

__all__ = ["GenerationAttribution", "GenerationAttributionResult"]
