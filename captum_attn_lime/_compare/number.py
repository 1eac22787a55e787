"""The number that all methods of a comparison explain, and how each method is run on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from captum.attr import DeepLift, LayerDeepLift, NeuronDeepLift

from captum_attn_lime._explained import Explained, Output, Unit, check_output, one_number, single_target
from captum_attn_lime._util.captum import run_forward, select_target
from captum_attn_lime.adapters import Adapter, Encoding
from captum_attn_lime.adapters._captum_methods import innermost_method
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters._unit_override import UnitOverride
from captum_attn_lime.errors import ForwardError, InputError, TargetError
from captum_attn_lime.lime._explanations import explained_label

_NONE_FITS = object()
# Tolerance between a function's output and the explained number.
_SAME = 1e-4


@dataclass(frozen=True)
class Number:
    """The number that a comparison explains.

    Attributes:
        explained: The number; None if neither an adapter nor an explanation defines it.
        adapter: The adapter that the methods run, if any.
        target: The caller's target.
    """

    explained: Explained | None
    adapter: Adapter | None
    target: Any

    @property
    def label(self) -> Any:
        """The class, as lime's explanations label it."""
        if self.explained is None:
            return single_target(self.target)
        return self.explained.column

    def attribute(self, name: str, method: Any, encoding: Encoding, arguments: dict[str, Any]) -> Any:
        """Return a method's attributions for this number.

        Args:
            name: The method's name, for error messages.
            method: A Captum attribution.
            encoding: The input.
            arguments: Keyword arguments of its ``attribute``, except the target.

        Raises:
            InputError: The method explains another number.
        """
        parameters = signature(method.attribute).parameters
        has_target = "target" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        inner = innermost_method(method)
        if self.explained is None:
            return method.attribute(**arguments, **({"target": _plain(self.target)} if has_target else {}))
        if not has_target:
            return method.attribute(**arguments)
        if not getattr(inner, "uses_target", True):  # attention: the target only names a position
            place = self.explained.index if isinstance(self.explained.index, tuple) else None
            return method.attribute(**arguments, target=place)
        forward_func = getattr(inner, "forward_func", None)
        adapter = forward_func if isinstance(forward_func, Adapter) else self.adapter
        for ours in (adapter,) if adapter is None else (adapter, None):
            with _output_unit(
                ours, self.explained.unit, encoding, eval_mode=not hasattr(inner, "uses_target")
            ) as override:
                target = self._target_of(forward_func, encoding)
                if target is _NONE_FITS:
                    continue
                _check_deep_lift(name, inner, override)
                found = method.attribute(**arguments, target=target)
                if forward_func is not None or self._surely_explains(override):
                    return found
        raise InputError(
            f"the comparison explains the {self.explained}, but {name!r} runs another function, which returns another "
            "number. Construct the method with the adapter, whose outputs compare converts to one number, choose that "
            "number with target= and output=, or run the method yourself and pass its attributions."
        )

    def _target_of(self, forward_func: Any, encoding: Encoding) -> Any:
        """Return the target at which a function returns the explained number; ``_NONE_FITS`` if there is none."""
        assert self.explained is not None
        if forward_func is None or forward_func is self.adapter:
            return self.explained.index
        fitting = [t for t in (self.explained.index, None) if self._returns_it(forward_func, encoding, t)]
        return fitting[0] if fitting else _NONE_FITS

    def _surely_explains(self, override: UnitOverride | None) -> bool:
        """Return whether a method without a visible forward function is sure to have explained this number."""
        assert self.explained is not None
        if override is not None:
            return override.is_used or override.is_plain
        return self.adapter is None and self.explained.unit != "probability" and self.explained.opposite is None

    def _returns_it(self, forward_func: Any, encoding: Encoding, target: Any) -> bool:
        """Return whether a function returns the explained number at a target."""
        assert self.explained is not None
        inputs = encoding.inputs if isinstance(encoding.inputs, tuple) else (encoding.inputs,)
        try:
            with torch.no_grad():
                found = select_target(run_forward(forward_func, inputs, encoding.forward_args or None), target)
        except (TargetError, ForwardError):
            return False
        value = self.explained.value
        if found.numel() != 1 or value is None:
            return found.numel() == 1
        return bool(np.isclose(float(found.reshape(-1)[0]), value, rtol=_SAME, atol=_SAME))


