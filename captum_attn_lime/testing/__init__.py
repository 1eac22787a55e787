"""What anyone can run on models and attributions of their own: is attention captured rightly, do the laws hold?"""

from captum_attn_lime.testing._attributions import check_attribution
from captum_attn_lime.testing._models import Check, ModelReport, check_model

__all__ = ["Check", "ModelReport", "check_attribution", "check_model"]
