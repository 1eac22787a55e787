"""Adapters: a model as a Captum forward function and as a lime classifier function, and raw input as tensors."""

from captum_attn_lime.adapters._base import Adapter
from captum_attn_lime.adapters._encoding import Encoding
from captum_attn_lime.adapters.image import ImageAdapter, ImageEncoding
from captum_attn_lime.adapters.numeric import SequenceAdapter, SequenceEncoding, TabularAdapter, TabularEncoding
from captum_attn_lime.adapters.text import TextAdapter, TextEncoding, Word, WordTokenizer

__all__ = [
    "Adapter",
    "Encoding",
    "ImageAdapter",
    "ImageEncoding",
    "SequenceAdapter",
    "SequenceEncoding",
    "TabularAdapter",
    "TabularEncoding",
    "TextAdapter",
    "TextEncoding",
    "Word",
    "WordTokenizer",
]
