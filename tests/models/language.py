"""Tiny random language models, a tokenizer without downloads, and generate's own attention as the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.families.base import sharpen

SIZES = dict(vocab_size=70, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
TOKENS = dict(pad_token_id=0, bos_token_id=2, eos_token_id=3)
PROMPT = torch.tensor([[2, 17, 33, 8, 51, 64]])
WINDOW = 4  # of the sliding models: shorter than the prompt
LENGTH = 5
GREEDY: dict[str, Any] = dict(max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=70, n_embd=32, n_layer=3, n_head=4, n_positions=64, **TOKENS))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, **TOKENS))


def mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=WINDOW, **TOKENS))


def gemma2() -> nn.Module:
    """Soft-capped scores, which only its eager attention has; every other layer slides."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=2.0, **TOKENS
    )
    return Gemma2ForCausalLM(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = dict(vocab_size=70, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4)
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=3))


def _bart_sizes() -> dict[str, Any]:
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 3), ("ffn_dim", 48))}
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    return dict(vocab_size=70, d_model=32, max_position_embeddings=64, **sizes, **heads, **TOKENS)


def bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    # It begins each output with token 7 whatever the input, as BART's pretrained models do with <s>.
    config = BartConfig(**_bart_sizes(), decoder_start_token_id=3, forced_bos_token_id=7, forced_eos_token_id=None)
    return BartForConditionalGeneration(config)


def marian() -> nn.Module:
    from transformers import MarianConfig, MarianMTModel

    return MarianMTModel(MarianConfig(**_bart_sizes(), decoder_start_token_id=0, forced_eos_token_id=None))


DECODERS = [gpt2, llama, mistral, gemma2]
ENCODER_DECODERS = [t5, bart, marian]


def build(make: Any) -> nn.Module:
    torch.manual_seed(4)
    model = make().eval()
    sharpen(model, 3.0)
    return model


def tokenizer(pad: str | None = "<pad>") -> Any:
    """A fast tokenizer over the words w4 to w69; <s> comes first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, **{f"w{i}": i for i in range(4, 70)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )


def generate(model: nn.Module, ids: Tensor = PROMPT, **options: Any) -> Any:
    with torch.no_grad():
        mask = torch.ones_like(ids)
        return model.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **{**GREEDY, **options})


def eager_steps(model: nn.Module, ids: Tensor = PROMPT, **options: Any) -> Any:
    """What generate itself reports of each cached step, in eager attention; the model is left as it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return generate(model, ids, output_attentions=True, **options)
    finally:
        model.set_attn_implementation(before)


def last_rows(steps: tuple[tuple[Tensor, ...], ...], width: int) -> Tensor:
    """The newest query's row of each step and layer, (T, L, H, width); what a window has left behind is zero.

    Keys stand right-aligned, the newest last, so step t's row ends at column ``width - T + t``.
    """
    rows = []
    for t, layers in enumerate(steps):
        end = width - len(steps) + t + 1
        newest = [x[0, :, -1, -end:] for x in layers]  # (H, k); a window's keys may be more than there are tokens
        rows.append(torch.stack([nn.functional.pad(x, (end - x.shape[-1], width - end)) for x in newest]))
    return torch.stack(rows)
