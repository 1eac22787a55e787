"""`as_explanation_func`: wraps any attribution as a function for Captum's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime.errors import InputError, TokenMapError

# Keywords with a row per example that captum's sensitivity_max passes on unchanged although it repeats the inputs
# (0.9), or repeats only if the first tensor of several has the input's shape (baselines).
_PER_EXAMPLE = ("baselines", "feature_mask", "query")


def as_explanation_func(attribution: Any, *, like_inputs: bool = False) -> Callable[..., TensorOrTuple]:
    """Return the attribution as a function for ``captum.metrics.sensitivity_max`` and ``infidelity``.

    ``sensitivity_max(attribution.attribute, ...)`` fails for attributions that do not mirror their input: it passes a
    tuple and iterates over the result, but a layer method returns a bare tensor. It also repeats the inputs, targets
    and further arguments for several perturbations at once, but not the feature mask. The returned function

    - returns a tuple for a tuple, whatever the attribution returns (all tensors of layers with several outputs, or of
      several layers), detached and contiguous;
    - repeats the rows of ``feature_mask``, ``baselines`` and ``query`` to match the inputs, with the copies of a row
      next to each other;
    - raises a helpful error if noise was added to token ids.

    ``sensitivity_max`` adds noise by default, which is meaningless for ids and categories. Explain the model as a
    function of embeddings (HuggingFace models accept ``inputs_embeds``), or pass a ``perturb_func=`` that returns other
    ids.

    LIME uses the same ``seed`` in every call, so that two calls differ because of the input only, not by chance.

    Args:
        attribution: A Captum attribution (from this package or Captum, also ``NoiseTunnel``), or a function of the
            inputs and keyword arguments that returns one or several tensors.
        like_inputs: Whether the result must have the inputs' shapes, as ``captum.metrics.infidelity`` requires: further
            dimensions of a layer's output (embeddings of token ids) are summed.

    Raises:
        InputError: ``attribution`` is neither an attribution nor a function. The returned function raises it for
            integer inputs with noise, and for a result whose rows do not match the inputs.

    Reference:
        Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019. Captum issue 1612.

    Example:
        >>> from captum.attr import LayerGradientXActivation
        >>> from captum.metrics import sensitivity_max
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> explain = as_explanation_func(LayerGradientXActivation(model, model[1]))
        >>> sensitivity_max(explain, torch.ones(5, 4), target=1).shape
        torch.Size([5])
    """
    attribute = getattr(attribution, "attribute", attribution)
    if isinstance(attribution, type) or not callable(attribute):
        name = attribution.__name__ if isinstance(attribution, type) else type(attribution).__name__
        raise InputError(f"attribution must be an instance of a Captum attribution or a function, but is {name}.")
    return _ExplanationFunc(attribute, like_inputs)


class _ExplanationFunc:
    """See :func:`as_explanation_func`. It remembers which inputs of the last call were integers."""

    def __init__(self, attribute: Callable[..., Any], like_inputs: bool) -> None:
        self._attribute = attribute
        self._like_inputs = like_inputs
        self._integers: dict[int, torch.Size] = {}  # of the last call: position of the tensor to shape of a row

    def __call__(self, inputs: TensorOrTuple, **kwargs: Any) -> TensorOrTuple:
        """Return the attributions of the inputs: a tuple for a tuple.

        Args:
            inputs: Tensor or tuple of tensors, each (B, ...).
            **kwargs: Passed to the attribution; values with a row per example are repeated to B rows.
        """
        tensors = as_tuple(inputs)
        if kwargs.get("return_convergence_delta"):
            raise InputError("a metric needs the attributions only; leave out return_convergence_delta.")
        self._check_ids(tensors)
        n = len(tensors[0])
        for name in _PER_EXAMPLE:
            if name in kwargs:
                kwargs[name] = _repeated(kwargs[name], n)
        found = tuple(t.detach().contiguous() for t in _tensors(self._attribute(inputs, **kwargs)))
        for t in found:
            if t.dim() == 0 or len(t) != n:
                raise InputError(
                    f"the attribution returned a tensor of shape {tuple(t.shape)} for {n} example(s), but a metric "
                    "needs a row for each example."
                )
        if self._like_inputs:
            found = _summed_to(found, tensors)
        return found if isinstance(inputs, tuple) or len(found) > 1 else found[0]

    def _check_ids(self, tensors: tuple[Tensor, ...]) -> None:
        """Raise if an integer tensor of the last call is now floating point, because noise was added to token ids."""
        before, self._integers = self._integers, {}
        for i, x in enumerate(tensors):
            if x.is_floating_point() and before.get(i) == x.shape[1:]:
                raise InputError(
                    f"input {i} of shape {tuple(x.shape)} is {x.dtype}, but was an integer tensor before: noise was "
                    "added to token ids or categories, which does not give valid ids. Perturb embeddings instead: "
                    "explain the model as a function of its embeddings (inputs_embeds= of a HuggingFace model), or "
                    "pass sensitivity_max a perturb_func= that returns other integers. For counts that may be "
                    "fractional, pass x.float()."
                )
        self._integers = {i: x.shape[1:] for i, x in enumerate(tensors) if not x.is_floating_point()}


def _tensors(found: Any) -> tuple[Tensor, ...]:
    """Return the tensors of an attribution's result, with nested tuples and lists flattened."""
    if isinstance(found, Tensor):
        return (found,)
    if isinstance(found, (tuple, list)) and found:
        return tuple(t for part in found for t in _tensors(part))
    raise InputError(f"the attribution returned {type(found).__name__}; a metric needs a tensor or a tuple of tensors.")


def _repeated(value: Any, n: int) -> Any:
    """Return a value with its rows repeated to n rows, with the copies of a row next to each other.

    A single row, a number or a name applies to all examples and is returned unchanged.
    """
    if isinstance(value, tuple):
        return tuple(_repeated(part, n) for part in value)
    is_rows = isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
    rows = len(value) if is_rows else 1
    if rows in (0, 1, n) or n % rows:
        return value
    if isinstance(value, list):
        return [row for row in value for _ in range(n // rows)]
    return value.repeat_interleave(n // rows, dim=0)


def _summed_to(found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the attributions in the inputs' shapes, with further dimensions summed."""
    out = []
    if len(found) == len(inputs):
        for t, x in zip(found, inputs, strict=True):
            more = tuple(range(x.dim(), t.dim()))
            out.append(t.sum(dim=more) if more else t)
    if len(found) != len(inputs) or any(t.shape != x.shape for t, x in zip(out, inputs, strict=True)):
        raise TokenMapError(
            f"the attributions have shapes {[tuple(t.shape) for t in found]}, but the inputs "
            f"{[tuple(x.shape) for x in inputs]}, and summing the further dimensions does not make them equal. Leave "
            "out like_inputs, or attribute to a layer with a row per input position."
        )
    return tuple(out)
