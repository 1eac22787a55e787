"""Scores of one example with some of its features removed, for texts, rows, sequences, pictures and tensors."""

from captum_attn_lime.perturb._factory import perturbed
from captum_attn_lime.perturb._perturbed import Perturbed

__all__ = ["Perturbed", "perturbed"]
