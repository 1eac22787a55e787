"""The table of model families, one row a function that builds it."""

from tests.families.base import IDS, MASK, Family, build
from tests.families.hand_written import HandWritten, hand_written
from tests.families.text_decoders import gpt2, llama, llama_left_padded
from tests.families.text_encoders import bert
from tests.families.torch_modules import EncoderClassifier, torch_encoder
from tests.families.vision import vit

HUGGINGFACE = [bert, gpt2, llama, llama_left_padded, vit]
FAMILIES = [*HUGGINGFACE, torch_encoder, hand_written]

__all__ = [
    "FAMILIES",
    "HUGGINGFACE",
    "IDS",
    "MASK",
    "EncoderClassifier",
    "Family",
    "HandWritten",
    "bert",
    "build",
    "gpt2",
    "hand_written",
    "llama",
    "llama_left_padded",
    "torch_encoder",
    "vit",
]
