"""Measures over attributions: one pure function each, over arrays and tables."""

from captum_attn_lime.metrics.agreement import (
    agreement,
    jaccard_by_chance,
    kendall_tau,
    spearman,
    top_k_jaccard,
)

__all__ = ["agreement", "jaccard_by_chance", "kendall_tau", "spearman", "top_k_jaccard"]
