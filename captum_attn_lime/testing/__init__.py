"""Checks for any model or attribution: is attention captured correctly, and do the laws hold?"""

from captum_attn_lime.testing._attributions import check_attribution
from captum_attn_lime.testing._models import Check, ModelReport, check_model

__all__ = ["Check", "ModelReport", "check_attribution", "check_model"]
