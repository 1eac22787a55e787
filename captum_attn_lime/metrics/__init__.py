"""Metrics of attributions: pure functions of arrays and tables."""

from captum_attn_lime.metrics._agreement import (
    MEASURES,
    agreement,
    jaccard_by_chance,
    kendall_tau,
    spearman,
    top_k_jaccard,
)
from captum_attn_lime.metrics._global_view import global_view

__all__ = ["MEASURES", "agreement", "global_view", "jaccard_by_chance", "kendall_tau", "spearman", "top_k_jaccard"]
