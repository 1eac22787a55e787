"""`Encoding`: raw inputs as tensors for Captum's methods, with their features, also at the layer that embeds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_attn_lime._util.captum import expand_forward_args
from captum_attn_lime.adapters._captum_methods import (
    baselines_for,
    check_has_gradients,
    innermost_method,
    method_parameters,
)
from captum_attn_lime.adapters._state import probing
from captum_attn_lime.features import pool

Tensors = Tensor | tuple[Tensor, ...]


def counted(n: int | str, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "text"), counted(2, "text")
        ('1 text', '2 texts')
    """
    return f"{n} {noun}{'' if str(n) == '1' else 's'}"


@dataclass(frozen=True, eq=False, repr=False)
class Encoding:
    """Raw inputs as tensors for Captum, with their features.

    Attributes:
        inputs: What Captum attributes to, (B, ...).
        forward_args: Further arguments of the forward function, each (B, ...); Captum's ``additional_forward_args``.
        baselines: Tensors of the inputs' shapes that represent the absence of each feature.
        feature_mask: Feature ids from 0 in the inputs' shapes, int64. Cells that belong to no feature (special and
            padding tokens) share the last id.
        feature_names: For each example the names of its features, ids 0 to len - 1.
    """

    inputs: Tensors
    forward_args: tuple[Any, ...]
    baselines: Tensors
    feature_mask: Tensors
    feature_names: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.feature_names)

    def __repr__(self) -> str:
        counts = sorted({len(names) for names in self.feature_names})
        features = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"{type(self).__name__}({self._examples()}, {counted(features, 'feature')})"

    def _examples(self) -> str:
        """Return the number and size of the examples, for the repr."""
        return counted(len(self), "example")

    def arguments(self, method: Any) -> dict[str, Any]:
        """Return keyword arguments for ``method.attribute``: ``method.attribute(**x.arguments(method), target=1)``.

        These are ``inputs`` and, if the method accepts them, ``baselines``, ``additional_forward_args`` and
        ``feature_mask``. A method over a layer that embeds ids or categories also gets ``layer_mask`` and
        ``layer_baselines``, for which the model runs. For other layers, pass these yourself.

        Args:
            method: A Captum attribution, or ``NoiseTunnel`` around one.

        Raises:
            InputError: The method follows gradients with respect to token ids or categories, or compares each of
                several examples with the baselines of all.
        """
        names = method_parameters(method)
        check_has_gradients(method, _tuple(self.inputs))
        have = {
            "inputs": self.inputs,
            "additional_forward_args": self.forward_args or None,
            "feature_mask": self.feature_mask,
        }
        if "baselines" in names:
            found = baselines_for(method, _tuple(self.baselines))
            have["baselines"] = found if isinstance(self.baselines, tuple) else found[0]
        if "layer_mask" in names:
            inner = innermost_method(method)
            layer = layer_features(inner.forward_func, inner.layer, self)
            if layer is not None:
                have.update(layer_mask=layer.mask, layer_baselines=layer.baselines)
        return {name: value for name, value in have.items() if name in names}


class LayerFeatures(NamedTuple):
    """The features of a layer's output, and its output for the baselines.

    Attributes:
        mask: Feature ids, (B or 1, ...) in the output's shape; positions of no feature share the id after the last.
        baselines: The layer's output for the encoding's baselines, (B or 1, ...).
    """

    mask: Tensor
    baselines: Tensor


def layer_features(forward_func: Any, layer: Any, encoding: Encoding) -> LayerFeatures | None:
    """Return the features of a layer's output, if the layer embeds the encoding's ids or categories.

    The layer's input in a run shows which cell of the encoding is at each position. If it differs from the ids (the ids
    of a table's columns may be offset), one copy of the example per binary digit has other categories in all cells
    whose number has that digit. A position that changes in exactly the copies of the digits of c is cell c.

    Returns:
        None if the layer does not embed, is called several times, or mixes several cells in one position.
    """
    if not isinstance(layer, nn.Module) or not callable(forward_func):
        return None
    inputs, baselines, masks = _tuple(encoding.inputs), _tuple(encoding.baselines), _tuple(encoding.feature_mask)
    seen = _layer_call(forward_func, layer, inputs, encoding.forward_args)
    base = _layer_call(forward_func, layer, baselines, encoding.forward_args)
    if seen is None or base is None or base[1].shape != seen[1].shape:
        return None
    ids, output = seen
    if len(ids) != len(inputs[0]) or output.shape[: ids.dim()] != ids.shape:
        return None
    none = max(len(names) for names in encoding.feature_names)
    same = [m for x, m in zip(inputs, masks, strict=True) if x.shape == ids.shape and torch.equal(x.to(ids), ids)]
    if len(same) == 1:
        mask = same[0]
    else:
        cells = _cells(forward_func, layer, encoding, ids[:1])
        if cells is None:
            return None
        flat = torch.cat([*(m.reshape(len(m), -1) for m in masks)], dim=1)
        flat = torch.cat([flat, torch.full_like(flat[:, :1], none)], dim=1)  # index -1: no cell
        mask = flat[:, cells.flatten().to(flat.device)].reshape(ids.shape)
    mask = mask.reshape(*mask.shape, *[1] * (output.dim() - mask.dim())).expand(output.shape)
    return LayerFeatures(_one_if_equal(mask), _one_if_equal(base[1]))


