"""The seams, one file for each torch function that computes attention, and their table.

During a capture a seam replaces its function: ``(recorder, func, args, kwargs) -> output``. It calls the function
through `Recorder.run`, and records the attention with `Recorder.add`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from captum_attn_lime._capture.recorder import Recorder
from captum_attn_lime._capture.seams.flex import flex_attention
from captum_attn_lime._capture.seams.multi_head_attention import multi_head_attention_forward
from captum_attn_lime._capture.seams.sdpa import scaled_dot_product_attention
from captum_attn_lime._capture.seams.softmax import SOFTMAXES, softmax

Func = Callable[..., Any]
Seam = Callable[[Recorder, Func, tuple[Any, ...], dict[str, Any]], Any]

SEAMS: dict[Func, Seam] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.multi_head_attention_forward: multi_head_attention_forward,
    torch.ops.higher_order.flex_attention: flex_attention,  # what flex_attention calls when it runs uncompiled
    **dict.fromkeys(SOFTMAXES, softmax),
}

__all__ = ["SEAMS", "Seam"]
