"""`LimeSequence`: the official recurrent LIME over the cells of sequences, one step of one series each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._explained import Output
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime.adapters import SequenceAdapter
from captum_attn_lime.adapters.numeric._columns import check_categories, column_indices, names_of_categories
from captum_attn_lime.adapters.numeric._sequence import training_sequences
from captum_attn_lime.adapters.numeric._series import (
    as_sequences,
    cell_names,
    cells_of,
    cells_of_series,
    sequences_of,
    series_names,
)
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import pool, spread
from captum_attn_lime.lime._base import Array, check_count, result_dtype
from captum_attn_lime.lime._replicates import MAX_SAMPLES, NumSamples, Plan
from captum_attn_lime.lime._rows import LimeRows, Semantics, needs_training_data


class LimeSequence(LimeRows):
    r"""The ``RecurrentTabularExplainer`` of the official lime package as a Captum attribution.

    Its features are the cells: the value of one series at one step. Perturbed sequences are drawn cell by cell from
    the training data's distribution of that cell, so there are no baselines. What a cell's number means is that of
    :class:`LimeTabular`'s columns:

    - ``"contrast"`` (lime's default): a value in the cell's own quartile against a value in another.
    - ``"gradient"``: the slope of the local linear model.
    - ``"times_input"``: the slope times the distance from the cell's mean (compare Integrated Gradients from the mean).

    Cells of categorical series always give the contrast of their own category against others. As in
    :class:`LimeTabular`, a bin that holds a single value is drawn as that value.

    lime draws cells independently: neighbouring steps of a perturbed sequence do not follow each other as those of
    real ones do.

    Args:
        forward_func: A ``SequenceAdapter``; for :meth:`attribute` any function of a tensor (B, steps, series).
        training_data: Sequences (n, steps, series); by default the adapter's.
        semantics: What the numbers mean, as above.
        categorical_features: Indices or names of the categorical series; by default the adapter's. (lime itself wants
            the indices of their cells.) For a function of an integer tensor all are.
        feature_names: Names of the series; by default the adapter's.
        categorical_names: For a categorical series, by index or name, the names of its categories, for explanations.
        class_names: Names of the classes in explanations; by default the adapter's.
        discretizer: ``"quartile"``, ``"decile"``, ``"entropy"`` (needs ``training_labels``) or lime's own
            ``BaseDiscretizer`` of rows of cells; for ``"contrast"`` only.
        training_labels: Labels of the training sequences, for ``"entropy"`` only.
        sample_around_instance: Whether numeric cells are drawn around the sequence, not around their means; not for
            ``"contrast"``.
        kernel_width: Width of lime's kernel; 0.75 times the root of the number of cells by default.
        distance_metric: Distance between rows of cells, a name that scikit-learn knows.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Every call starts its random numbers here, so that equal calls give equal results.

    Example:
        >>> sequences = np.random.RandomState(0).normal(size=(200, 3, 1))
        >>> lime = LimeSequence(lambda x: 2 * x[:, 0, 0] - x[:, 2, 0], sequences, semantics="gradient")
        >>> (lime.attribute(torch.full((1, 3, 1), 0.5)).squeeze() * 10).round().int().tolist()
        [20, 0, -10]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        training_data: Any = None,
        *,
        semantics: Semantics = "contrast",
        categorical_features: Sequence[int | str] | None = None,
        feature_names: Sequence[str] | None = None,
        categorical_names: Mapping[int | str, Sequence[str]] | None = None,
        class_names: Sequence[str] | None = None,
        discretizer: Any = "quartile",
        training_labels: Any = None,
        sample_around_instance: bool = False,
        kernel_width: float | None = None,
        distance_metric: str = "euclidean",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        if not callable(forward_func):
            raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")
        adapter = forward_func if isinstance(forward_func, SequenceAdapter) else None
        names = feature_names
        if names is None:
            names = series_names(training_data) if adapter is None else adapter.feature_names
        sequences = _training(training_data, adapter, names)
        self.n_steps, n_series = sequences.shape[1:]
        self.feature_names = tuple(str(n) for n in (range(n_series) if names is None else names))
        if categorical_features is None:
            categorical_features = () if adapter is None else adapter.categorical_features
        self.categorical_features = column_indices(categorical_features, self.feature_names)
        self.categorical_names = names_of_categories(
            categorical_names,
            self.categorical_features,
            self.feature_names,
            sequences.reshape(-1, n_series),
        )
        names_of_cells = {
            cell: list(categories)
            for series, categories in self.categorical_names.items()
            for cell in cells_of_series([series], self.n_steps)
        }
        super().__init__(
            forward_func,
            cells_of(sequences),
            cell_names(self.feature_names, self.n_steps),
            semantics=semantics,
            categorical=cells_of_series(self.categorical_features, self.n_steps),
            categorical_names=names_of_cells,
            class_names=class_names if class_names is not None or adapter is None else adapter.class_names,
            discretizer=discretizer,
            training_labels=training_labels,
            sample_around_instance=sample_around_instance,
            kernel_width=kernel_width,
            distance_metric=distance_metric,
            model_regressor=model_regressor,
            seed=seed,
        )
        check_categories(self._training, self._categorical, self._columns, {})
        self._known = {cell: np.unique(self._training[:, cell]) for cell in self._categorical}

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        n_samples: int = 5000,
        perturbations_per_eval: int = 256,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        r"""Fit lime's linear model to the forward function around each sequence.

        Lime runs in its regression mode on the target scalar, which is the forward function's own output (logits, for
        an adapter).

        Args:
            inputs: Sequences (B, steps, series) of the training data's steps and series.
            baselines: Taken for Captum's order and not used: lime draws other values from the training data.
            target: Index of the output to explain, in any of Captum's forms.
            additional_forward_args: Further positional arguments of the forward function.
            feature_mask: Feature ids from 0 that broadcast to the inputs. lime's features stay the cells; a feature
                of several cells gets the sum of their numbers, what the local linear model owes to them together, and
                each of them carries it. Not for ``"gradient"``: slopes of several series do not add up.
            n_samples: Number of perturbed sequences for each sequence; 10 to 15 a cell for a steady ranking.
            perturbations_per_eval: Number of perturbed sequences in one forward pass.
            return_input_shape: Whether to return the inputs' shape; else (B, features), by default the cells, step t
                of series f at f * steps + t.
            show_progress: Whether to show a progress bar.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, in the shape of the inputs.

        Raises:
            TargetError: The output does not have the target.
            InputError: The inputs do not have the training data's steps and series, or hold a category that the
                training data never has at that step.
        """
        check_count("n_samples", n_samples, 2)
        check_count("perturbations_per_eval", perturbations_per_eval, 1)
        tensors = as_tuple(inputs)
        x = self._only(tensors)
        mask = None if feature_mask is None else self._features(feature_mask, x)
        rows = cells_of(self._checked(x))

        def to_tensors(part: Array) -> list[Tensor]:
            return [torch.from_numpy(part).to(x.device, x.dtype)]

        weights = self._row_weights(
            rows,
            tensors,
            to_tensors,
            groups=[range(rows.shape[1])],
            target=target,
            additional_forward_args=additional_forward_args,
            n_samples=n_samples,
            batch=perturbations_per_eval,
            show_progress=show_progress,
        )
        cells = torch.from_numpy(sequences_of(weights, self.n_steps))  # (B, steps, series)
        if mask is None:
            out = cells if return_input_shape else torch.from_numpy(weights)
        else:
            of_features = pool(cells, mask)
            out = spread(of_features, mask.to(torch.int64)) if return_input_shape else of_features
        out = out.to(x.device, result_dtype(tensors))
        return format_output(isinstance(inputs, tuple), (out,)) if return_input_shape else out

    def explain(
        self,
        sequence: Any,
        target: int | str | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        top_labels: int | None = None,
        num_samples: NumSamples = 5000,
        num_features: int | None = None,
        replicates: int = 1,
        max_samples: int = MAX_SAMPLES,
        output: Output = "probability",
        seed: int | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Explain a sequence as lime does, and return lime's own ``Explanation``.

        Classification explains the probability of the class or its logit, regression the prediction.

        Args:
            sequence: One sequence (steps, series), in any form that the adapter takes.
            target: The class, by its index or name; the predicted one by default. Of a regression with several
                outputs one of these; with a single one there is nothing to choose.
            labels: Several classes, in the place of a target, all from the same samples.
            top_labels: So many classes with the highest scores, in the place of a target.
            num_samples: Number of perturbed sequences, or ``"auto"``: runs are added until the strongest
                ``num_features`` or 5 and their order are told apart, or ``max_samples`` are spent.
            num_features: Greatest number of cells; lime selects them and fits again. All by default.
            replicates: Number of runs, each of ``num_samples`` with a seed of its own. lime fits the samples of all
                of them together, and ``diagnostics.replicates`` says how the runs agree.
            max_samples: Greatest number of samples with ``num_samples="auto"``.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                model with a single logit z the logits of the two classes are -z and z. A regression has its prediction
                in either case.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a bar over the sequences that the model runs on.

        Returns:
            ``lime.explanation.Explanation``, its weights untouched: per bin or per scaled unit. Its feature ids are
            those of the cells: step t of series f is f * steps + t. Its ``diagnostics`` (:class:`Diagnostics`)
            say how far it can be trusted.

        Raises:
            TargetError: The model does not have that class.
            InputError: Not one sequence of the training data's steps and series, or a category that the training data
                never has at that step.

        Warns:
            LimeWarning: The explanation says less than it seems to; ``diagnostics.warnings`` says why.
        """
        adapter = self.forward_func
        if not isinstance(adapter, SequenceAdapter):
            raise InputError(
                f"explain needs probabilities of sequences, which {type(adapter).__name__} does not give; "
                "make LimeSequence with a SequenceAdapter around the model."
            )
        sequences = self._checked(adapter.arrays(sequence))
        if len(sequences) != 1:
            raise InputError(f"explain takes one sequence, but {len(sequences)} came; call it for each.")
        return self._explanation(
            adapter,
            sequences,
            cells_of(sequences)[0],
            choice=dict(target=target, labels=labels, top_labels=top_labels),
            plan=Plan(num_samples, num_features, replicates, max_samples, self.model_regressor),
            output=output,
            seed=seed,
            show_progress=show_progress,
        )

    def _official(self, training: Array, options: dict[str, Any]) -> Any:
        from lime.lime_tabular import RecurrentTabularExplainer

        return RecurrentTabularExplainer(
            sequences_of(training, self.n_steps), feature_names=list(self.feature_names), **options
        )

    def _as_lime_takes_it(self, row: Array) -> Array:
        return np.asarray(sequences_of(row[None], self.n_steps)[0])

    def _only(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the one input tensor, checked."""
        shape = (self.n_steps, len(self.feature_names))
        if len(tensors) != 1 or tensors[0].dim() != 3 or tuple(tensors[0].shape[1:]) != shape:
            came = ", ".join(str(tuple(x.shape)) for x in tensors)
            raise InputError(
                f"the training data has {shape[0]} steps of {shape[1]} series, but the inputs have shape {came}; pass "
                f"one tensor (B, {shape[0]}, {shape[1]}), and what the model takes besides as additional_forward_args."
            )
        return tensors[0]

    def _checked(self, sequences: Any) -> Array:
        """Return sequences as (n, steps, series) float64: finite numbers, categories that lime has drawn from."""
        found = as_sequences(sequences, self.feature_names, len(self.feature_names), self.n_steps)
        check_categories(cells_of(found), self._categorical, self._columns, self._known)
        return found

    def _features(self, feature_mask: TensorOrTuple, x: Tensor) -> Tensor:
        """Return the feature of each cell, (B, steps, series), checked."""
        masks = as_tuple(feature_mask)
        try:
            mask = masks[0].cpu().expand(x.shape)
        except RuntimeError:
            mask = None
        if len(masks) != 1 or mask is None:
            shapes = ", ".join(str(tuple(m.shape)) for m in masks)
            raise InputError(f"feature_mask of shape {shapes} does not broadcast to the inputs' {tuple(x.shape)}.")
        is_joined = any(len(row.unique()) < row.numel() for row in mask)
        if is_joined and self.semantics == "gradient":
            raise InputError(
                "feature_mask joins several cells into one feature, and slopes do not add up; use "
                "semantics='times_input' or 'contrast', or leave feature_mask out."
            )
        return mask


def _training(given: Any, adapter: SequenceAdapter | None, names: Sequence[str] | None) -> Array:
    """Return the training sequences, checked."""
    if given is not None:
        sequences = training_sequences(given, names)
        return sequences if adapter is None else adapter.arrays(sequences)
    if adapter is None or adapter.training_data is None:
        raise needs_training_data()
    return adapter.training_data
