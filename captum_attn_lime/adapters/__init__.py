"""Adapters: a model as a Captum forward function and as a lime classifier function, and raw input as tensors."""

from captum_attn_lime.adapters.base import Adapter
from captum_attn_lime.adapters.encoding import Encoding
from captum_attn_lime.adapters.image import ImageAdapter, ImageEncoding
from captum_attn_lime.adapters.sequence import SequenceAdapter, SequenceEncoding
from captum_attn_lime.adapters.tabular import TabularAdapter, TabularEncoding
from captum_attn_lime.adapters.text import TextAdapter
from captum_attn_lime.adapters.text_encoding import TextEncoding
from captum_attn_lime.adapters.word_tokenizer import WordTokenizer
from captum_attn_lime.adapters.words import Word

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
