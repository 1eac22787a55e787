"""Selection of attention calls with ``layers=``: by index, slice, module, path, or a pattern of paths."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from captum_attn_lime._capture.names import find_modules, path_of
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._passes import ForwardPass
from captum_attn_lime.errors import SelectionError
from captum_attn_lime.methods import require_one_stack, require_tokens

Layer = int | slice | str | nn.Module
Layers = Layer | Sequence[Layer] | None


def select_layers(layers: Layers, run: ForwardPass, forward_func: Any, *, last_only: bool) -> list[AttentionMap]:
    """Return the maps of the layers to explain, in call order and each once.

    Args:
        layers: The user's selection; None for all, or the last.
        run: The captured pass.
        forward_func: The model or function of the pass.
        last_only: Whether None selects only the last layer.

    Raises:
        SelectionError: There is no such layer.
        AttentionKindError: The layers are not over tokens, or not of one stack.
    """
    maps = run.maps
    if layers is None:
        chosen = maps
    else:
        # A container of modules (nn.Sequential) is one layer with submodules, not a sequence of layers.
        is_one = isinstance(layers, (str, nn.Module)) or not isinstance(layers, Sequence)
        wanted: list[Any] = [layers] if is_one else list(layers)  # type: ignore[arg-type]
        found = {m.index: m for layer in wanted for m in _selected(layer, maps, run.calls, forward_func)}
        if not found:
            raise SelectionError(f"layers={layers!r} selects none of the {len(maps)} attention layers: {_names(maps)}.")
        chosen = sorted(found.values(), key=lambda m: m.index or 0)
    require_tokens(chosen)
    # Also for the default: one layer would silently show only one of two towers.
    require_one_stack(chosen)
    return [run.last] if layers is None and last_only else chosen


def _selected(layer: Any, maps: list[AttentionMap], calls: list[AttentionMap], forward_func: Any) -> list[AttentionMap]:
    """Return the maps of one selector: indices and slices select from the stack, names from all attention calls."""
    if isinstance(layer, slice):
        return maps[layer]
    if isinstance(layer, (str, nn.Module)):
        return _by_name(layer, maps, calls, forward_func)
    try:
        index = int(layer.__index__())
    except (AttributeError, TypeError):
        index = len(maps)
    if isinstance(layer, bool) or not -len(maps) <= index < len(maps):
        raise SelectionError(
            f"layer {layer!r} is out of range: the model made {len(maps)} self-attention calls (0 to {len(maps) - 1}): "
            f"{_names(maps)}."
        )
    return [maps[index]]


def _by_name(
    layer: str | nn.Module, maps: list[AttentionMap], calls: list[AttentionMap], forward_func: Any
) -> list[AttentionMap]:
    """Return the calls whose path matches a pattern, or the one call within a module or path.

    Other calls, such as cross-attention, are selected only if there is no such call in the stack.
    """
    if isinstance(layer, str):
        path, title = layer, f"layer {layer!r}"
    else:
        found = path_of(layer, find_modules(forward_func))
        if found is None:
            raise SelectionError(
                f"layers= has a {type(layer).__name__} that is not part of the explained model (perhaps a copy). Pass "
                f"one of the model's modules, or a path: {_names(calls)}."
            )
        path, title = found, f"the {type(layer).__name__} {found!r}"
    is_pattern = isinstance(layer, str) and any(sign in layer for sign in "*?[")

    def named(calls: list[AttentionMap]) -> list[AttentionMap]:
        if is_pattern:
            return [m for m in calls if fnmatchcase(m.name, path)]
        within = [m for m in calls if path == "" or m.name == path or m.name.startswith(f"{path}.")]
        exact = [m for m in within if m.name == path]
        return exact if exact and isinstance(layer, str) else within

    chosen = named(maps) or named(calls)
    if len(chosen) == 1 or (chosen and is_pattern):
        return chosen
    if chosen:
        problem = f"made {len(chosen)} attention calls ({_names(chosen)}); pass one of them, an index, or a pattern"
    else:
        problem = "matches no attention call" if is_pattern else "made no attention call"
    raise SelectionError(
        f"{title} {problem}. The attention layers are {_names(calls)}; indices 0 to {len(maps) - 1} work too."
    )


def _names(maps: list[AttentionMap]) -> str:
    return ", ".join(dict.fromkeys(m.name for m in maps))
