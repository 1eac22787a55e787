"""Which parameter of a model's forward takes the token ids, the mask and the token types."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters._wrappers import innermost, only_forwards, parameters_of, wrapper_chain
from captum_attn_lime.errors import ForwardError, InputError

# Parameter names of each role, the clearest first. An attention mask is 1 at real tokens (HuggingFace); a padding mask
# is True at padding (torch.nn).
NAMES = {
    "input_ids": ("input_ids", "ids", "token_ids", "tokens", "input", "inputs", "x", "text", "src"),
    "attention_mask": ("attention_mask", "input_mask", "token_mask", "mask"),
    "padding_mask": ("padding_mask", "src_key_padding_mask", "key_padding_mask", "pad_mask"),
    "token_type_ids": ("token_type_ids", "segment_ids", "token_types", "type_ids"),
}
# Parameters that are not part of a tokenizer's output.
_OPTIONS = ("labels", "label", "targets", "position_ids", "head_mask", "inputs_embeds", "return_dict", "batch_idx")
# Names that always mean the ids; the others count only in first place.
_IDS_NAMES = ("input_ids", "ids", "token_ids", "tokens")
# Names of a parameter that takes a tokenizer's whole output as a dictionary.
_DICT_NAMES = ("batch", "features", "encoding", "encodings", "encoded", "tokenized", "batch_encoding", "model_inputs")
_DICT_TYPES = ("dict", "mapping", "batchencoding")
# HuggingFace's parameter for embeddings instead of ids.
_EMBEDS = "inputs_embeds"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
Parameters = Mapping[str, inspect.Parameter]


class Batch(dict[str, Any]):
    """A tokenizer's output as a dictionary whose entries are also attributes, as in HuggingFace."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Binding:
    """The parameters of a model's forward that take text; None for missing ones.

    Attributes:
        ids: Name of the parameter for token ids, or None if they are the first positional argument.
        mask: Name of the parameter for the mask.
        inverted: Whether that mask is True at padding.
        types: Name of the parameter for token type ids.
        embeds: Name of the parameter for embeddings instead of token ids.
        order: Names of all parameters in order, if forward takes everything by position.
        as_dictionary: Whether forward takes all in one dictionary.
        may_lose: Whether mask or token types go to a ``**kwargs``, and may get lost there.
    """

    ids: str | None
    mask: str | None
    inverted: bool
    types: str | None
    embeds: str | None = None
    order: tuple[str, ...] = ()
    as_dictionary: bool = False
    may_lose: bool = False

    def call(self, model: nn.Module, ids: Tensor, mask: Tensor | None, types: Tensor | None, **options: Any) -> Any:
        """Run the model with every argument under its name.

        Ids, mask and types are copies, so the model may write into them.

        Args:
            model: The model.
            ids: Token ids (n, N), or embeddings.
            mask: 1 at real tokens (n, N), or None.
            types: Token type ids (n, N), or None.
            **options: Further arguments of the model.

        Raises:
            ForwardError: A token or a position has no embedding.
        """
        try:
            return self._call(model, ids, mask, types, options)
        except IndexError as error:
            raise ForwardError(
                f"{type(model).__name__} has no embedding for a token or a position of {ids.shape[1]} tokens "
                f"({error}). If it has fewer positions, pass max_length= to the adapter; else use its own tokenizer."
            ) from error

    def _call(
        self, model: nn.Module, ids: Tensor, mask: Tensor | None, types: Tensor | None, options: dict[str, Any]
    ) -> Any:
        named: dict[str, Any] = {}
        if mask is not None and self.mask is not None:
            named[self.mask] = mask == 0 if self.inverted else mask.clone()
        if types is not None and self.types is not None:
            named[self.types] = types.clone()
        ids = ids if ids.is_floating_point() else ids.clone()
        if self.as_dictionary:
            return model(Batch({str(self.ids): ids, **named}), **options)
        if self.order:
            named[self.order[0]] = ids
            last = max(self.order.index(name) for name in named)
            return model(*(named.get(name) for name in self.order[: last + 1]))
        if self.embeds is not None and ids.dim() == 3 and ids.is_floating_point():
            return model(**{self.embeds: ids}, **named, **options)
        if self.ids is None:
            return model(ids, **named, **options)
        return model(**{self.ids: ids}, **named, **options)

    def ways(self) -> Iterator[Binding]:
        """Yield this binding, then fallbacks that leave out what forward does not name."""
        yield self
        if not self.may_lose:
            return
        for fewer in (replace(self, types=None), replace(self, mask=None, types=None)):
            if fewer != self:
                yield fewer
            if self.ids is not None and not self.as_dictionary:
                yield replace(fewer, ids=None)


