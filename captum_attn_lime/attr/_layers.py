"""Which attention calls ``layers=`` names: by their place in the stack, their module, or its path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from captum_attn_lime._capture.names import find_modules, path_of
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._passes import ForwardPass
from captum_attn_lime.errors import SelectionError
from captum_attn_lime.methods._checks import require_one_stack, require_tokens

Layer = int | str | nn.Module
Layers = Layer | slice | Sequence[Layer] | None


def select_layers(
    layers: Layers, done: ForwardPass, forward_func: Callable[..., Any], *, last_only: bool
) -> list[AttentionMap]:
    """Return the maps of the layers to explain, in call order.

    Args:
        layers: What the user asked for; None for all, or the last.
        done: The captured pass.
        forward_func: What was run.
        last_only: Whether the method reads the last layer where no layers are asked for.

    Raises:
        SelectionError: There is no such layer.
        AttentionKindError: The layers are over no tokens, or not of one stack.
    """
    maps = done.maps
    if layers is None:
        require_tokens(maps)
        # One layer alone would show one of two towers and say nothing of the other.
        require_one_stack(maps)
        last = maps[-1] if done.top is None else done.top
        return [last] if last_only else maps
    if isinstance(layers, slice):
        chosen = maps[layers]
    else:
        # A container of modules (nn.Sequential) is one layer that holds others, not a sequence of layers.
        is_one = isinstance(layers, (str, nn.Module)) or not isinstance(layers, Sequence)
        wanted = [layers] if is_one else list(layers)  # type: ignore[arg-type]
        chosen = [_one_layer(maps, layer, done.recorder.maps, forward_func) for layer in wanted]
    if not chosen:
        raise SelectionError(f"layers={layers!r} selects none of the {len(maps)} attention layers.")
    chosen.sort(key=lambda m: m.index or 0)
    require_tokens(chosen)
    require_one_stack(chosen)
    return chosen


def _one_layer(
    maps: list[AttentionMap], layer: Any, seen: list[AttentionMap], forward_func: Callable[..., Any]
) -> AttentionMap:
    """Return a layer by its index in the stack, or any attention call by its module or the module's path."""
    if isinstance(layer, nn.Module):
        return _of_module(layer, maps, seen, forward_func)
    if isinstance(layer, str):
        named = [m for m in maps if m.name == layer] or [m for m in seen if m.name == layer]
        if len(named) == 1:
            return named[0]
        problem = "is not one of the attention layers" if not named else f"made {len(named)} attention calls"
        raise SelectionError(
            f"layer {layer!r} {problem}; they are {_names(seen)}. Indices 0 to {len(maps) - 1} work too."
        )
    try:
        index = int(layer.__index__())
    except (AttributeError, TypeError):
        index = len(maps)
    if isinstance(layer, bool) or not -len(maps) <= index < len(maps):
        raise SelectionError(
            f"layer {layer!r} is out of range: the model made {len(maps)} self-attention calls (0 to {len(maps) - 1})."
        )
    return maps[index]


def _of_module(
    module: nn.Module, maps: list[AttentionMap], seen: list[AttentionMap], forward_func: Callable[..., Any]
) -> AttentionMap:
    """Return the one attention call that a module makes, itself or by its parts."""
    title = type(module).__name__
    path = path_of(module, find_modules(forward_func))
    if path is None:
        raise SelectionError(
            f"layers= holds a {title} that is no part of the model that was explained (a copy of it, perhaps). Pass "
            f"one of its own modules, or a path: {_names(seen)}."
        )

    def within(found: list[AttentionMap]) -> list[AttentionMap]:
        return [m for m in found if path == "" or m.name == path or m.name.startswith(f"{path}.")]

    named = within(maps) or within(seen)
    if len(named) == 1:
        return named[0]
    problem = "made no attention call" if not named else f"made {len(named)} attention calls ({_names(named)})"
    raise SelectionError(f"the {title} {path!r} {problem}; pass a module that makes one, or a path: {_names(seen)}.")


def _names(maps: list[AttentionMap]) -> str:
    return ", ".join(dict.fromkeys(m.name for m in maps))
