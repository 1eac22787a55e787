"""`Prompt`: the token ids of a prompt, and the features that its tokens belong to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import TextTemplateInput, TextTokenInput
from torch import Tensor

from captum_attn_lime.adapters.text._tokenize import Tokenizing
from captum_attn_lime.errors import InputError, TextError

# Placeholders for a template's values, from a private plane of Unicode that no text uses.
_MARK = 0xF0000


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        ids: Token ids, (1, P).
        names: Name of each feature.
        shares: Share of each token in each interpretable feature, (P, F); None if the tokens are the features.
        inp: Captum's interpretable input; None for a text.
    """

    ids: Tensor
    names: list[str]
    shares: Tensor | None = None
    inp: Any = None

    def by_feature(self, rows: Tensor) -> Tensor:
        """Return the scores of the features, from scores of the tokens (T, P)."""
        if self.shares is None:
            return rows
        return self.inp.format_attr(rows @ self.shares.to(rows))  # type: ignore[no-any-return]


def read_prompt(inp: Any, tokenizer: Any) -> Prompt:
    """Return the prompt for a text or one of Captum's text inputs.

    Raises:
        TextError: The prompt is empty.
        InputError: It is of another type, or has padding.
    """
    if isinstance(inp, str):
        ids = torch.tensor([encode(tokenizer, inp, special=True)], dtype=torch.int64)
        prompt = Prompt(ids, token_names(tokenizer, ids[0].tolist()))
        text: str | None = inp
    elif isinstance(inp, TextTokenInput):
        shares = None
        if inp.itp_mask is not None:
            shares = torch.eye(inp.inp_tensor.shape[1])[:, inp.itp_mask[0].cpu()]
        prompt, text = Prompt(inp.inp_tensor, list(inp.values), shares, inp), None
    elif isinstance(inp, TextTemplateInput):
        text = inp.to_model_input()
        prompt = _from_template(inp, text, tokenizer)
    else:
        raise InputError(
            f"the prompt is a {type(inp).__name__}, but must be one text, a captum.attr.TextTokenInput or a "
            "captum.attr.TextTemplateInput."
        )
    if prompt.ids.numel() == 0 or (text is not None and not text.strip()):
        raise TextError("the prompt is empty; there is no token to attribute to.")
    _check_no_padding(prompt.ids, tokenizer)
    return prompt


def encode(tokenizer: Any, text: str, *, special: bool = False, is_target: bool = False) -> list[int]:
    """Return the ids of a text.

    Args:
        tokenizer: A HuggingFace tokenizer, or another with ``encode(text)``.
        text: The text.
        special: Whether the tokenizer adds its special tokens.
        is_target: Whether it is the output of an encoder-decoder model, which some tokenizers encode differently.
    """
    if "add_special_tokens" not in inspect.signature(tokenizer.encode).parameters:
        ids = tokenizer.encode(text)
    elif is_target and callable(tokenizer):
        ids = tokenizer(text_target=text, add_special_tokens=special)["input_ids"]
    else:
        ids = tokenizer.encode(text, add_special_tokens=special)
    return [int(i) for i in ids]


def token_names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, or the tokenizer's name for it if that is empty or a partial character."""
    raw = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    if not callable(getattr(tokenizer, "decode", None)):
        return raw
    texts = [str(tokenizer.decode([i])).strip().replace("\n", "\\n") for i in ids]
    return [token if not text or "\ufffd" in text else text for text, token in zip(texts, raw, strict=True)]


def _check_no_padding(ids: Tensor, tokenizer: Any) -> None:
    """Raise for padding tokens: a single prompt needs none, and the model would treat them as text."""
    pad, *others = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    if pad is None or pad in others:
        return  # the id has another meaning
    places = (ids[0] == pad).nonzero().flatten().tolist()
    if places:
        raise InputError(
            f"the prompt has padding tokens (id {pad}) at positions {places}; encode a single prompt without padding."
        )


def _from_template(inp: Any, text: str, tokenizer: Any) -> Prompt:
    """Return the prompt of a template; a token belongs to the segments whose characters it covers."""
    found = Tokenizing(tokenizer, None, types=False).tokens(text)
    if found.cut:
        raise InputError(
            f"the prompt has {found.cut} tokens more than the tokenizer's limit of {len(found.ids)}; shorten it, or "
            "raise tokenizer.model_max_length."
        )
    covered = torch.zeros(len(found.ids), inp.n_itp_features)
    segments = _segments(inp, text)
    for i, span in enumerate(found.spans):
        for value, start, end in segments if span is not None else ():
            feature = value if inp.mask is None else inp.formatted_mask[value]
            covered[i, feature] += max(0, min(end, span[1]) - max(start, span[0]))  # type: ignore[index]
    shares = covered / covered.sum(dim=1, keepdim=True).clamp(min=1)
    return Prompt(torch.tensor([found.ids], dtype=torch.int64), list(inp.values), shares, inp)


def _segments(inp: Any, text: str) -> list[tuple[int, int, int]]:
    """Return the positions of the template's values: index of the value, start and end in the text."""
    marks = [chr(_MARK + i) for i in range(len(inp.values))]
    marked = inp.format_fn(**dict(zip(inp.dict_keys, marks, strict=True))) if inp.dict_keys else inp.format_fn(*marks)
    places, built = [], ""
    for character in marked:
        value = ord(character) - _MARK
        if 0 <= value < len(marks):
            places.append((value, len(built), len(built) + len(inp.values[value])))
            character = inp.values[value]
        built += character
    if built != text:
        raise InputError(
            "the template alters its values, so their tokens cannot be found; use a template that inserts them "
            "unchanged, or a TextTokenInput."
        )
    return places
