"""`as_explanation_func`: any attribution in the form in which Captum's metrics call one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime.errors import InputError, TokenMapError

# Keywords with a row per example that captum's sensitivity_max hands on as they are while it repeats the inputs (0.9),
# or repeats only where the first tensor of several has the input's shape (baselines).
_PER_EXAMPLE = ("baselines", "feature_mask", "query")


def as_explanation_func(attribution: Any, *, like_inputs: bool = False) -> Callable[..., TensorOrTuple]:
    """Return the attribution as a function that ``captum.metrics.sensitivity_max`` can call.

    ``sensitivity_max(attribution.attribute, ...)`` breaks on attributions that do not mirror their input: it calls
    with a tuple first and iterates over what comes back, and a layer method gives a bare tensor. It also repeats the
    inputs, their targets and further arguments for several perturbations at once, and forgets the feature mask. The
    function returned here

    - gives a tuple for a tuple, whatever the attribution does (layers with several outputs, or several layers: all of
      their tensors), detached and contiguous;
    - repeats the rows of ``feature_mask``, ``baselines`` and ``query`` where there are fewer than of the inputs, each
      row as often as the others, one after the other;
    - says what to do where noise was added to token ids.

    Adding noise is what ``sensitivity_max`` does by default, and it means nothing for ids and categories. Explain the
    model as a function of embeddings (HuggingFace models take ``inputs_embeds``), or pass ``perturb_func=`` that
    returns other ids.

    LIME draws its samples from its own ``seed`` in every call, so that what differs between two calls is due to the
    input, not to the draw.

    Args:
        attribution: A Captum attribution (of this package, of Captum, or ``NoiseTunnel``), or a function of the
            inputs and keyword arguments that returns a tensor or several.
        like_inputs: Whether the result must have the inputs' shapes, which ``captum.metrics.infidelity`` needs: what a
            layer's output has beyond the input's dimensions (embeddings of token ids) is summed.

    Raises:
        InputError: Neither an attribution nor a function. From the function returned: integer inputs with noise, or a
            result with other rows than the inputs.

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
        raise InputError(f"attribution must be a Captum attribution, made with a model, or a function; got {name}.")
    return _ExplanationFunc(attribute, like_inputs)


class _ExplanationFunc:
    """See :func:`as_explanation_func`. It remembers which inputs came as integers."""

    def __init__(self, attribute: Callable[..., Any], like_inputs: bool) -> None:
        self._attribute = attribute
        self._like_inputs = like_inputs
        self._integers: dict[int, torch.Size] = {}  # of the last call: position of the tensor to shape of a row

    def __call__(self, inputs: TensorOrTuple, **kwargs: Any) -> TensorOrTuple:
        """Return the attributions of the inputs: a tuple for a tuple.

        Args:
            inputs: Tensor or tuple of tensors, each (B, ...).
            **kwargs: Handed to the attribution; rows of what holds one per example are repeated to B.
        """
        tensors = as_tuple(inputs)
        if kwargs.get("return_convergence_delta"):
            raise InputError("a metric takes attributions alone; leave return_convergence_delta out.")
        self._check_ids(tensors)
        n = len(tensors[0])
        for name in _PER_EXAMPLE:
            if name in kwargs:
                kwargs[name] = _repeated(kwargs[name], n)
        found = tuple(t.detach().contiguous() for t in _tensors(self._attribute(inputs, **kwargs)))
        for t in found:
            if t.dim() == 0 or len(t) != n:
                raise InputError(
                    f"the attribution gave a tensor of shape {tuple(t.shape)} for {n} example(s); a metric needs a row "
                    "for each example."
                )
        if self._like_inputs:
            found = _summed_to(found, tensors)
        return found if isinstance(inputs, tuple) or len(found) > 1 else found[0]

    def _check_ids(self, tensors: tuple[Tensor, ...]) -> None:
        """Raise where a tensor of integers comes again as one of fractions, as with noise added to token ids."""
        before, self._integers = self._integers, {}
        for i, x in enumerate(tensors):
            if x.is_floating_point() and before.get(i) == x.shape[1:]:
                raise InputError(
                    f"input {i} of shape {tuple(x.shape)} came as {x.dtype} after it had come as integers: noise was "
                    "added to token ids or categories, which makes no other ids of them. Perturb embeddings instead: "
                    "explain the model as a function of its embeddings (inputs_embeds= of a HuggingFace model), or "
                    "pass sensitivity_max a perturb_func= that returns other integers. Counts that may be fractions: "
                    "pass x.float()."
                )
        self._integers = {i: x.shape[1:] for i, x in enumerate(tensors) if not x.is_floating_point()}


def _tensors(found: Any) -> tuple[Tensor, ...]:
    """Return the tensors of an attribution's result, those of nested tuples and lists one after the other."""
    if isinstance(found, Tensor):
        return (found,)
    if isinstance(found, (tuple, list)) and found:
        return tuple(t for part in found for t in _tensors(part))
    raise InputError(f"the attribution gave {type(found).__name__}; a metric needs a tensor or a tuple of tensors.")


def _repeated(value: Any, n: int) -> Any:
    """Return a value with a row per example repeated to n rows, each row's copies together.

    One row stands for all examples as it is, and so do numbers and names.
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
    """Return attributions in the inputs' shapes, further dimensions summed."""
    out = []
    if len(found) == len(inputs):
        for t, x in zip(found, inputs, strict=True):
            more = tuple(range(x.dim(), t.dim()))
            out.append(t.sum(dim=more) if more else t)
    if len(found) != len(inputs) or any(t.shape != x.shape for t, x in zip(out, inputs, strict=True)):
        raise TokenMapError(
            f"the attributions have shapes {[tuple(t.shape) for t in found]} and the inputs "
            f"{[tuple(x.shape) for x in inputs]}; summing dimensions behind the inputs' does not bring one to the "
            "other. Leave like_inputs out, or attribute to a layer with a row per input position."
        )
    return tuple(out)
