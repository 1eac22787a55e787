"""What Captum's methods take of an encoding, those over a layer that embeds its ids or categories included."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor, nn

from captum_attn_lime._util.captum import expand_forward_args
from captum_attn_lime.adapters._trial import trial
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import pool

if TYPE_CHECKING:
    from captum_attn_lime.adapters._encoding import Encoding

# Layer methods that move along the inputs all the same, or ask for their gradient.
_MOVES = ("LayerConductance", "LayerGradientShap", "LayerDeepLiftShap", "InternalInfluence")
# Captum draws their baselines at random, for each example from all rows, or sets each example against every row.
_DRAWN = ("GradientShap", "DeepLiftShap")


class LayerFeatures(NamedTuple):
    """The features of a layer's output, and what it gives for the baselines.

    Attributes:
        mask: Feature ids, (B or 1, ...) in the output's shape; positions of no feature share the id after the last.
        baselines: The layer's output for the encoding's baselines, (B or 1, ...).
    """

    mask: Tensor
    baselines: Tensor


def innermost_method(method: Any) -> Any:
    """Return the method inside any number of ``NoiseTunnel``."""
    while hasattr(method, "attribution_method"):
        method = method.attribution_method
    return method


def method_parameters(method: Any) -> set[str]:
    """Return the names that ``method.attribute`` takes; a ``NoiseTunnel`` hands its keyword arguments on."""
    names = set(inspect.signature(method.attribute).parameters)
    wrapped = getattr(method, "attribution_method", None)
    return names if wrapped is None else names | method_parameters(wrapped)


def check_has_gradients(method: Any, inputs: Sequence[Tensor]) -> None:
    """Raise if a method wants the gradient with respect to ids or categories, or moves along them: there is neither."""
    inner = innermost_method(method)
    over_layer = isinstance(inner, LayerAttribution)
    follows = isinstance(inner, GradientAttribution) and (not over_layer or type(inner).__name__ in _MOVES)
    whole = [not x.is_floating_point() for x in inputs]
    if not follows or not any(whole):
        return
    if over_layer:
        advice = "Use LayerIntegratedGradients, LayerDeepLift or LayerGradientXActivation, which move along the layer."
    else:
        advice = (
            "Use a method that replaces values (FeatureAblation, ShapleyValueSampling, LIME), or a layer method: "
            "LayerIntegratedGradients(adapter, adapter.embedding), or adapter.embeddings where a table has several."
        )
    if not over_layer and not all(whole):
        advice += (
            " For the numeric columns alone pass the categories as they are: method.attribute(x.inputs[0], "
            "additional_forward_args=x.inputs[1], ...)."
        )
    raise InputError(
        f"{type(inner).__name__} follows gradients along its inputs, and along token ids or categories there are none. "
        f"{advice}"
    )


def baselines_for(method: Any, baselines: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the baselines as a method takes them: one for each example, or rows that are drawn from.

    Raises:
        InputError: The method would set an example against another one's baseline.
    """
    if not type(innermost_method(method)).__name__.endswith(_DRAWN):
        return baselines
    if any(not torch.equal(b, b[:1].expand_as(b)) for b in baselines):
        raise InputError(
            f"{type(innermost_method(method)).__name__} takes each example against the baselines of all, and these "
            f"{len(baselines[0])} examples have baselines of their own; encode and explain one at a time."
        )
    rows = 2 if "DeepLiftShap" in type(innermost_method(method)).__name__ else 1  # which refuses a single row
    return tuple(b[:1].expand(rows, *b.shape[1:]) for b in baselines)


def layer_features(forward_func: Any, layer: Any, encoding: Encoding) -> LayerFeatures | None:
    """Return the features of a layer's output, where the layer embeds the encoding's ids or categories.

    The layer's input in a run tells which cell of the encoding each of its positions is. Where it is not the ids as
    they are (a column of a table, counted on from that of another one), categories are replaced by the binary digits of
    their columns' numbers, and a position that changes just where the digits of c are one is column c.

    Returns:
        None where the layer does not embed, is called several times, or mixes several cells in one position.
    """
    if not isinstance(layer, nn.Module) or not callable(forward_func):
        return None
    inputs, baselines, masks = _tuple(encoding.inputs), _tuple(encoding.baselines), _tuple(encoding.feature_mask)
    seen = _seen(forward_func, layer, inputs, encoding.forward_args)
    base = _seen(forward_func, layer, baselines, encoding.forward_args)
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
        flat = torch.cat([flat, torch.full_like(flat[:, :1], none)], dim=1)  # index -1: of no cell
        mask = flat[:, cells.flatten().to(flat.device)].reshape(ids.shape)
    mask = mask.reshape(*mask.shape, *[1] * (output.dim() - mask.dim())).expand(output.shape)
    return LayerFeatures(_one_if_equal(mask), _one_if_equal(base[1]))


