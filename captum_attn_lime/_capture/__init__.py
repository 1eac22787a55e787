"""Capture of the attention of any running model, without changing the model."""

from captum_attn_lime._capture.keeping import Keep
from captum_attn_lime._capture.recorder import Recorder
from captum_attn_lime._capture.registered import RegisteredAttention, register_attention
from captum_attn_lime._capture.session import capture, record

__all__ = ["Keep", "Recorder", "RegisteredAttention", "capture", "record", "register_attention"]
