"""`diagnosed`: diagnostics of the explanations that an official explainer makes within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from captum_attn_lime._explained import Explained, Output, Unit, check_output
from captum_attn_lime.lime._diagnostics import Diagnostics, diagnose
from captum_attn_lime.lime._fit_warnings import Features
from captum_attn_lime.lime._fits import Fit, FitData, FitResult, RecordingBase
from captum_attn_lime.lime._warnings import emit


@contextmanager
def diagnosed(explainer: Any, *, output: Output = "probability") -> Iterator[dict[int, Diagnostics]]:
    """Yield the diagnostics, by label, of what an official explainer explains within the block.

    The explainer's draws and results do not change: only the samples passed to lime's fit are recorded.

    Args:
        explainer: A ``LimeTextExplainer``, ``LimeTabularExplainer`` (rows must be dense) or ``LimeImageExplainer``.
        output: The unit that its classifier function returns; ignored for regressions.

    Warns:
        LimeWarning: An explanation is less reliable than it looks.

    Example:
        >>> import numpy as np
        >>> from lime.lime_text import LimeTextExplainer
        >>> explainer = LimeTextExplainer(random_state=0)
        >>> with diagnosed(explainer) as diagnostics:
        ...     explanation = explainer.explain_instance("a fine film", lambda t: np.array([[0.2, 0.8]] * len(t)))
        >>> diagnostics[1].warnings
        ("the model's score is 0.8 for every perturbed copy: weights and R² mean nothing",)
    """
    is_regression = getattr(explainer, "mode", None) == "regression"
    unit: Unit = "prediction" if is_regression else "logit" if check_output(output) == "logits" else "probability"
    diagnostics: dict[int, Diagnostics] = {}

    def record(data: FitData, result: FitResult) -> None:
        names = None if is_regression else getattr(explainer, "class_names", None)
        index = 0 if is_regression else data.label
        explained = Explained(index, unit, None if names is None else str(names[index]), float(data.y[0]))
        diagnostics[data.label], briefs = diagnose(Fit(data, result, explained))
        emit(briefs)

    base = explainer.base
    explainer.base = RecordingBase(base, Features.of(explainer), 1 if is_regression else None, record)
    try:
        yield diagnostics
    finally:
        explainer.base = base
