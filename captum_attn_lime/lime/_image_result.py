"""`LimeImageExplanation`: the explanation of a picture. Imports lime."""

from __future__ import annotations

from typing import Any

import numpy as np
from lime.lime_image import ImageExplanation
from numpy.typing import NDArray

from captum_attn_lime.lime._result import LimeExplanation


class LimeImageExplanation(LimeExplanation, ImageExplanation):  # type: ignore[misc]
    """A :class:`LimeExplanation` and lime's ``ImageExplanation`` of a picture.

    ``top_labels`` are the explained labels.

    Args:
        image: The picture, (H, W, 3).
        segments: The segment of each pixel, (H, W), numbered as the features.
        *args: As for :class:`LimeExplanation`.
        **kwargs: As for :class:`LimeExplanation`.
    """

    def __init__(self, image: NDArray[Any], segments: NDArray[np.integer[Any]], *args: Any, **kwargs: Any) -> None:
        LimeExplanation.__init__(self, *args, **kwargs)
        self.image, self.segments = image, segments
        self.top_labels = list(self.all_diagnostics)

    # lime's page would name bars by segment numbers; notebooks show the repr instead
    _repr_html_ = None  # type: ignore[assignment]
