"""Attention as a Captum attribution, and descriptions of a model's attention."""

from captum_attn_lime.attr._attribution import AttentionAttribution
from captum_attn_lime.attr._describe import Description, describe
from captum_attn_lime.attr._layers import select_layers
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.attr._passes import ForwardPass, Request
from captum_attn_lime.attr._probing import looks_causal

__all__ = [
    "AttentionAttribution",
    "Description",
    "ExplainedModel",
    "ForwardPass",
    "Request",
    "describe",
    "looks_causal",
    "select_layers",
]
