"""`LanguageModel`: text generation and logits of a language model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters._model_config import position_limit
from captum_attn_lime.errors import InputError, TargetError

# The default of Captum's LLMAttribution.
GREEDY: Mapping[str, Any] = {"max_new_tokens": 25, "do_sample": False, "temperature": None, "top_p": None}


class LanguageModel:
    """A language model, wrapped for generation and for logits of a text."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def check_mode(self) -> None:
        """Raise if the model is in training mode."""
        if self.module.training:
            name = type(self.module).__name__
            raise InputError(f"{name} is in training mode, where its dropout is random; call .eval().")

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder processes the prompt."""
        return bool(getattr(getattr(self.module, "config", None), "is_encoder_decoder", False))

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.module.forward).parameters

    @property
    def vocabulary(self) -> int | None:
        """The number of token ids; None if unknown."""
        find = getattr(self.module, "get_input_embeddings", None)
        return getattr(find(), "num_embeddings", None) if callable(find) else None

    def start(self) -> Tensor:
        """Return the decoder's start token, (1,); empty for a model without an encoder."""
        if not self.is_encoder_decoder:
            return torch.zeros(0, dtype=torch.int64, device=self.device)
        for config in (getattr(self.module, "generation_config", None), self.module.config):
            found = getattr(config, "decoder_start_token_id", None)
            if isinstance(found, int):
                return torch.tensor([found], device=self.device)
        raise InputError(
            f"the start token of the decoder of {type(self.module).__name__} is unknown; set "
            "model.config.decoder_start_token_id."
        )

    def generate(self, ids: Tensor, gen_args: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
        """Return the decoder's start token and the generated ids, (T,)."""
        if not callable(getattr(self.module, "generate", None)):
            raise TargetError(f"{type(self.module).__name__} has no generate(); pass the generated text as target=.")
        ids = ids.to(self.device)
        with torch.no_grad(), self._within_positions(ids.shape[1]):
            made = self.module.generate(**self._inputs(ids), **(GREEDY if gen_args is None else gen_args))  # type: ignore[operator]
        sequences = getattr(made, "sequences", made)
        if len(sequences) != 1:
            raise InputError(f"{len(sequences)} sequences were generated; set num_return_sequences=1.")
        n = 1 if self.is_encoder_decoder else ids.shape[1]
        if not self.is_encoder_decoder and not torch.equal(sequences[0, :n], ids[0]):
            raise InputError(
                "the generated sequence does not begin with the prompt, so its tokens cannot be separated from it."
            )
        if sequences.shape[1] == n:
            raise TargetError("nothing was generated; raise max_new_tokens in gen_args, or pass a target.")
        return sequences[0, : n * self.is_encoder_decoder], sequences[0, n:]

    def logits(self, ids: Tensor, decoder_ids: Tensor | None = None) -> Tensor:
        """Return the model's logits."""
        ids = ids.to(self.device)
        inputs = self._inputs(ids)
        if "use_cache" in self._parameters:
            inputs["use_cache"] = False
        if decoder_ids is not None:
            inputs["decoder_input_ids"] = decoder_ids
        with self._within_positions(ids.shape[1] if decoder_ids is None else decoder_ids.shape[1]):
            output = self.module(**inputs) if "input_ids" in self._parameters else self.module(ids)
        output = getattr(output, "logits", output)
        return output if isinstance(output, Tensor) else output[0]

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": ids}
        if "attention_mask" in self._parameters:
            inputs["attention_mask"] = torch.ones_like(ids)
        return inputs

    @contextmanager
    def _within_positions(self, n: int) -> Iterator[None]:
        """Raise a clear error if the model fails because a text is longer than its positions."""
        try:
            yield
        except IndexError as error:
            limit = position_limit(self.module)
            if limit is None or n <= limit:
                raise
            raise InputError(f"prompt and output have {n} tokens, but the model has {limit} positions.") from error
