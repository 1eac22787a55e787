"""What Captum's methods ask of an encoding: which arguments, gradients, one baseline for each example or rows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor

from captum_attn_lime.errors import InputError

# Layer methods that move along the inputs all the same, or ask for their gradient.
_MOVES = ("LayerConductance", "LayerGradientShap", "LayerDeepLiftShap", "InternalInfluence")
# Captum draws their baselines at random, for each example from all rows, or sets each example against every row.
_DRAWN = ("GradientShap", "DeepLiftShap")


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


def over_positions(attribution: Tensor, mask: Tensor, knows_features: bool) -> Tensor:
    """Return an attribution summed over what it has beyond the input's dimensions (an embedding's).

    A layer method that knows the features repeats a feature's value there too: that is taken once.
    """
    if attribution.dim() <= mask.dim():
        return attribution
    flat = attribution.flatten(mask.dim())
    is_repeated = knows_features and torch.equal(flat, flat[..., :1].expand_as(flat))
    return flat[..., 0] if is_repeated else flat.sum(dim=-1)
