"""Adapters of text models."""

from captum_attn_lime.adapters.text._adapter import TextAdapter
from captum_attn_lime.adapters.text._encoding import TextEncoding
from captum_attn_lime.adapters.text._word_tokenizer import WordTokenizer
from captum_attn_lime.adapters.text._words import Word

__all__ = ["TextAdapter", "TextEncoding", "Word", "WordTokenizer"]