def layer_scores(method: Any, attributions: Any, encoding: Encoding) -> Tensor | None:
    """Return what a method over layers that embed columns says of each feature, (features,), of one example.

    Args:
        method: A Captum attribution.
        attributions: What it gave: a tensor for its layer, or a list of tensors for its list of layers.
        encoding: The encoding of one example with several columns.

    Returns:
        NaN for features that none of the layers embeds; None where it is no such method.
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


def over_positions(attribution: Tensor, mask: Tensor, knows_features: bool) -> Tensor:
    """Return an attribution summed over what it has beyond the input's dimensions (an embedding's).

    A layer method that knows the features repeats a feature's value there too: that is taken once.
    """
    if attribution.dim() <= mask.dim():
        return attribution
    flat = attribution.flatten(mask.dim())
    is_repeated = knows_features and torch.equal(flat, flat[..., :1].expand_as(flat))
    return flat[..., 0] if is_repeated else flat.sum(dim=-1)


def _cells(forward_func: Any, layer: nn.Module, encoding: Encoding, ids: Tensor) -> Tensor | None:
    """Return the input cell that each position of the layer's input is, counted over all tensors; -1 for none."""
    others = getattr(forward_func, "_other_inputs", None)
    if others is None:
        return None
    inputs = [x[:1] for x in _tuple(encoding.inputs)]
    altered = [x[:1] for x in others(encoding)]
    sizes = [x.numel() for x in inputs]
    # From 1, so that each has a digit that is one.
    number = torch.split(torch.arange(1, sum(sizes) + 1, device=inputs[0].device), sizes)
    bits = sum(sizes).bit_length()
    copies = []
    for x, other, own in zip(inputs, altered, number, strict=True):
        digits = torch.stack([(own >> bit) & 1 for bit in range(bits)]).bool()  # (bits, cells)
        chosen = torch.cat([torch.zeros_like(digits[:1]), digits, ~digits]).reshape(-1, *x.shape[1:])
        copies.append(torch.where(chosen, other, x))
    one_row = tuple(a[:1] if isinstance(a, Tensor) and a.dim() else a for a in encoding.forward_args)
    seen = _seen(forward_func, layer, tuple(copies), expand_forward_args(one_row, 2 * bits + 1))
    if seen is None or seen[0].shape[1:] != ids.shape[1:]:
        return None
    changed = seen[0][1:] != seen[0][:1]
    ones, zeros = changed[:bits], changed[bits:]
    touched = changed.any(dim=0)
    if bool((touched & ~(ones ^ zeros).all(dim=0)).any()):
        return None
    weights = (2 ** torch.arange(bits, device=ones.device)).reshape(-1, *[1] * (ones.dim() - 1))
    return torch.where(touched, (ones * weights).sum(dim=0) - 1, -1)


def _seen(
    forward_func: Any, layer: nn.Module, inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...]
) -> tuple[Tensor, Tensor] | None:
    """Return what a layer gets (whole numbers) and gives in a run; None if it is another kind of layer."""
    calls: list[tuple[Any, Any]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((next(iter((*args, *kwargs.values())), None), output))

    handle = layer.register_forward_hook(look, with_kwargs=True)
    model = forward_func if isinstance(forward_func, nn.Module) else layer
    try:
        with trial(model) as own:
            (own if model is forward_func else forward_func)(*inputs, *forward_args)
    finally:
        handle.remove()
    if len(calls) != 1:
        return None
    came, gave = calls[0]
    if not isinstance(came, Tensor) or not isinstance(gave, Tensor) or came.is_floating_point() or not came.dim():
        return None
    return came, gave


def _one_if_equal(x: Tensor) -> Tensor:
    """Return one row where all are equal: it goes with any number of noisy copies of the examples."""
    return x[:1] if torch.equal(x, x[:1].expand_as(x)) else x


def _tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)
