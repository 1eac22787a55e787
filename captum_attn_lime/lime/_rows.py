"""What LIME over rows and over sequences share: lime's tabular explainers run on flat rows of features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._explained import Output
from captum_attn_lime._util.captum import Target
from captum_attn_lime._util.progress import Tick, progress
from captum_attn_lime.adapters.numeric._base import NumericAdapter
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array, TargetScalar, chosen, settled, target_scalars, unit_of
from captum_attn_lime.lime._diagnostics import About
from captum_attn_lime.lime._explanations import explanation_weights, shown
from captum_attn_lime.lime._replicates import Plan

Semantics = Literal["contrast", "gradient", "times_input"]


class LimeRows(PerturbationAttribution):  # type: ignore[misc]
    """An official explainer of the ``LimeTabularExplainer`` family as a Captum attribution.

    Subclasses say what a flat row of features is: :meth:`_official` makes the explainer, :meth:`_as_lime_takes_it`
    brings a flat row to the form that its ``explain_instance`` takes.

    Args:
        forward_func: The forward function.
        training: The training data as flat rows (n, features).
        feature_names: One for each feature of a flat row.
        categorical: Which features hold categories.
        categorical_names: For each of them the names of its categories.

    The others are those of :class:`LimeTabular`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        training: Array,
        feature_names: Sequence[str],
        *,
        semantics: Semantics,
        categorical: Sequence[int],
        categorical_names: Mapping[int, Sequence[str]],
        class_names: Sequence[str] | None,
        discretizer: Any,
        training_labels: Any,
        sample_around_instance: bool,
        kernel_width: float | None,
        distance_metric: str,
        model_regressor: Any,
        seed: int,
    ) -> None:
        super().__init__(forward_func)
        _check_options(semantics, discretizer, training_labels, sample_around_instance)
        self._training = training
        self._columns = tuple(feature_names)
        self._categorical = tuple(categorical)
        self._categorical_names = dict(categorical_names)
        self.class_names = class_names
        self.semantics = semantics
        self.discretizer, self.training_labels = discretizer, training_labels
        self.sample_around_instance = sample_around_instance
        self.kernel_width, self.distance_metric = kernel_width, distance_metric
        self.model_regressor, self.seed = model_regressor, seed

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the numbers are effects (True) or slopes (False, with ``semantics="gradient"``)."""
        return self.semantics != "gradient"

    def _official(self, training: Array, options: dict[str, Any]) -> Any:
        """Return lime's explainer of flat training rows, with options that all of its kind take."""
        raise NotImplementedError

    def _as_lime_takes_it(self, row: Array) -> Array:
        """Return a flat row in the form of one example."""
        return row

    def _row_weights(
        self,
        rows: Array,
        tensors: tuple[Tensor, ...],
        to_tensors: Callable[[Array], Sequence[Tensor]],
        *,
        groups: Sequence[Sequence[int]],
        target: Target,
        additional_forward_args: Any,
        n_samples: int,
        batch: int,
        show_progress: bool,
    ) -> Array:
        """Return the number of each feature of each row, by the declared semantics, (B, features).

        Args:
            rows: The examples as flat rows, (B, features).
            tensors: The examples as the forward function takes them.
            to_tensors: From examples as lime's explainer gives them to the forward function's tensors.
            groups: For each tensor the features that it holds; those of integer tensors are categories.
            target: The target, in any of Captum's forms.
            additional_forward_args: Further arguments of the forward function.
            n_samples: Number of perturbed examples for each row.
            batch: Number of them in one forward pass.
            show_progress: Whether to show a progress bar.
        """
        integer = [c for x, group in zip(tensors, groups, strict=True) if not x.is_floating_point() for c in group]
        training = _rounded_like(self._training, tensors, groups)
        explainer = self._explainer("regression", self.seed, "none", integer, training=training)
        weights = np.zeros_like(rows)
        total = len(rows) * n_samples
        with settled(self.forward_func) as function, progress(total, show_progress, type(self).__name__) as tick:
            scalars = target_scalars(function, tensors, target, additional_forward_args)
            for i, scalar in enumerate(scalars):
                explainer.random_state.seed(self.seed)  # The explainer's parts share this generator.
                predict = _predictor(scalar, to_tensors, batch, tick)
                weights[i] = self._weights(explainer, rows[i], predict, n_samples)
        return weights

    def _explanation(
        self,
        adapter: NumericAdapter,
        examples: Array,
        row: Array,
        *,
        choice: dict[str, Any],
        plan: Plan,
        output: Output,
        seed: int | None,
        show_progress: bool,
    ) -> Any:
        """Return lime's own explanation of one example.

        Args:
            adapter: What the model is asked through.
            examples: The example as the adapter takes it, (1, ...).
            row: The same as a flat row.
            choice: What is explained: target, labels, top_labels.
            plan: How many samples are drawn, and how many features shown.
            output: Whether probabilities or logits are explained.
            seed: Seed of this call; the constructor's if None.
            show_progress: Show a bar over the examples that the model runs on.
        """
        unit = unit_of(adapter, output)
        function = partial(adapter.scores, unit=unit)
        numbers = chosen(adapter, function(examples)[0], unit, self.class_names, adapter.tensors(examples), **choice)
        index = numbers[0].column
        is_regression = unit == "prediction"
        selection = "none" if plan.num_features is None else "auto"
        seed = self.seed if seed is None else seed
        explainer = self._explainer("regression" if is_regression else "classification", seed, selection)

        def answers(rows: Any) -> Array:
            found = function(rows, show_progress=show_progress)
            return found[:, index] if is_regression else found

        def run(n: int) -> Any:
            with _sums_of_any_size():
                return explainer.explain_instance(
                    self._as_lime_takes_it(row),
                    answers,
                    labels=tuple(one.column for one in numbers),
                    num_features=len(row) if plan.num_features is None else plan.num_features,
                    num_samples=n,
                    distance_metric=self.distance_metric,
                    model_regressor=self.model_regressor,
                )

        # lime fits a regression as label 0, and keeps its weights under 1.
        about = {0: About(numbers[0], label=1)} if is_regression else {one.column: About(one) for one in numbers}
        explanation = plan.explanation(explainer, run, features=len(row), seed=seed, about=about)
        explanation.explained_row = row  # lime keeps two decimals; compare has to know the row
        explanation.semantics = self.semantics
        explanation.by_semantics = {
            label: self._by_semantics(explainer, explanation_weights(explanation, label), row)
            for label in explanation.all_diagnostics
        }
        return shown(explanation)

    def _weights(self, explainer: Any, row: Array, predict: Callable[[Array], Array], n_samples: int) -> Array:
        """Return the number of each feature of one row, by the declared semantics."""
        explanation = explainer.explain_instance(
            self._as_lime_takes_it(row),
            predict,
            num_features=len(row),
            num_samples=n_samples,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        out = np.zeros(len(row))
        for column, number in self._by_semantics(explainer, explanation_weights(explanation), row).items():
            out[column] = number
        return out

    def _by_semantics(self, explainer: Any, weights: Mapping[int, float], row: Array) -> dict[int, float]:
        """Return by feature what lime's weights are by the declared semantics."""
        # lime has set the mean to 0 and the scale to 1 for categorical columns, whose variable is 1 at the row itself.
        factor = np.ones(len(row))
        if self.semantics != "contrast":
            mean, scale = explainer.scaler.mean_, explainer.scaler.scale_
            factor = 1 / scale if self.semantics == "gradient" else (row - mean) / scale
            factor[explainer.categorical_features] = 1.0
        return {column: float(weight * factor[column]) for column, weight in weights.items()}

    def _explainer(
        self, mode: str, seed: int, selection: str, integer: Sequence[int] = (), *, training: Array | None = None
    ) -> Any:
        options: dict[str, Any] = dict(
            mode="regression" if mode == "regression" else "classification",
            training_labels=self.training_labels,
            categorical_features=sorted({*self._categorical, *integer}),
            categorical_names=self._categorical_names,
            kernel_width=self.kernel_width,
            class_names=None if self.class_names is None else list(self.class_names),
            feature_selection=selection,
            discretize_continuous=self.semantics == "contrast",
            discretizer=self.discretizer,
            random_state=seed,
        )
        explainer = self._official(self._training if training is None else training, options)
        explainer.sample_around_instance = self.sample_around_instance  # the recurrent explainer does not take it
        if isinstance(self.discretizer, str) and explainer.discretizer is not None:
            _mend_point_bins(explainer.discretizer)
        return explainer


@contextmanager
def _sums_of_any_size() -> Iterator[None]:
    """Run lime without its warning that scores do not sum to 1, which logits and several labels are not meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Prediction probab", UserWarning)
        yield


def _rounded_like(training: Array, like: tuple[Tensor, ...], groups: Sequence[Sequence[int]]) -> Array:
    """Return the training rows rounded as the inputs are.

    5.8 is not 5.8 in float32: next to unrounded training data a value that lies on a quartile would fall into the
    neighbouring bin.
    """
    out: Array = training.copy()
    for x, group in zip(like, groups, strict=True):
        if x.is_floating_point():
            columns = torch.from_numpy(training[:, list(group)])
            out[:, list(group)] = columns.to(x.dtype).to(torch.float64).numpy()
    return out


def _mend_point_bins(discretizer: Any) -> None:
    """Make lime's discretizer give back the value of a bin that holds a single value.

    lime 0.2.0.1 gives such a bin's value in standard units, that is about 0: a column that is 5 in every row would be
    0 in every perturbed row, which the model has never seen. The other bins and the random draws stay as they are.
    """
    draw = discretizer.get_undiscretize_values

    def values(feature: int, bins: Any) -> Array:
        out: Array = draw(feature, bins)
        least, most = (np.array(ends[feature])[bins] for ends in (discretizer.mins, discretizer.maxs))
        return np.where(least == most, least, out)

    discretizer.get_undiscretize_values = values


def _predictor(
    scalar: TargetScalar, to_tensors: Callable[[Array], Sequence[Tensor]], batch: int, tick: Tick
) -> Callable[[Array], Array]:
    """Return lime's predict function: from examples (n, ...) to the target scalar (n,)."""

    def predict(examples: Array) -> Array:
        values = []
        for start in range(0, len(examples), batch):
            part = np.ascontiguousarray(examples[start : start + batch])
            values.append(scalar(tuple(to_tensors(part))))
            tick(len(part))
        return np.concatenate(values)

    return predict


def needs_training_data() -> InputError:
    """Return the error where there is nothing to draw from."""
    return InputError("LIME draws its rows from training data; pass training_data=, here or to the adapter.")


def _check_options(semantics: str, discretizer: Any, training_labels: Any, sample_around_instance: bool) -> None:
    """Raise for options that lime would ignore."""
    if semantics not in get_args(Semantics):
        raise InputError(f"semantics must be 'contrast', 'gradient' or 'times_input', but is {semantics!r}.")
    entropy = isinstance(discretizer, str) and discretizer == "entropy"
    if semantics == "contrast" and sample_around_instance:
        raise InputError(
            "sample_around_instance has no effect on bins; use semantics='gradient' or 'times_input', or leave it out."
        )
    if semantics != "contrast" and discretizer != "quartile":
        raise InputError(f"discretizer has no effect with semantics={semantics!r}; leave it out or use 'contrast'.")
    if training_labels is not None and not entropy:
        raise InputError("training_labels are used by discretizer='entropy' only; leave them out.")
    if entropy and training_labels is None:
        raise InputError("discretizer='entropy' needs training_labels=.")
