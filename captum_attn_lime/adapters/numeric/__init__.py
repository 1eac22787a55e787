"""Adapters of models over numbers: table rows and time series."""

from captum_attn_lime.adapters.numeric._sequence import SequenceAdapter, SequenceEncoding
from captum_attn_lime.adapters.numeric._tabular import TabularAdapter, TabularEncoding

__all__ = ["SequenceAdapter", "SequenceEncoding", "TabularAdapter", "TabularEncoding"]
