"""The official image explainer run on masks: its own draws, distances and fit, without an image for each sample."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from captum_attn_lime.lime._base import Array
from captum_attn_lime.lime._explainer import Masks


def explain_image_masks(
    explainer: Any, features: int, scores: Callable[[Masks], Array], *, num_samples: int, **options: Any
) -> Any:
    """Return the official explainer's explanation of an image of so many segments.

    The explainer is handed an image of one row, in which every segment is a white pixel, and removed ones become black.
    Its public method ``data_labels`` draws the masks and would then make an image of each, in a loop under a progress
    bar. Here the bar's place is taken by a function that keeps the masks and ends the loop before it begins: rebinding
    that name for one call leaves the package as it is, also for other threads. Should a lime have no such loop, it
    shows its masks as black and white images.

    Args:
        explainer: A ``LimeImageExplainer``.
        features: Number of segments.
        scores: From masks (num_samples, features), True where a segment is kept, to scores (num_samples, classes).
        num_samples: Number of samples.
        options: Further arguments of ``explain_instance``.
    """
    run: Any = type(explainer).data_labels

    def data_labels(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, Array]:
        drawn: list[Any] = []

        def keep(rows: Any, *_: Any, **__: Any) -> Any:
            drawn.append(rows)
            return rows[:0]

        function = run
        if isinstance(run, FunctionType):
            names = {**run.__globals__, "tqdm": keep}
            function = FunctionType(run.__code__, names, run.__name__, run.__defaults__, run.__closure__)
            function.__kwdefaults__ = run.__kwdefaults__
        data, found = function(self, *args, **kwargs)
        return data, scores(np.asarray(data, dtype=bool)) if drawn else found

    def classify(images: Any) -> Array:
        return scores(np.asarray(images)[:, 0, :, 0] == 1)

    explainer.data_labels = MethodType(data_labels, explainer)
    try:
        return explainer.explain_instance(
            np.ones((1, features, 3), dtype=np.uint8),
            classify,
            hide_color=0,
            segmentation_fn=lambda image: np.arange(features).reshape(1, features),
            top_labels=None,  # lime's default, 5, would go before the labels
            num_samples=num_samples,
            batch_size=num_samples,
            **options,
        )
    finally:
        del explainer.data_labels
