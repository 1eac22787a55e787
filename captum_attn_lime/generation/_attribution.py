"""`GenerationAttribution`: attention for generated text, one row per generated token, as a Captum result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from captum.attr import Attribution, LLMAttributionResult
from torch import Tensor, nn

from captum_attn_lime._capture import Keep
from captum_attn_lime._util.captum import log_usage
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr import (
    AttentionAttribution,
    ExplainedModel,
    ForwardPass,
    Request,
    looks_causal,
    select_layers,
)
from captum_attn_lime.errors import AttentionKindError, InputError, SelectionError, TargetError, TokenizerError
from captum_attn_lime.generation._model import LanguageModel
from captum_attn_lime.generation._prompt import Prompt, encode, read_prompt, token_names
from captum_attn_lime.generation._shared import SharedMap
from captum_attn_lime.methods import Method, get_method


class GenerationAttributionResult(LLMAttributionResult):  # type: ignore[misc]
    """Captum's result for generated text, with the attention among the generated tokens.

    A generated token also attends to the tokens generated before it. Captum's result has no columns for them, so the
    rows of ``token_attr`` sum to less than one; the rest is in ``output_attr``.

    Attributes:
        input_tokens: Names of the input's tokens or segments.
        output_tokens: Names of the generated tokens.
        seq_attr: The mean of the rows of ``token_attr``, (inputs,).
        token_attr: Attention of each generated token to each input token, (outputs, inputs).
        output_attr: Attention of each generated token to each generated token, (outputs, outputs); zero for the token
            itself and later ones.
        full_attr: Both concatenated, (outputs, inputs + outputs). For raw attention and rollout (head mean) of a
            decoder its rows sum to 1, unless ``inp`` skips tokens. For an encoder-decoder model the two parts are
            separate attentions, over the input and over the output, with separate sums.
        inp: The interpretable input; None if the prompt was a text.
    """

    def __init__(
        self,
        *,
        input_tokens: list[str],
        output_tokens: list[str],
        token_attr: Tensor,
        output_attr: Tensor,
        inp: Any = None,
    ) -> None:
        super().__init__(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            seq_attr=token_attr.mean(dim=0),
            token_attr=token_attr,
        )
        self.output_attr = output_attr
        self.inp = inp

    @property
    def full_attr(self) -> Tensor:
        """Attention of each generated token to all tokens, (outputs, inputs + outputs)."""
        return torch.cat([self.token_attr, self.output_attr], dim=1)


class GenerationAttribution(Attribution):  # type: ignore[misc]
    """Attention for generated text: for each generated token, the attention with which the model predicted it.

    The model generates as usual, without a capture. Then one forward pass over the prompt and the generated text is
    captured; the row of a generated token is that of the position before it, which predicted it. For a causal model
    this is the attention that each generation step computed.

    For encoder-decoder models (T5, BART, Marian) the rows are cross-attention over the input (raw attention only), and
    ``layers`` counts the cross-attention layers; ``output_attr`` is from the self-attention before each of them.

    Args:
        attribution: Raw attention, rollout or a custom method on the language model, with the layers to use. Methods
            that depend on the class raise an error.
        tokenizer: The model's tokenizer, as for Captum's ``LLMAttribution``, or a ``WordTokenizer``.

    Example:
        >>> from captum_attn_lime import WordTokenizer
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.layer = nn.Embedding(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        ...     def forward(self, ids):
        ...         n = ids.shape[1]
        ...         causal = nn.Transformer.generate_square_subsequent_mask(n)
        ...         return self.layer(self.words(ids), src_mask=causal) @ self.words.weight.T
        >>> tokenizer = WordTokenizer({"<pad>": 0, "a": 1, "fine": 2, "film": 3, "indeed": 4})
        >>> attention = AttentionAttribution(Model().eval(), method="raw")
        >>> result = GenerationAttribution(attention, tokenizer).attribute("a fine", target="film indeed")
        >>> result.input_tokens, result.output_tokens, result.token_attr.shape
        (['a', 'fine'], ['film', 'indeed'], torch.Size([2, 2]))
        >>> bool(result.full_attr.sum(dim=1).allclose(torch.ones(2)))
        True
    """

    def __init__(self, attribution: AttentionAttribution, tokenizer: Any) -> None:
        if not isinstance(attribution, AttentionAttribution):
            raise InputError(
                f"attribution must be an AttentionAttribution, but is {type(attribution).__name__}; pass "
                "AttentionAttribution(model, method='raw'). For Captum's methods use captum.attr.LLMAttribution."
            )
        if not callable(getattr(tokenizer, "encode", None)) or not callable(
            getattr(tokenizer, "convert_ids_to_tokens", None)
        ):
            raise TokenizerError(
                f"{type(tokenizer).__name__} is not a tokenizer with encode and convert_ids_to_tokens; pass the "
                "model's HuggingFace tokenizer, or a WordTokenizer."
            )
        self.attribution = attribution
        self.tokenizer = tokenizer
        super().__init__(attribution.forward_func)
        self._check_attribution()
        self._language_model = LanguageModel(self.forward_func)
        self._explained = ExplainedModel(self._language_model.logits)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.attribution!r}, {type(self.tokenizer).__name__})"

    @property
    def forward_func(self) -> Any:
        """The language model of ``attribution``."""
        return self.attribution.forward_func

    @forward_func.setter
    def forward_func(self, model: Any) -> None:
        self.attribution.forward_func = model

    def _check_attribution(self) -> None:
        """Raise if the attribution, whose options may have changed, does not support generated text."""
        attribution = self.attribution
        if not isinstance(attribution.forward_func, nn.Module):
            raise InputError(
                f"attribution runs a {type(attribution.forward_func).__name__}, but text is generated with the "
                "language model: pass AttentionAttribution(model)."
            )
        if attribution.uses_target:
            raise InputError(
                f"{get_method(attribution.method)!r} depends on the class, and each generated token is a different "
                "class; use 'raw' or 'rollout'."
            )

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inp: Any,
        target: str | Tensor | Sequence[int] | None = None,
        *,
        gen_args: Mapping[str, Any] | None = None,
    ) -> GenerationAttributionResult:
        """Return one row of attention per generated token.

        Args:
            inp: The prompt: a text, a ``captum.attr.TextTokenInput`` (skipped tokens get no column) or a
                ``captum.attr.TextTemplateInput`` (one column per segment; text between segments gets none).
            target: The text to explain: a string (encoded without special tokens, with its leading space) or token ids;
                None to generate it.
            gen_args: Arguments of ``model.generate``; by default greedy, at most 25 tokens, as in Captum.

        Raises:
            TextError: The prompt is empty.
            InputError: The prompt has padding or is of an unsupported type, the model is in training mode, or several
                sequences were generated.
            TargetError: The target is empty or has unknown ids, or is missing for a model that cannot generate.
            AttentionKindError: Rollout of an encoder-decoder model, or attention that is not over the tokens.
            SelectionError: The model does not have a selected layer or head.
        """
        self._check_attribution()
        if self._language_model.module is not self.forward_func:
            self._language_model = LanguageModel(self.forward_func)
            self._explained = ExplainedModel(self._language_model.logits)
        model = self._language_model
        model.check_mode()
        prompt = read_prompt(inp, self.tokenizer)
        if target is None:
            start, written = model.generate(prompt.ids, gen_args)
        elif gen_args is not None:
            raise InputError("gen_args and target are both given, but a target needs no generation; pass one of them.")
        else:
            start, written = model.start(), self._target_ids(target, model)
        rows = self._encoder_decoder if model.is_encoder_decoder else self._decoder
        with self._explained.explaining(), without_drawing():
            from_input, from_output = rows(model, prompt, start, written)
        return GenerationAttributionResult(
            input_tokens=prompt.names,
            output_tokens=token_names(self.tokenizer, written.tolist()),
            token_attr=prompt.by_feature(from_input),
            output_attr=from_output,
            inp=None if isinstance(inp, str) else inp,
        )

    def _target_ids(self, target: str | Tensor | Sequence[int], model: LanguageModel) -> Tensor:
        if isinstance(target, str):
            target = encode(self.tokenizer, target, is_target=model.is_encoder_decoder)
        try:
            ids = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):
            ids = torch.tensor(0.5)
        if ids.dim() == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.numel() == 0:
            raise TargetError("the target has no token; pass the generated text, or None to generate it.")
        if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TargetError(f"target {target!r} is neither a text nor one sequence of token ids.")
        known = model.vocabulary
        if int(ids.min()) < 0 or (known is not None and int(ids.max()) >= known):
            raise TargetError(f"target {ids.tolist()} has ids outside the vocabulary (0 to {(known or 0) - 1}).")
        return ids.to(model.device, torch.int64)

    def _decoder(self, model: LanguageModel, prompt: Prompt, _: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the prompt's tokens, (T, P), and of the generated tokens, (T, T)."""
        n_in, n_out = prompt.ids.shape[1], len(written)
        # No generated token attends to the last one.
        ids = torch.cat([prompt.ids[0].to(written), written[:-1]])[None]
        run = self._run(ids)
        layers = self._select(run)
        for attention in layers:
            _require_shape(attention, ids.shape[1], ids.shape[1])
            if ids.shape[1] > 1 and not looks_causal(attention):
                raise AttentionKindError(
                    f"{attention.name!r} attends to later tokens, so {type(model.module).__name__} does not generate "
                    "token by token; explain its prediction with AttentionAttribution."
                )
        method = get_method(self.attribution.method)
        if not method.last_layer_only:
            self._explained.check_mixing(run, layers)
        rows = self._rows(method, layers, torch.arange(n_in - 1, n_in - 1 + n_out))
        return rows[:, :n_in], nn.functional.pad(rows[:, n_in:], (0, 1))

    def _encoder_decoder(
        self, model: LanguageModel, prompt: Prompt, start: Tensor, written: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return cross-attention over the input, (T, P), and self-attention over the generated tokens, (T, T)."""
        n_in, n_out = prompt.ids.shape[1], len(written)
        run = self._run(prompt.ids, torch.cat([start, written[:-1]])[None])
        cross = [m for m in run.calls if m.kind == "cross" and m.shape[2:] == (n_out, n_in)]
        if not cross:
            raise AttentionKindError(
                f"{type(model.module).__name__} has no cross-attention of {n_out} generated over {n_in} input tokens; "
                f"its attention calls are {', '.join(map(repr, run.calls))}."
            )
        chosen = self._select(replace(run, maps=cross))
        for attention in chosen:
            _require_shape(attention, n_out, n_in)
        method = get_method(self.attribution.method)
        positions = torch.arange(n_out)
        from_input = self._rows(method, chosen, positions)
        # The decoder's self-attention before each cross-attention; `follows` does not include the encoder's layers.
        decoder = [
            [m for m in run.calls if m.kind == "self" and m.index in layer.follows and m.shape[2:] == (n_out, n_out)]
            for layer in chosen
        ]
        before = [layers[-1] for layers in decoder if layers]
        if not before:
            return from_input, from_input.new_zeros(n_out, n_out)
        from_output = self._rows(method, before, positions)
        return from_input, nn.functional.pad(from_output[:, 1:], (0, 1))  # without the start token's column

    def _run(self, *ids: Tensor) -> ForwardPass:
        """Return a captured pass, without a readout: the query of a generated token is the position before it."""
        return self._explained.run(ids, request=Request(readout=False, keep=Keep(offload=self.attribution.offload)))

    def _select(self, run: ForwardPass) -> list[AttentionMap]:
        last_only = get_method(self.attribution.method).last_layer_only
        return select_layers(self.attribution.layers, run, self.forward_func, last_only=last_only)

    def _rows(self, method: Method, maps: Sequence[AttentionMap], positions: Tensor) -> Tensor:
        """Return the method's scores for each position, (T, K)."""
        query = nn.functional.one_hot(positions, maps[-1].shape[2]).to(device=maps[-1].device, dtype=maps[-1].dtype)
        return method([SharedMap(m, len(positions)) for m in maps], query).detach()


def _require_shape(attention: AttentionMap, queries: int, keys: int) -> None:
    if attention.shape[0] != 1 or attention.shape[2:] != (queries, keys):
        found = f"{attention.shape[2]} queries and {attention.shape[3]} keys"
        if attention.shape[0] != 1:
            found += f" in {attention.shape[0]} groups"
        raise SelectionError(
            f"attention {attention.name!r} has {found}, but rows of generated tokens need {queries} and {keys}, one "
            "per token. Choose layers= over the tokens."
        )
