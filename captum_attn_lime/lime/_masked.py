"""`LimeMasks`: LIME over features that are kept or removed, the base class for texts and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._explained import Explained
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime._util.progress import progress
from captum_attn_lime.features import by_position, spread
from captum_attn_lime.lime._base import Array, check_callable, check_count, result_dtype
from captum_attn_lime.lime._fit_warnings import Features
from captum_attn_lime.lime._fits import Fit, FitData
from captum_attn_lime.perturb._factory import perturbed_tensors
from captum_attn_lime.perturb._masks import Masks
from captum_attn_lime.perturb._model_outputs import eval_mode, target_scalars
from captum_attn_lime.perturb._tensors import MaskedInputs

Scores = Callable[[Masks], Array]  # maps masks (n, features) to scores (n, classes)


class LimeMasks(PerturbationAttribution):  # type: ignore[misc]
    """LIME whose features are kept or removed, as in texts and pictures.

    Samples, distances and kernel are those of an official explainer, and lime's public ``LimeBase`` fits the weights.
    A subclass for another kind of input sets ``_draw``, ``_scale`` and ``_batch``, and adds ``explain``.

    Args:
        forward_func: The forward function.
        kernel_width: Width of lime's kernel over distances.
        distance_metric: Distance between masks, one of scikit-learn's.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Seed of each call's random numbers.
    """

    _scale: ClassVar[float]  # factor of lime's distances
    _batch: ClassVar[int]  # default number of samples in one forward pass

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        kernel_width: float = 25,
        distance_metric: str = "cosine",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        check_callable(forward_func)
        super().__init__(forward_func)
        self.kernel_width = kernel_width
        self.distance_metric = distance_metric
        self.model_regressor = model_regressor
        self.seed = seed

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        n_samples: int = 1000,
        perturbations_per_eval: int | None = None,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        r"""Fit lime's linear model to the forward function around each example.

        It explains the forward function's output (logits, for an adapter). Each example is explained alone, with
        its row of the additional arguments. Every cell gets the weight of its feature. Features whose cells all equal
        the baseline (special and padding tokens of an encoding) cannot be removed; their weight is exactly 0.

        Args:
            inputs: A tensor or a tuple of tensors, (B, ...).
            baselines: Values of removed cells: tensors of the inputs' shapes or with one row, numbers, or a tuple of
                these; 0 by default. For token ids that is id 0, so pass the encoding's baselines; for normalised pixels
                it is the mean colour of the normalisation.
            target: Index of the output to explain, in any of Captum's forms.
            additional_forward_args: Further positional arguments of the forward function.
            feature_mask: Feature ids from 0, as in an encoding. By default each position along dimension 1 is one;
                :class:`LimeImage` uses an adapter's patches, or each pixel of a small picture.
            n_samples: Number of samples per example; 10 to 15 per feature give a stable ranking.
            perturbations_per_eval: Number of samples in one forward pass; by default 64 texts or 16 pictures.
            return_input_shape: Whether attributions have the inputs' shapes; else (B, features).
            show_progress: Whether to show a progress bar.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, in the shape of the inputs.

        Raises:
            TargetError: The output does not have the target.
            InputError: Baselines or feature mask do not fit the inputs, or there is no mask for a large picture.
        """
        batch = self._batch if perturbations_per_eval is None else perturbations_per_eval
        check_count("n_samples", n_samples, 2)
        check_count("perturbations_per_eval", batch, 1)
        tensors = as_tuple(inputs)
        masked = MaskedInputs.of(
            tensors, baselines, self._default_mask(tensors) if feature_mask is None else feature_mask
        )
        names = tuple(map(str, range(masked.n_features)))
        weights = torch.zeros(len(tensors[0]), len(names), dtype=torch.float64)
        total = len(weights) * n_samples
        with eval_mode(self.forward_func) as function, progress(total, show_progress, type(self).__name__) as tick:
            scalars = target_scalars(function, tensors, target, additional_forward_args)
            for i, scalar in enumerate(scalars):
                copies = perturbed_tensors(
                    self.forward_func, names, scalar.explained, masked.example(i), scalar, batch_size=batch
                )
                features = copies.active
                if not len(features):
                    tick(n_samples)
                    continue
                scores = partial(copies.class_scores_of_active, tick=tick)
                data = self._samples(scores, len(features), n_samples, self.seed, {0: 0})[0]
                for k, weight in data.fit()[1]:
                    weights[i, features[k]] = weight
        out = weights.to(tensors[0].device, result_dtype(tensors))
        return format_output(isinstance(inputs, tuple), spread(out, masked.ids)) if return_input_shape else out

    @staticmethod
    def _draw(seed: int, features: int, n: int) -> Masks:
        """Return the features that each sample keeps, (n, features)."""
        raise NotImplementedError

    def _default_mask(self, tensors: tuple[Tensor, ...]) -> TensorOrTuple:
        """Return the default feature mask."""
        return by_position(tensors)

    def _samples(
        self,
        scores: Scores,
        features: int,
        n: int,
        seed: int,
        columns: Mapping[int, int],
        names: Sequence[str] | None = None,
    ) -> list[FitData]:
        """Return the samples to fit, for each label.

        Args:
            scores: Maps masks to scores.
            features: Number of features.
            n: Number of samples.
            seed: Seed of the random numbers.
            columns: The column of the scores by label.
            names: The features' names.
        """
        from sklearn.metrics import pairwise_distances

        kept = self._draw(seed, features, n)
        y = np.asarray(scores(kept), dtype=np.float64)
        x = kept.astype(np.float64)
        distances = pairwise_distances(x, x[:1], metric=self.distance_metric).ravel() * self._scale
        kernel = np.sqrt(np.exp(-(distances**2) / self.kernel_width**2))
        return [
            FitData(kept, y[:, column], kernel, (0,), label, self.model_regressor, Features(names))
            for label, column in columns.items()
        ]

    def _fits(
        self,
        scores: Scores,
        names: Sequence[str],
        n: int,
        seed: int,
        numbers: Mapping[int, Explained],
        *,
        num_features: int | None,
        is_cut: bool = False,
    ) -> list[Fit]:
        """Return lime's fit of each explained number.

        Args:
            scores: Maps masks to scores.
            names: The features' names.
            n: Number of samples.
            seed: Seed of the random numbers.
            numbers: The explained numbers by column of the scores.
            num_features: Number of features that lime selects; all if None.
            is_cut: Whether the model sees only a part of the input.
        """
        columns = {1 if one.unit == "prediction" else column: column for column, one in numbers.items()}
        samples = self._samples(scores, len(names), n, seed, columns, names)
        return [
            Fit(data, data.fit(num_features), one, is_cut) for data, one in zip(samples, numbers.values(), strict=True)
        ]
