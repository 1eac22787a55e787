"""`Explained`: the number that an explanation is about, shared by all tables, figures and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from captum_attn_lime.errors import InputError, TargetError

Unit = Literal["probability", "logit", "log probability", "prediction"]
#: The caller's choice of unit; for a regression it is always the prediction.
Output = Literal["probability", "logits"]
_SHOWN = 40  # maximum length of a name in a sentence


@dataclass(frozen=True)
class Explained:
    """The number that an explanation is about.

    For a classifier with a single logit z, class 1 is explained as z and class 0 as -z.

    Attributes:
        index: The class, the output of a regression, or (position, class) for a model with one prediction per token.
        unit: ``"probability"``, ``"logit"``, ``"log probability"`` (instead of a logit, for a model that ends in a
            softmax), or ``"prediction"`` for a regression.
        name: Name of the class or output; None if it has none.
        value: The model's output for the unperturbed input.
        is_predicted: Whether the class was not given as a target but is the predicted one.
        opposite: Name of the other class, if there are two and their numbers are p and 1 - p, or z and -z.

    Example:
        >>> print(Explained(1, "probability", "fresh", 0.93, is_predicted=True))
        probability of class 'fresh' (predicted): 0.93
        >>> print(Explained(0, "prediction", value=21.5), "|", Explained(2, "logit"))
        prediction: 21.5 | logit of class 2
    """

    index: int | tuple[int, ...]
    unit: Unit
    name: str | None = None
    value: float | None = None
    is_predicted: bool = False
    opposite: str | None = None

    @property
    def label(self) -> str:
        """The number's description without its value: ``"probability of class 'fresh'"``."""
        kind = "output" if self.unit == "prediction" else "class"
        if self.name is not None:
            return f"{self.unit} of {kind} {_short(self.name)!r}{self._place}"
        if self.unit == "prediction":
            return self.unit if self.index == 0 else f"{self.unit} of {kind} {self.index}"
        return f"{self.unit} of {kind} {self.column}{self._place}"

    @property
    def column(self) -> int:
        """The index of the class or output, without the position."""
        return self.index[-1] if isinstance(self.index, tuple) else self.index

    @property
    def _place(self) -> str:
        return f" at position {self.index[0]}" if isinstance(self.index, tuple) and len(self.index) > 1 else ""

    def is_same(self, other: Explained) -> bool:
        """Return whether both explain the same number: the same class or output, in the same unit."""
        return (self.index, self.unit) == (other.index, other.unit)

    def __str__(self) -> str:
        """Return the description with the value."""
        found = self.label + (" (predicted)" if self.is_predicted else "")
        return found if self.value is None else f"{found}: {self.value:.4g}"


def choose(
    scores: Any, target: Any, unit: Unit, names: Sequence[str] | None = None, *, two_sided: bool = False
) -> Explained:
    """Return the explained number of one example.

    Args:
        scores: The model's outputs in that unit, (classes,) or (N, classes).
        target: The class: an index, a name, (position, class), or None for the predicted class.
        unit: Unit of the scores.
        names: Names of the classes or outputs.
        two_sided: Whether the scores of two classes determine each other (p and 1 - p, z and -z).

    Raises:
        TargetError: There is no such class, or a target is required.

    Example:
        >>> print(choose([0.2, 0.8], None, "probability", ["rotten", "fresh"]))
        probability of class 'fresh' (predicted): 0.8
    """
    values = np.asarray(scores, dtype=np.float64)
    n = values.shape[-1]
    if values.ndim == 2:
        return _at_position(values, target, unit, names)
    is_predicted = target is None and unit != "prediction"
    if target is None and unit == "prediction" and n > 1:
        raise TargetError(f"the model predicts {n} numbers; pass target= for the one to explain{_listed(names)}.")
    if unit == "prediction" and n == 1 and single_target(target) not in (None, 0, *(names or ())):
        raise TargetError(f"target {target!r} was given, but a regression has one output; leave target out.")
    kind = "outputs" if unit == "prediction" else "classes"
    index = int(values.argmax()) if is_predicted else class_index(0 if target is None else target, n, names, kind=kind)
    name = None if names is None or (unit == "prediction" and n == 1) else str(names[index])
    opposite = (str(1 - index) if names is None else str(names[1 - index])) if two_sided and n == 2 else None
    return Explained(index, unit, name, float(values[index]), is_predicted, opposite)


def class_index(target: Any, n: int, names: Sequence[str] | None = None, *, kind: str = "classes") -> int:
    """Return the index of a class given by its index (any integer type) or its name.

    Raises:
        TargetError: There is no such class.

    Example:
        >>> class_index(np.int64(1), 3), class_index("fresh", 2, ["rotten", "fresh"])
        (1, 1)
    """
    target = single_target(target)
    if isinstance(target, str) and names is not None and list(names).count(target) == 1:
        return list(names).index(target)
    if isinstance(target, (bool, np.bool_)) or not isinstance(target, (int, np.integer)) or not 0 <= target < n:
        raise TargetError(
            f"target {target!r} is not one of the model's {n} {kind}; pass an int from 0 "
            f"to {n - 1}{' or a name' if names is not None else ''}{_listed(names)}."
        )
    return int(target)


def single_target(target: Any) -> Any:
    """Return the only element of a list, array or tensor with one element; anything else unchanged."""
    if isinstance(target, list) and len(target) == 1:
        return target[0]
    if isinstance(target, (Tensor, np.ndarray)) and np.prod(target.shape) == 1:
        return target.item()
    return target


def check_output(output: Any) -> Output:
    """Return the choice of ``output=``, checked.

    Raises:
        InputError: It is neither ``"probability"`` nor ``"logits"``.
    """
    if output not in get_args(Output):
        raise InputError(f"output must be 'probability' or 'logits', but is {output!r}.")
    found: Output = output
    return found


def one_number(found: Sequence[tuple[str, Explained]]) -> Explained | None:
    """Return the number that all methods explain; None if there are no methods.

    Args:
        found: Name and explained number of each method.

    Raises:
        InputError: Two methods explain different numbers.
    """
    for name, explained in found[1:]:
        first, of = found[0]
        if not explained.is_same(of):
            raise InputError(
                f"{first!r} explains the {of.label}, and {name!r} the {explained.label}; two numbers cannot share a "
                "table. Explain the same class in the same unit (target=, output=)."
            )
    return found[0][1] if found else None


def _at_position(values: Any, target: Any, unit: Unit, names: Sequence[str] | None) -> Explained:
    target = single_target(target)
    if not isinstance(target, tuple) or len(target) != 2:
        raise TargetError(
            f"the model predicts for each token, so that a target must be (position, class), but it is {target!r}; "
            "encoding.find(word) returns positions."
        )
    place, index = class_index(target[0], len(values)), class_index(target[1], values.shape[1], names)
    return Explained((place, index), unit, None if names is None else str(names[index]), float(values[place, index]))


def _listed(names: Sequence[str] | None) -> str:
    if names is None:
        return ""
    some = ", ".join(repr(_short(str(name))) for name in names[:8])
    return f" ({some}{', ...' if len(names) > 8 else ''})"


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
