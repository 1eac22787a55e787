"""Comparison of attributions: several methods on one explained number, and Captum's metrics for any of them."""

from captum_attn_lime._compare.comparing import compare
from captum_attn_lime._compare.comparison import Comparison
from captum_attn_lime._compare.explanation_func import as_explanation_func

__all__ = ["Comparison", "as_explanation_func", "compare"]
