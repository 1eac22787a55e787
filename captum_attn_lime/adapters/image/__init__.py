"""Adapters of image models."""

from captum_attn_lime.adapters.image._adapter import ImageAdapter, ImageEncoding

__all__ = ["ImageAdapter", "ImageEncoding"]
