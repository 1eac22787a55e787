"""Models of pictures."""

from captum_attn_lime.adapters.image._adapter import ImageAdapter, ImageEncoding

__all__ = ["ImageAdapter", "ImageEncoding"]