def bindings(model: nn.Module, names: Mapping[str, str | None] | None = None) -> list[Binding]:
    """Return the ways in which the model may take text, by the signature of its ``forward``; the likeliest first.

    Wrappers that only pass their arguments on are skipped.

    Args:
        model: The model.
        names: Role to parameter name, for unusual names; None leaves a role out. Roles: ``"input_ids"``,
            ``"attention_mask"`` (1 at real tokens), ``"padding_mask"`` (True at padding), ``"token_type_ids"``.

    Raises:
        ForwardError: ``forward`` takes no positional argument, or needs one that a text does not provide.
        InputError: ``names`` holds a role or a parameter that does not exist.
    """
    given = dict(names or {})
    named_module = next((m for m in wrapper_chain(model) if not only_forwards(m)), innermost(model))
    parameters = parameters_of(named_module)
    first = next(iter(parameters.values()), None)
    if first is not None and _looks_like_dictionary(first) and "input_ids" not in given:
        piece = _dictionary_binding(given)
        _check_filled(parameters, replace(piece, ids=first.name), type(model).__name__)
        return list(piece.ways())
    binding = _binding_by_name(named_module, parameters, given)
    if any(only_forwards(m) and not _is_library(m) for m in wrapper_chain(model)):
        binding = replace(binding, may_lose=True)
    if _only_by_position(model):
        order = tuple(name for name, p in parameters.items() if p.kind in _POSITIONAL)
        mask, types = (name if name in order else None for name in (binding.mask, binding.types))
        return [replace(binding, order=order, embeds=None, mask=mask, types=types)] if order else [binding]
    return list(binding.ways()) if binding.may_lose else [binding, *_possible_dictionary(first, binding, given)]


def _binding_by_name(model: nn.Module, parameters: Parameters, given: Mapping[str, str | None]) -> Binding:
    """Return the binding by the names of forward's parameters, and of what its ``**kwargs`` may pass on."""
    name = type(model).__name__
    chosen = dict(given)
    _check_names(chosen, parameters, name)
    for role, known in NAMES.items():
        found = next((n for n in known if n in parameters), None)
        if found is not None and found not in chosen.values():
            chosen.setdefault(role, found)
    if given.get("padding_mask") and "attention_mask" not in given:
        chosen.pop("attention_mask", None)
    may_lose = _takes_any(parameters) and not _is_library(model)
    if may_lose:
        # The tokenizer's names. Whether forward passes them on shows when it runs.
        if not chosen.get("padding_mask"):
            chosen.setdefault("attention_mask", "attention_mask")
        chosen.setdefault("token_type_ids", "token_type_ids")
        may_lose = any(chosen.get(role) not in (None, *parameters) for role in ("attention_mask", "token_type_ids"))
        if only_forwards(model):
            chosen.setdefault("input_ids", "input_ids")
            given = {"input_ids": chosen["input_ids"], **given}
            may_lose = True
    ids = _ids_parameter(parameters, chosen, given, name)
    inverted = not chosen.get("attention_mask") and bool(chosen.get("padding_mask"))
    mask = chosen.get("padding_mask" if inverted else "attention_mask")
    embeds = _EMBEDS if _EMBEDS in parameters else None
    binding = Binding(ids, mask, inverted, chosen.get("token_type_ids"), embeds, may_lose=may_lose)
    _check_filled(parameters, binding, name)
    return binding


def _dictionary_binding(given: Mapping[str, str | None]) -> Binding:
    """Return the binding to a tokenizer's dictionary."""
    names = {role: given.get(role, role) for role in ("input_ids", "attention_mask", "token_type_ids")}
    return Binding(
        names["input_ids"], names["attention_mask"], False, names["token_type_ids"], as_dictionary=True, may_lose=True
    )


def _possible_dictionary(
    first: inspect.Parameter | None, binding: Binding, given: Mapping[str, str | None]
) -> Iterator[Binding]:
    """Yield the binding to a dictionary if the only known parameter might take one."""
    if first is not None and first.name not in _IDS_NAMES and not (binding.mask or binding.types or given):
        yield from _dictionary_binding(given).ways()