def layer_scores(method: Any, attributions: Any, encoding: Encoding) -> Tensor | None:
    """Return the score of each feature, (features,), from a method over layers that embed columns.

    Args:
        method: A Captum attribution.
        attributions: Its result: a tensor for its layer, or a list of tensors for its list of layers.
        encoding: The encoding of one example with several columns.

    Returns:
        NaN for features that none of the layers embeds; None for other methods.
    """
    inner = innermost_method(method)
    if not isinstance(inner, LayerAttribution) or not hasattr(inner.forward_func, "_other_inputs"):
        return None
    layers, parts = (v if isinstance(v, list) else [v] for v in (inner.layer, attributions))
    n = len(encoding.feature_names[0])
    out = torch.full((n,), float("nan"), dtype=torch.float64)
    for layer, part in zip(layers, parts, strict=True):
        found = layer_features(inner.forward_func, layer, encoding)
        if found is None or not isinstance(part, Tensor) or part.shape != found.mask.shape:
            return None
        mask, cells = (t.detach().cpu().reshape(1, -1) for t in (found.mask, part))
        if "layer_mask" in method_parameters(inner):  # each cell repeats its feature's value
            totals = pool(cells, mask, "first", n + 1)[0, :n]
        else:
            totals = pool(cells, mask, "sum", n + 1)[0, :n]
        of_layer = torch.zeros(n + 1, dtype=torch.bool).index_fill_(0, torch.unique(mask[0]), value=True)[:n]
        out = torch.where(of_layer, totals.to(torch.float64) + out.nan_to_num(), out)
    return out


def _cells(forward_func: Any, layer: nn.Module, encoding: Encoding, ids: Tensor) -> Tensor | None:
    """Return the input cell at each position of the layer's input, counted over all tensors; -1 for none."""
    others = getattr(forward_func, "_other_inputs", None)
    if others is None:
        return None
    inputs = [x[:1] for x in _tuple(encoding.inputs)]
    altered = [x[:1] for x in others(encoding)]
    sizes = [x.numel() for x in inputs]
    # Numbers start at 1, so that each has a digit that is 1.
    number = torch.split(torch.arange(1, sum(sizes) + 1, device=inputs[0].device), sizes)
    bits = sum(sizes).bit_length()
    copies = []
    for x, other, cells in zip(inputs, altered, number, strict=True):
        digits = torch.stack([(cells >> bit) & 1 for bit in range(bits)]).bool()  # (bits, cells)
        chosen = torch.cat([torch.zeros_like(digits[:1]), digits, ~digits]).reshape(-1, *x.shape[1:])
        copies.append(torch.where(chosen, other, x))
    one_row = tuple(a[:1] if isinstance(a, Tensor) and a.dim() else a for a in encoding.forward_args)
    seen = _layer_call(forward_func, layer, tuple(copies), expand_forward_args(one_row, 2 * bits + 1))
    if seen is None or seen[0].shape[1:] != ids.shape[1:]:
        return None
    changed = seen[0][1:] != seen[0][:1]
    ones, zeros = changed[:bits], changed[bits:]
    touched = changed.any(dim=0)
    if bool((touched & ~(ones ^ zeros).all(dim=0)).any()):
        return None
    weights = (2 ** torch.arange(bits, device=ones.device)).reshape(-1, *[1] * (ones.dim() - 1))
    return torch.where(touched, (ones * weights).sum(dim=0) - 1, -1)


def _layer_call(
    forward_func: Any, layer: nn.Module, inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...]
) -> tuple[Tensor, Tensor] | None:
    """Return a layer's input (whole numbers) and output in a run; None if it gets other input or several calls."""
    calls: list[tuple[Any, Any]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((next(iter((*args, *kwargs.values())), None), output))

    handle = layer.register_forward_hook(look, with_kwargs=True)
    model = forward_func if isinstance(forward_func, nn.Module) else layer
    try:
        with probing(model) as probed:
            (probed if model is forward_func else forward_func)(*inputs, *forward_args)
    finally:
        handle.remove()
    if len(calls) != 1:
        return None
    ids, output = calls[0]
    if not isinstance(ids, Tensor) or not isinstance(output, Tensor) or ids.is_floating_point() or not ids.dim():
        return None
    return ids, output


def _one_if_equal(x: Tensor) -> Tensor:
    """Return one row if all are equal; it broadcasts to any number of noisy copies of the examples."""
    return x[:1] if torch.equal(x, x[:1].expand_as(x)) else x


def _tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)
