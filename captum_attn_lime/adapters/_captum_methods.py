"""What Captum's methods need of an encoding: arguments, gradients, and one baseline per example or a sample of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor

from captum_attn_lime.errors import InputError

# Layer methods that nevertheless interpolate the inputs, or need their gradient.
_INTERPOLATING = ("LayerConductance", "LayerGradientShap", "LayerDeepLiftShap", "InternalInfluence")
# Captum draws their baselines from all rows at random, or compares each example with every row.
_SHARED_BASELINES = ("GradientShap", "DeepLiftShap")


def innermost_method(method: Any) -> Any:
    """Return the method inside any number of ``NoiseTunnel``."""
    while hasattr(method, "attribution_method"):
        method = method.attribution_method
    return method


def method_parameters(method: Any) -> set[str]:
    """Return the parameter names of ``method.attribute``; a ``NoiseTunnel`` passes its keyword arguments on."""
    names = set(inspect.signature(method.attribute).parameters)
    wrapped = getattr(method, "attribution_method", None)
    return names if wrapped is None else names | method_parameters(wrapped)


def check_has_gradients(method: Any, inputs: Sequence[Tensor]) -> None:
    """Raise if a method differentiates or interpolates ids or categories, which is not possible."""
    inner = innermost_method(method)
    over_layer = isinstance(inner, LayerAttribution)
    follows = isinstance(inner, GradientAttribution) and (not over_layer or type(inner).__name__ in _INTERPOLATING)
    whole = [not x.is_floating_point() for x in inputs]
    if not follows or not any(whole):
        return
    if over_layer:
        advice = "Use LayerIntegratedGradients, LayerDeepLift or LayerGradientXActivation, which work on the layer."
    else:
        advice = (
            "Use a method that replaces values (FeatureAblation, ShapleyValueSampling, LIME), or a layer method: "
            "LayerIntegratedGradients(adapter, adapter.embedding), or adapter.embeddings where a table has several."
        )
    if not over_layer and not all(whole):
        advice += (
            " For the numeric columns alone, pass the categories as further arguments: method.attribute(x.inputs[0], "
            "additional_forward_args=x.inputs[1], ...)."
        )
    raise InputError(
        f"{type(inner).__name__} follows gradients along its inputs, but token ids and categories have none. {advice}"
    )


def baselines_for(method: Any, baselines: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the baselines in the form that a method expects: one per example, or rows shared by all.

    Raises:
        InputError: The method would compare an example with the baseline of another.
    """
    name = type(innermost_method(method)).__name__
    if not name.endswith(_SHARED_BASELINES):
        return baselines
    if any(not torch.equal(b, b[:1].expand_as(b)) for b in baselines):
        raise InputError(
            f"{name} compares each example with the baselines of all, and these {len(baselines[0])} examples have "
            "different baselines; encode and explain one at a time."
        )
    rows = 2 if "DeepLiftShap" in name else 1  # DeepLiftShap rejects a single row
    return tuple(b[:1].expand(rows, *b.shape[1:]) for b in baselines)


def over_positions(attribution: Tensor, mask: Tensor, knows_features: bool) -> Tensor:
    """Return an attribution summed over the dimensions that the input does not have (an embedding's).

    A layer method that knows the features repeats a feature's value there; such values are not summed.
    """
    if attribution.dim() <= mask.dim():
        return attribution
    flat = attribution.flatten(mask.dim())
    is_repeated = knows_features and torch.equal(flat, flat[..., :1].expand_as(flat))
    return flat[..., 0] if is_repeated else flat.sum(dim=-1)
