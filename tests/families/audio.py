"""HuggingFace models over sound: their tokens are frames of overlapping windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.families.base import HEADS, LAYERS, Family, eager_huggingface, reported
from tests.families.readouts import mean_of

FRAMES = 6


def _family(name: str, title: str, model: nn.Module, sound: Tensor, **options: Any) -> Family:
    """A classifier that reads the mean of the frames."""
    model = model.eval()
    return Family(
        name,
        model,
        lambda x: model(x).logits,
        sound,
        eager=eager_huggingface(model),
        title=title,
        scores=mean_of(0),
        tells_tokens=False,
        group="audio",
        **options,
    )


def whisper_encoder() -> Family:
    """Two convolutions, each over three moments: a frame for every second moment."""
    from transformers import WhisperConfig, WhisperForAudioClassification

    config = WhisperConfig(
        vocab_size=70, num_mel_bins=5, d_model=32, encoder_layers=LAYERS, decoder_layers=1,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_source_positions=FRAMES, classifier_proj_size=16, num_labels=3, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, decoder_start_token_id=2,
    )  # fmt: skip
    model = WhisperForAudioClassification(config)
    sound = torch.randn(2, 5, 2 * FRAMES, generator=torch.Generator().manual_seed(1))
    return _family(
        "whisper_encoder",
        "Whisper, encoder",
        model,
        sound,
        token_of_cell=torch.arange(2 * FRAMES) // 2,
        output_attentions=reported(model, input_features=sound),
    )


def wav2vec2() -> Family:
    """Two convolutions over the samples, of five and of three: a frame for every four samples."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=48, num_labels=3,
        conv_dim=(16, 16), conv_stride=(2, 2), conv_kernel=(5, 3), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=16, feat_extract_norm="layer",
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    # 4 samples between frames, 9 in each
    sound = torch.randn(2, 4 * (FRAMES - 1) + 9, generator=torch.Generator().manual_seed(1))
    return _family(
        "wav2vec2",
        "wav2vec 2.0",
        model,
        sound,
        token_of_cell=(torch.arange(sound.shape[1]) // 4).clamp(max=FRAMES - 1),
        output_attentions=reported(model, input_values=sound),
    )


AUDIO = [whisper_encoder, wav2vec2]
