"""`Explained`: the one number that an explanation is about, made once and carried to every table, picture and page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from captum_attn_lime.errors import InputError, TargetError

Unit = Literal["probability", "logit", "log probability", "prediction"]
#: What a caller asks for; a regression answers with its prediction, whichever it is.
Output = Literal["probability", "logits"]
_SHOWN = 40  # letters of a name in a sentence


@dataclass(frozen=True)
class Explained:
    """The number that an explanation is about.

    A classifier of one logit z has one number: z speaks for class 1, and class 0 is explained as -z.

    Attributes:
        index: The class, the output of a regression, or (position, class) of a model that predicts for each token.
        unit: ``"probability"``, ``"logit"``, ``"log probability"`` (in the place of a logit, of a model that ends in
            softmax), or ``"prediction"`` of a regression.
        name: Name of the class or output; None where it has none.
        value: The model's answer for the input itself.
        is_predicted: Whether nobody chose the class: it is the one that the model predicts.
        opposite: Name of the other of two classes, where what lowers the one raises the other just as much: 1 - p
            beside p, or -z beside z.

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
        """What is explained, without its value: ``"probability of class 'fresh'"``."""
        kind = "output" if self.unit == "prediction" else "class"
        if self.name is not None:
            return f"{self.unit} of {kind} {_short(self.name)!r}{self._place}"
        if self.unit == "prediction":
            return self.unit if self.index == 0 else f"{self.unit} of {kind} {self.index}"
        return f"{self.unit} of {kind} {self.column}{self._place}"

    @property
    def column(self) -> int:
        """The class or output alone, without a position."""
        return self.index[-1] if isinstance(self.index, tuple) else self.index

    @property
    def _place(self) -> str:
        return f" at position {self.index[0]}" if isinstance(self.index, tuple) and len(self.index) > 1 else ""

    def is_same(self, other: Explained) -> bool:
        """Return whether two explanations are of one number of the model."""
        return (self.index, self.unit) == (other.index, other.unit)

    def __str__(self) -> str:
        """Return the number in words."""
        found = self.label + (" (predicted)" if self.is_predicted else "")
        return found if self.value is None else f"{found}: {self.value:.4g}"


def choose(
    scores: Any, target: Any, unit: Unit, names: Sequence[str] | None = None, *, two_sided: bool = False
) -> Explained:
    """Return the explained number of one example.

    Args:
        scores: The model's answers in the unit, one for each class (classes,), or by position (N, classes).
        target: The class: an index, a name, (position, class), or None for the class that is predicted.
        unit: What the scores are.
        names: Names of the classes or outputs.
        two_sided: Whether what lowers one of two classes raises the other just as much.

    Raises:
        TargetError: There is no such class, or it has to be named.

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
        raise TargetError(f"target {target!r}: regression has one output; leave target out.")
    kind = "outputs" if unit == "prediction" else "classes"
    index = int(values.argmax()) if is_predicted else class_index(0 if target is None else target, n, names, kind=kind)
    own = None if names is None or (unit == "prediction" and n == 1) else str(names[index])
    opposite = (str(1 - index) if names is None else str(names[1 - index])) if two_sided and n == 2 else None
    return Explained(index, unit, own, float(values[index]), is_predicted, opposite)


def class_index(target: Any, n: int, names: Sequence[str] | None = None, *, kind: str = "classes") -> int:
    """Return the index of a class that is given by its index, as a whole number of any kind, or by its name.

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
    """Return the target of one example out of a list or tensor of one; anything else as it is."""
    if isinstance(target, list) and len(target) == 1:
        return target[0]
    if isinstance(target, (Tensor, np.ndarray)) and np.prod(target.shape) == 1:
        return target.item()
    return target


def check_output(output: Any) -> Output:
    """Return what was asked for.

    Raises:
        InputError: It is neither ``"probability"`` nor ``"logits"``.
    """
    if output not in get_args(Output):
        raise InputError(f"output must be 'probability' or 'logits', but is {output!r}.")
    found: Output = output
    return found


def one_number(found: Sequence[tuple[str, Explained]]) -> Explained | None:
    """Return the number that all of several explanations are of; None where there are none.

    Args:
        found: Names of methods, and what each explains.

    Raises:
        InputError: Two of them explain different numbers.
    """
    for name, explained in found[1:]:
        first, of = found[0]
        if not explained.is_same(of):
            raise InputError(
                f"{first!r} explains the {of.label}, and {name!r} the {explained.label}: two numbers that do not stand "
                "in one table. Explain the same class in the same unit (target=, output=)."
            )
    return found[0][1] if found else None


def _at_position(values: Any, target: Any, unit: Unit, names: Sequence[str] | None) -> Explained:
    target = single_target(target)
    if not isinstance(target, tuple) or len(target) != 2:
        raise TargetError(
            f"the model predicts for each token, so that a target is (position, class), but {target!r} came; "
            "encoding.find(word) gives positions."
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
