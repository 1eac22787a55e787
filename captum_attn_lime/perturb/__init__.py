"""One example whose features can be taken out: from masks to scores, for texts, rows, series, pictures and tensors."""

from captum_attn_lime.perturb._door import perturbed
from captum_attn_lime.perturb._perturbed import Perturbed

__all__ = ["Perturbed", "perturbed"]