@contextmanager
def _output_unit(
    adapter: Adapter | None, unit: Unit, encoding: Encoding, *, eval_mode: bool
) -> Iterator[UnitOverride | None]:
    """Run a block in which an adapter returns its outputs in a unit.

    Args:
        adapter: The adapter; without one, nothing changes.
        unit: The unit.
        encoding: The input.
        eval_mode: Whether to run the adapter's model in eval mode; attention is captured in the model's current mode.
    """
    if adapter is None:
        yield None
        return
    mode = evaluating(adapter.model) if eval_mode else nullcontext()
    with adapter.output_unit(unit, encoding.inputs, encoding.forward_args) as override, mode:
        yield override


def _check_deep_lift(name: str, method: Any, override: UnitOverride | None) -> None:
    """Raise for DeepLift if the adapter converts logits to probabilities, for which DeepLift has no rule.

    DeepLift replaces the gradients of modules with hooks; any other operation would keep its plain gradient.
    """
    if override is None or override.is_linear or not isinstance(method, (DeepLift, LayerDeepLift, NeuronDeepLift)):
        return
    raise InputError(
        f"{name!r} is DeepLift, which has no rule for the step from logits to probabilities in an adapter. Compare "
        "logits: compare(..., output='logits'), and LIME's explain(..., output='logits')."
    )


def number_of(attributions: Mapping[str, Any], encoding: Encoding, target: Any, output: Output | None) -> Number:
    """Return the number that a comparison explains.

    If there are lime explanations among the methods, it is the number that they explain. Otherwise it is the target
    class, or the predicted one, in the unit of the model's outputs.

    Args:
        attributions: Mapping from names to attributions.
        encoding: The input.
        target: The class, or None.
        output: ``"probability"`` or ``"logits"``; None for the unit of the explanations, or of the model's outputs.

    Raises:
        InputError: The explanations are of different numbers.
        TargetError: There is no such class, or it was not explained.
    """
    unit: Unit | None = None
    if output is not None:
        unit = "probability" if check_output(output) == "probability" else "logit"
    adapter = next((a for a in map(_adapter, attributions.values()) if a is not None), None)
    wanted: Any = target if adapter is None else adapter.with_token_ids(target)
    if isinstance(single_target(wanted), str) and adapter is not None and adapter.class_names is not None:
        wanted = adapter.explained(encoding.inputs, encoding.forward_args, target).column
    explanations = [(name, _explained(e, wanted)) for name, e in attributions.items() if hasattr(e, "local_exp")]
    explained = one_number(explanations)
    if explained is None and adapter is not None:
        if adapter.is_regression:
            unit = None
        explained = adapter.explained(encoding.inputs, encoding.forward_args, target, unit=unit)
    elif explained is not None and unit is not None and not _is_in_unit(explained.unit, unit):
        raise InputError(
            f"output={output!r} was given, but {explanations[0][0]!r} explains the {explained.label}; explain with "
            f"output={output!r}, too."
        )
    return Number(explained, adapter, target)


def _adapter(method: Any) -> Adapter | None:
    """Return the adapter that an attribution runs; None if its forward function is not an adapter."""
    forward_func = getattr(innermost_method(method), "forward_func", None)
    return forward_func if isinstance(forward_func, Adapter) else None


def _explained(explanation: Any, target: Any) -> Explained:
    """Return the number that a lime explanation explains; official scores in [0, 1] count as probabilities."""
    key = explained_label(explanation, _class_of(target))
    known = getattr(explanation, "all_diagnostics", {}).get(key)
    if known is not None:
        found: Explained = known.explained
        return found
    if getattr(explanation, "mode", "classification") == "regression":
        return Explained(0, "prediction", value=float(explanation.predicted_value))
    scores = getattr(explanation, "predict_proba", None)
    names = getattr(explanation, "class_names", None)
    unit: Unit = "probability"
    if scores is not None and not 0 <= float(np.min(scores)) <= float(np.max(scores)) <= 1:
        unit = "logit"
    return Explained(
        int(key),
        unit,
        None if names is None else str(names[key]),
        None if scores is None else float(scores[key]),
    )


def _is_in_unit(found: Unit, unit: Unit) -> bool:
    """Return whether a number is in the requested unit; a regression has a single unit."""
    return found in (unit, "prediction") or (found, unit) == ("log probability", "logit")


def _class_of(target: Any) -> Any:
    """Return the class of a target for one example; None if it is not a single class."""
    target = single_target(target)
    return target if isinstance(target, (int, np.integer, str)) else None


def _plain(target: Any) -> Any:
    """Return a target in a form that Captum's methods accept."""
    return int(target) if isinstance(target, np.integer) else target
