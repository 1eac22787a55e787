"""The table of model families, one row a function that builds it."""

from tests.families.audio import AUDIO
from tests.families.base import IDS, MASK, Family, build
from tests.families.encoder_decoders import ENCODER_DECODERS
from tests.families.hand_written import (
    HandWritten,
    additive_lstm,
    bmm_folded,
    einsum_heads,
    exponentials,
    flexible,
    hand_written,
    learned_query,
    multi_query,
    qk_norm,
    rotary,
)
from tests.families.tables import ft_transformer, tab_transformer
from tests.families.text_decoders import TEXT_DECODERS, gpt2, llama, llama_left_padded
from tests.families.text_encoders import TEXT_ENCODERS, bert
from tests.families.timm_models import (
    timm_beit,
    timm_deit_distilled,
    timm_eva,
    timm_siglip,
    timm_vit,
    timm_vit_registers,
)
from tests.families.torch_modules import (
    EncoderClassifier,
    mha_batch_first,
    mha_bias_kv,
    mha_cross,
    mha_need_weights,
    mha_sequence_first,
    mha_zero_attn,
    torch_decoder,
    torch_encoder,
    torch_encoder_norm_first,
    torch_transformer,
)
from tests.families.torchvision_models import torchvision_vit
from tests.families.vision import clip_text, clip_vision, deit, dinov2_registers, siglip_vision, vit
from tests.families.windowed import WINDOWED

TEXT = [*TEXT_ENCODERS, *TEXT_DECODERS, *ENCODER_DECODERS]
VISION = [vit, deit, dinov2_registers, clip_vision, clip_text, siglip_vision, torchvision_vit]
TIMM = [timm_vit, timm_vit_registers, timm_deit_distilled, timm_eva, timm_beit, timm_siglip]
TORCH = [torch_encoder_norm_first, torch_transformer, torch_decoder, mha_batch_first, mha_sequence_first]
TORCH += [mha_need_weights, mha_bias_kv, mha_zero_attn, mha_cross]
TABLES = [ft_transformer, tab_transformer]
BY_HAND = [einsum_heads, bmm_folded, exponentials, flexible, rotary, qk_norm, multi_query, learned_query, additive_lstm]
FAMILIES = [*TEXT, *AUDIO, torch_encoder, hand_written, *VISION, *TIMM, *WINDOWED, *TORCH, *TABLES, *BY_HAND]

__all__ = [
    "FAMILIES",
    "IDS",
    "MASK",
    "EncoderClassifier",
    "Family",
    "HandWritten",
    "bert",
    "build",
    "flexible",
    "gpt2",
    "hand_written",
    "llama",
    "llama_left_padded",
    "torch_encoder",
    "vit",
]
