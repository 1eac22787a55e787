"""Which parameter of a model's forward takes the token ids, the mask and the token types."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from captum_attn_lime.errors import ForwardError, InputError

# The names under which models take each role, most telling first. An attention mask is 1 at real tokens (HuggingFace);
# a padding mask is True at padding (torch.nn).
NAMES = {
    "input_ids": ("input_ids", "ids", "token_ids", "tokens", "input", "inputs", "x", "text", "src"),
    "attention_mask": ("attention_mask", "input_mask", "token_mask", "mask"),
    "padding_mask": ("padding_mask", "src_key_padding_mask", "key_padding_mask", "pad_mask"),
    "token_type_ids": ("token_type_ids",),
}
# Names that can only be the ids', wherever they stand; the others count at the first place alone.
_SURE = ("input_ids", "ids", "token_ids", "tokens")
# HuggingFace models take embeddings in place of ids under this name.
_EMBEDS = "inputs_embeds"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Binding:
    """The parameters that a model takes text through; None where it takes none.

    Attributes:
        ids: Name of the parameter for token ids, or None where they go first by position.
        mask: Name of the parameter for the mask.
        inverted: Whether that mask is True at padding.
        types: Name of the parameter for token type ids.
        embeds: Name of the parameter that takes embeddings in place of token ids.
    """

    ids: str | None
    mask: str | None
    inverted: bool
    types: str | None
    embeds: str | None = None

    def call(self, model: nn.Module, ids: Tensor, mask: Tensor | None, types: Tensor | None, **options: Any) -> Any:
        """Run the model with every argument under its own name.

        Args:
            model: The model.
            ids: Token ids (n, N), or embeddings in their place.
            mask: 1 at real tokens (n, N), or None.
            types: Token type ids (n, N), or None.
            **options: Further arguments of the model.
        """
        named: dict[str, Any] = dict(options)
        if mask is not None and self.mask is not None:
            named[self.mask] = mask == 0 if self.inverted else mask
        if types is not None and self.types is not None:
            named[self.types] = types
        if self.embeds is not None and ids.dim() == 3 and ids.is_floating_point():
            return model(**{self.embeds: ids}, **named)
        if self.ids is None:
            return model(ids, **named)
        return model(**{self.ids: ids}, **named)


def bind(model: nn.Module, names: Mapping[str, str] | None = None) -> Binding:
    """Return how the model takes text, read off the signature of its ``forward``.

    Args:
        model: The model.
        names: Role to parameter name, for models whose names say nothing. Roles: ``"input_ids"``,
            ``"attention_mask"`` (1 at real tokens), ``"padding_mask"`` (True at padding), ``"token_type_ids"``.

    Raises:
        ForwardError: ``forward`` takes no positional argument, or needs one that a text cannot fill.
        InputError: ``names`` holds a role or a parameter that does not exist.
    """
    parameters = dict(inspect.signature(model.forward).parameters)
    chosen = dict(names or {})
    _check_names(chosen, parameters, type(model).__name__)
    for role, known in NAMES.items():
        found = next((n for n in known if n in parameters), None)
        if found is not None and found not in chosen.values():
            chosen.setdefault(role, found)
    if names and "padding_mask" in names and "attention_mask" not in names:
        chosen.pop("attention_mask", None)
    ids = _ids_parameter(parameters, chosen, names or {}, type(model).__name__)
    inverted = "attention_mask" not in chosen and "padding_mask" in chosen
    mask = chosen.get("padding_mask" if inverted else "attention_mask")
    embeds = _EMBEDS if _EMBEDS in parameters else None
    binding = Binding(ids, mask, inverted, chosen.get("token_type_ids"), embeds)
    _check_filled(parameters, binding, type(model).__name__)
    return binding


def _ids_parameter(
    parameters: Mapping[str, inspect.Parameter], chosen: Mapping[str, str], given: Mapping[str, str], model: str
) -> str | None:
    """Return the ids' parameter; None where it is the first positional one and has no name to call it by."""
    if "input_ids" in given:
        return given["input_ids"]
    first = next(iter(parameters.values()), None)
    if first is None or first.kind is inspect.Parameter.VAR_KEYWORD:
        raise ForwardError(f"{model}.forward takes no positional argument; an adapter passes it the token ids.")
    taken = {name for role, name in chosen.items() if role != "input_ids"}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    sure = next((n for n in _SURE if n in parameters and n not in taken and parameters[n].kind in by_name), None)
    if sure is not None:
        return sure
    if first.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
        return None
    return first.name if first.name not in taken else chosen.get("input_ids", first.name)


def _check_names(names: Mapping[str, str], parameters: Mapping[str, inspect.Parameter], model: str) -> None:
    for role, name in names.items():
        if role not in NAMES:
            raise InputError(f"forward_names has the role {role!r}; the roles are {', '.join(NAMES)}.")
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        if name not in parameters and not takes_any:
            raise InputError(
                f"forward_names gives {role!r} the parameter {name!r}, but {model}.forward takes "
                f"{', '.join(parameters)}."
            )


def _check_filled(parameters: Mapping[str, inspect.Parameter], binding: Binding, model: str) -> None:
    filled = {binding.ids, binding.mask, binding.types}
    if binding.ids is None:
        filled.add(next(iter(parameters)))
    for name, parameter in parameters.items():
        needed = parameter.default is inspect.Parameter.empty and parameter.kind in (
            *_POSITIONAL,
            inspect.Parameter.KEYWORD_ONLY,
        )
        if needed and name not in filled:
            raise ForwardError(
                f"{model}.forward needs {name!r}, which a text does not give; make it optional, wrap the model in a "
                f"module that fills it, or say what it is with forward_names= (roles: {', '.join(NAMES)})."
            )