def _looks_like_dictionary(first: inspect.Parameter) -> bool:
    """Return whether a parameter takes a tokenizer's whole output, by its name or annotation."""
    if first.annotation is not inspect.Parameter.empty:
        annotation = str(getattr(first.annotation, "__name__", first.annotation)).lower()
        if any(word in annotation for word in _DICT_TYPES):
            return True
        if "tensor" in annotation:
            return False
    return first.kind in _POSITIONAL and (first.name in _DICT_NAMES or first.name.endswith("_dict"))


def _only_by_position(model: nn.Module) -> bool:
    """Return whether a wrapper around the model with named parameters passes on only positional arguments."""
    for module in wrapper_chain(model):
        if not only_forwards(module):
            return False
        if not _takes_any(parameters_of(module)):
            return True
    return False


def _takes_any(parameters: Parameters) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _is_library(model: nn.Module) -> bool:
    """Return whether ``forward`` is from transformers or torch, where ``**kwargs`` are options."""
    return str(type(model).forward.__module__).partition(".")[0] in ("transformers", "torch")


def _ids_parameter(
    parameters: Parameters, chosen: Mapping[str, str | None], given: Mapping[str, str | None], model: str
) -> str | None:
    """Return the ids' parameter; None if it is the first positional one and cannot be passed by name."""
    if given.get("input_ids"):
        return given["input_ids"]
    first = next(iter(parameters.values()), None)
    if first is None or first.kind is inspect.Parameter.VAR_KEYWORD:
        raise ForwardError(f"{model}.forward takes no positional argument; an adapter passes it the token ids.")
    taken = {name for role, name in chosen.items() if role != "input_ids"}
    sure = next((n for n in _IDS_NAMES if n in parameters and n not in taken and parameters[n].kind in _BY_NAME), None)
    if sure is not None:
        return sure
    if first.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
        return None
    return first.name if first.name not in taken else chosen.get("input_ids", first.name)


def _check_names(names: Mapping[str, str | None], parameters: Parameters, model: str) -> None:
    for role, name in names.items():
        if role not in NAMES:
            raise InputError(f"forward_names has the role {role!r}; the roles are {', '.join(NAMES)}.")
        if name is not None and name not in parameters and not _takes_any(parameters):
            raise InputError(
                f"forward_names gives {role!r} the parameter {name!r}, but {model}.forward takes "
                f"{', '.join(parameters)}."
            )


def _check_filled(parameters: Parameters, binding: Binding, model: str) -> None:
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
                f"{model}.forward needs {name!r}, which a text does not provide; make it optional, wrap the model in a "
                f"module that supplies it, or name its role with forward_names= (roles: {', '.join(NAMES)})."
            )


def unused_parameters(model: nn.Module, binding: Binding) -> list[str]:
    """Return the parameters of ``forward`` that may be meant for a tokenizer's output, but have other names."""
    named_module = next((m for m in wrapper_chain(model) if not only_forwards(m)), innermost(model))
    if _is_library(named_module) or binding.as_dictionary:
        return []
    taken = {binding.ids, binding.mask, binding.types, *_OPTIONS}
    return [
        name
        for name, p in list(parameters_of(named_module).items())[binding.ids is None :]
        if p.kind in _BY_NAME and p.default is None and name not in taken and not name.startswith("output_")
    ]


def check_kind(model: Any) -> None:
    """Raise for models that a text adapter cannot run.

    Raises:
        InputError: It is TorchScript, chooses among several texts, or is not a module but holds one.
    """
    if not isinstance(model, nn.Module):
        if isinstance(getattr(model, "model", None), nn.Module):
            name = type(model).__name__
            raise InputError(f"{name} is not a torch.nn.Module but holds one; pass its .model, and its .tokenizer.")
        return
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is TorchScript, whose forward does not name its inputs and whose attention cannot be captured; "
            "pass the module that was scripted or traced, or wrap it in a module with "
            "forward(input_ids, attention_mask)."
        )
    if any(c.__name__.endswith("ForMultipleChoice") for c in type(innermost(model)).__mro__):
        raise InputError(
            f"{type(innermost(model)).__name__} chooses among several texts, with ids (n, choices, N). Wrap it in a "
            "module that scores one choice, forward(input_ids, attention_mask, token_type_ids) -> "
            "model(input_ids[:, None], attention_mask[:, None], token_type_ids[:, None]).logits, which is (n, 1), and "
            "pass the question and one choice as a pair."
        )
