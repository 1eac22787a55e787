"""`diagnosed`: the diagnostics of what an official explainer explains, whoever calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from captum_attn_lime._explained import Explained, Output, Unit, check_output
from captum_attn_lime.lime._diagnostics import About, Diagnostics, FitData, diagnose
from captum_attn_lime.lime._notices import emit
from captum_attn_lime.lime._replicates import Run, fit_data
from captum_attn_lime.lime._unseen import Features


@contextmanager
def diagnosed(explainer: Any, *, output: Output = "probability") -> Iterator[dict[int, Diagnostics]]:
    """Give the diagnostics, by label, of what an official explainer explains within the block.

    The explainer's draws and results stay what they are: only the samples are looked at on their way to lime's fit.

    Args:
        explainer: A ``LimeTextExplainer``, ``LimeTabularExplainer`` (rows must be dense) or ``LimeImageExplainer``.
        output: What its classifier function gives; of a regression the prediction.

    Warns:
        LimeWarning: An explanation says less than it seems to.

    Example:
        >>> import numpy as np
        >>> from lime.lime_text import LimeTextExplainer
        >>> explainer = LimeTextExplainer(random_state=0)
        >>> with diagnosed(explainer) as found:
        ...     explanation = explainer.explain_instance("a fine film", lambda t: np.array([[0.2, 0.8]] * len(t)))
        >>> found[1].warnings
        ("the model's answer is 0.8 for every perturbed copy: weights and R² say nothing",)
    """
    is_regression = getattr(explainer, "mode", None) == "regression"
    unit: Unit = "prediction" if is_regression else "logit" if check_output(output) == "logits" else "probability"
    base, fit = explainer.base, explainer.base.explain_instance_with_data
    found: dict[int, Diagnostics] = {}
    features = Features.of(explainer)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = fit(*args, **kwargs)
        data = fit_data(base, [Run(dict(signature(fit).bind(*args, **kwargs).arguments), result)], features)
        about = About(_explained(explainer, data, unit), label=1 if is_regression else None)
        own, briefs = diagnose(data, result, about)
        found[own.label] = own
        emit(briefs)
        return result

    base.explain_instance_with_data = watched
    try:
        yield found
    finally:
        del base.explain_instance_with_data


def _explained(explainer: Any, data: FitData, unit: Unit) -> Explained:
    """Return what an official explainer explains."""
    names = getattr(explainer, "class_names", None)
    name = None if unit == "prediction" or names is None else str(names[data.label])
    return Explained(data.label, unit, name, float(data.y[0]))
