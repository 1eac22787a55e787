"""`Encoding`: raw inputs as the tensors that Captum's methods take, with their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_attn_lime.adapters._layers import (
    baselines_for,
    check_has_gradients,
    innermost_method,
    layer_features,
    method_parameters,
)

Tensors = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Raw inputs as the tensors that Captum wants, with their features.

    Attributes:
        inputs: What Captum attributes to, (B, ...).
        forward_args: What the forward function needs besides, each (B, ...); Captum's ``additional_forward_args``.
        baselines: Tensors of the inputs' shapes that stand for "nothing there".
        feature_mask: Feature ids from 0 in the inputs' shapes, int64. Cells that stand for no feature (special and
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

    def arguments(self, method: Any) -> dict[str, Any]:
        """Return the keyword arguments of ``method.attribute`` that this encoding can fill.

        These are ``inputs``, and of ``baselines``, ``additional_forward_args`` and ``feature_mask`` those that the
        method takes, so that ``method.attribute(**x.arguments(method), target=1)`` is a full call. A method over the
        output of a layer that embeds ids or categories gets ``layer_mask`` and ``layer_baselines`` too: the features of
        what was embedded, and the embedded baselines; the model runs for them. Other layers' are left to the user.

        Args:
            method: A Captum attribution, or ``NoiseTunnel`` around one.

        Raises:
            InputError: The method follows gradients with respect to token ids or categories, or takes each of several
                examples against the baselines of all.
        """
        names = method_parameters(method)
        inputs, baselines = (t if isinstance(t, tuple) else (t,) for t in (self.inputs, self.baselines))
        check_has_gradients(method, inputs)
        have = {
            "inputs": self.inputs,
            "additional_forward_args": self.forward_args or None,
            "feature_mask": self.feature_mask,
        }
        if "baselines" in names:
            found = baselines_for(method, baselines)
            have["baselines"] = found if isinstance(self.baselines, tuple) else found[0]
        if "layer_mask" in names:
            inner = innermost_method(method)
            layer = layer_features(inner.forward_func, inner.layer, self)
            if layer is not None:
                have.update(layer_mask=layer.mask, layer_baselines=layer.baselines)
        return {name: value for name, value in have.items() if name in names}
