"""`LimeTabular`: the official tabular LIME over the columns of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._explained import Output
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters import TabularAdapter, TabularEncoding
from captum_attn_lime.adapters.numeric._columns import as_table, column_indices, names_of_categories, table_names
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import pool, spread
from captum_attn_lime.lime._base import (
    Array,
    check_callable,
    check_count,
    check_samples,
    explained_numbers,
    result_dtype,
    unit_of,
)
from captum_attn_lime.lime._fit_warnings import Features
from captum_attn_lime.lime._fits import Fit, FitData, FitResult, RecordingBase
from captum_attn_lime.lime._rows import (
    Semantics,
    check_options,
    features_of,
    fix_single_value_bins,
    no_sum_warning,
    predictor,
    rounded_like,
    training_rows,
)
from captum_attn_lime.perturb._model_outputs import eval_mode, target_scalars

if TYPE_CHECKING:
    from captum_attn_lime.lime._result import LimeExplanation


class LimeTabular(PerturbationAttribution):  # type: ignore[misc]
    r"""The ``LimeTabularExplainer`` of the official lime package as a Captum attribution.

    Perturbed rows are drawn from the training data's distribution, so there are no baselines, and the features are the
    columns. ``semantics`` chooses what a column's number means:

    - ``"contrast"`` (lime's default): numeric columns are cut into quartiles; the number is the effect of a value in
      the row's bin against a value in another bin. It is constant within a bin.
    - ``"gradient"``: no bins; the number is the slope of the local linear model, ``w / scale``.
    - ``"times_input"``: no bins; ``w * (x - mean) / scale``, the contribution of the column's distance from its
      mean to the local linear model (compare Integrated Gradients from the mean).

    Categorical columns always give the contrast of the row's category against others.

    One bug of lime 0.2.0.1 is fixed: where all training values of a bin are equal (a constant column, many ties at the
    minimum), it draws about 0 instead of that value.

    Args:
        forward_func: A ``TabularAdapter``; for :meth:`attribute` any function of row tensors (B, columns).
        training_data: Rows (n, columns), array or DataFrame; by default the adapter's.
        semantics: The meaning of the numbers, as above.
        categorical_features: Indices or names of the categorical columns; by default the adapter's. For a function of
            tensors, columns of integer tensors are always categorical.
        feature_names: Names of the columns; by default the adapter's or the DataFrame's.
        categorical_names: The names of the categories of categorical columns, by index or name of the column, for
            explanations.
        class_names: Names of the classes in explanations; by default the adapter's.
        discretizer: ``"quartile"``, ``"decile"``, ``"entropy"`` (needs ``training_labels``) or a ``BaseDiscretizer`` of
            lime; for ``"contrast"`` only.
        training_labels: Labels of the training rows, for ``"entropy"`` only.
        sample_around_instance: Whether numeric columns are drawn around the row, not around their means; not for
            ``"contrast"``.
        kernel_width: Width of lime's kernel; 0.75 times the root of the number of columns by default.
        distance_metric: Distance between rows, one of scikit-learn's.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Seed of each call's random numbers, so that equal calls return equal results.

    Example:
        >>> rows = np.random.RandomState(0).normal(size=(200, 2))
        >>> lime = LimeTabular(lambda x: x @ torch.tensor([2.0, -1.0]), rows, semantics="gradient")
        >>> lime.attribute(torch.tensor([[0.5, 0.5]])).round(decimals=1)
        tensor([[ 2., -1.]])
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
        check_callable(forward_func)
        super().__init__(forward_func)
        check_options(semantics, discretizer, training_labels, sample_around_instance)
        adapter = forward_func if isinstance(forward_func, TabularAdapter) else None
        names = feature_names
        if names is None:
            names = table_names(training_data) if adapter is None else adapter.feature_names
        self._training = training_rows(training_data, adapter, names)
        if categorical_features is None:
            categorical_features = adapter.categorical_features if adapter is not None else ()
        self.feature_names = tuple(str(n) for n in (range(self._training.shape[1]) if names is None else names))
        self.categorical_features = column_indices(categorical_features, self.feature_names)
        self.categorical_names = names_of_categories(
            categorical_names, self.categorical_features, self.feature_names, self._training
        )
        self.class_names = class_names if class_names is not None or adapter is None else adapter.class_names
        self.semantics: Semantics = semantics
        self.discretizer, self.training_labels = discretizer, training_labels
        self.sample_around_instance = sample_around_instance
        self.kernel_width, self.distance_metric = kernel_width, distance_metric
        self.model_regressor, self.seed = model_regressor, seed

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the numbers are effects (True) or slopes (False, with ``semantics="gradient"``)."""
        return self.semantics != "gradient"

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        n_samples: int = 5000,
        perturbations_per_eval: int = 256,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        r"""Fit lime's linear model to the forward function around each row.

        lime runs in its regression mode on the forward function's output at the target (logits, for an adapter). There
        are no baselines: lime draws other values from the training data.

        Args:
            inputs: Rows (B, columns), or a tuple such as numeric and categorical columns. The columns are those of
                the training data: in the adapter's order, or one tensor after the other.
            target: Index of the output to explain, in any of Captum's forms.
            additional_forward_args: Further positional arguments of the forward function.
            feature_mask: Feature ids from 0 that broadcast to the inputs. lime's features remain the columns; each
                column of a feature gets the sum of the feature's numbers, its contribution to the local linear
                model. Not for ``"gradient"``: slopes do not add up.
            n_samples: Number of samples per row.
            perturbations_per_eval: Number of samples in one forward pass.
            return_input_shape: Whether attributions have the inputs' shapes; else (B, features), by default the
                columns in the training data's order.
            show_progress: Whether to show a progress bar.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, in the shape of the inputs.

        Raises:
            TargetError: The output does not have the target.
            InputError: The inputs do not have the training data's columns, or ``feature_mask`` joins slopes.
        """
        check_count("n_samples", n_samples, 2)
        check_count("perturbations_per_eval", perturbations_per_eval, 1)
        tensors = as_tuple(inputs)
        groups = self._groups(tensors)
        masks = None if feature_mask is None else features_of(as_tuple(feature_mask), tensors, self.semantics)
        rows = self._rows(tensors, groups)
        integer = [c for x, group in zip(tensors, groups, strict=True) if not x.is_floating_point() for c in group]
        training = rounded_like(self._training, tensors, groups)
        explainer = self._explainer(training, "regression", self.seed, integer)
        to_tensors = partial(self._tensors, like=tensors, groups=groups)
        weights = torch.zeros(rows.shape, dtype=torch.float64)
        total = len(rows) * n_samples
        with eval_mode(self.forward_func) as function, progress(total, show_progress, type(self).__name__) as tick:
            scalars = target_scalars(function, tensors, target, additional_forward_args)
            for i, scalar in enumerate(scalars):
                explainer.random_state.seed(self.seed)  # the explainer's parts share this generator
                predict = predictor(scalar, to_tensors, perturbations_per_eval, tick)
                explanation = self._run(explainer, rows[i], predict, n_samples)
                factors = self._factors(explainer, rows[i])
                for column, weight in explanation.local_exp[1]:
                    weights[i, column] = weight * factors[column]
        by_cell = tuple(self._cells(weights, group) for group in groups)
        by_feature = weights if masks is None else pool(by_cell, masks)
        if not return_input_shape:
            return by_feature.to(tensors[0].device, result_dtype(tensors))
        shaped = by_cell if masks is None else spread(by_feature, tuple(m.to(torch.int64) for m in masks))
        out = tuple(part.contiguous().to(tensors[0].device, result_dtype(tensors)) for part in shaped)
        return format_output(isinstance(inputs, tuple), out)

    def explain(
        self,
        row: Any,
        target: int | str | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        top_labels: int | None = None,
        num_samples: int = 5000,
        num_features: int | None = None,
        output: Output = "probability",
        seed: int | None = None,
        show_progress: bool = False,
    ) -> LimeExplanation:
        """Explain a row as lime does.

        It explains the probability or the logit of the class, or the prediction of a regression.

        Args:
            row: One row in any form that the adapter accepts, or an encoding of one.
            target: The class, by index or name, by default the predicted one; or the output of a regression with
                several.
            labels: Several classes instead of a target, from the same samples.
            top_labels: Number of classes with the highest scores, instead of a target.
            num_samples: Number of perturbed rows.
            num_features: Largest number of columns, which lime selects and fits again; all by default.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                single logit z the logits of the two classes are -z and z. Regressions always explain the prediction.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a progress bar over the rows that the model runs on.

        Returns:
            :class:`LimeExplanation` with lime's weights, per bin or per scaled unit; :func:`explanation_numbers`
            converts them by ``semantics``.

        Raises:
            TargetError: The model has no such class.

        Warns:
            LimeWarning: The explanation is less reliable than it looks; ``diagnostics.warnings`` says why.
        """
        from captum_attn_lime.lime._result import LimeExplanation

        check_samples(num_samples, num_features)
        adapter: Any = self.forward_func
        rows = self._encoded(row)
        unit = unit_of(adapter, output)
        function = partial(adapter.scores, unit=unit)
        examples = self._examples(rows)
        original = function(examples)[0]
        choice: dict[str, Any] = dict(target=target, labels=labels, top_labels=top_labels)
        chosen = explained_numbers(adapter, original, unit, self.class_names, adapter.tensors(examples), **choice)
        numbers = {one.column: one for one in chosen}
        index, is_regression = next(iter(numbers)), unit == "prediction"
        seed = self.seed if seed is None else seed
        mode = "regression" if is_regression else "classification"
        explainer = self._explainer(self._training, mode, seed, selects=num_features is not None)

        def predict(copies: Array) -> Array:
            scores: Array = function(self._examples(copies), show_progress=show_progress)
            return scores[:, index] if is_regression else scores

        fits: list[Fit] = []

        def record(data: FitData, result: FitResult) -> None:
            fits.append(Fit(data, result, numbers[index if is_regression else data.label]))

        explainer.base = RecordingBase(explainer.base, Features.of(explainer), 1 if is_regression else None, record)
        official = self._run(explainer, rows[0], predict, num_samples, tuple(numbers), num_features)
        return LimeExplanation(
            official.domain_mapper,
            fits,
            feature_names=self.feature_names,
            class_scores=original,
            class_names=official.class_names,
            seed=seed,
            row=rows[0],
            factors=self._factors(explainer, rows[0]),
        )

    def _run(
        self,
        explainer: Any,
        row: Array,
        predict: Callable[[Array], Array],
        n_samples: int,
        labels: Sequence[int] = (1,),
        num_features: int | None = None,
    ) -> Any:
        """Return the official explanation of one row."""
        with no_sum_warning():
            return explainer.explain_instance(
                row,
                predict,
                labels=tuple(labels),
                num_features=len(row) if num_features is None else num_features,
                num_samples=n_samples,
                distance_metric=self.distance_metric,
                model_regressor=self.model_regressor,
            )

    def _explainer(
        self, training: Array, mode: str, seed: int, integer: Sequence[int] = (), *, selects: bool = False
    ) -> Any:
        """Return the official explainer.

        Args:
            training: The training rows.
            mode: ``"regression"`` or ``"classification"``.
            seed: Seed of its random numbers.
            integer: Categorical columns besides the declared ones.
            selects: Whether it selects features.
        """
        from lime.lime_tabular import LimeTabularExplainer

        explainer = LimeTabularExplainer(
            training,
            mode=mode,
            feature_names=list(self.feature_names),
            training_labels=self.training_labels,
            categorical_features=sorted({*self.categorical_features, *integer}),
            categorical_names=self.categorical_names,
            kernel_width=self.kernel_width,
            class_names=None if self.class_names is None else list(self.class_names),
            feature_selection="auto" if selects else "none",
            discretize_continuous=self.semantics == "contrast",
            discretizer=self.discretizer,
            sample_around_instance=self.sample_around_instance,
            random_state=seed,
        )
        if isinstance(self.discretizer, str) and explainer.discretizer is not None:
            fix_single_value_bins(explainer.discretizer)
        return explainer

    def _factors(self, explainer: Any, row: Array) -> Array:
        """Return the factors from lime's weights of a row to numbers by ``semantics``, (columns,)."""
        factors = np.ones(len(row))
        # lime sets mean 0 and scale 1 for categorical columns, whose indicator is 1 at the row.
        if self.semantics != "contrast":
            mean, scale = explainer.scaler.mean_, explainer.scaler.scale_
            factors = 1 / scale if self.semantics == "gradient" else (row - mean) / scale
            factors[explainer.categorical_features] = 1.0
        return factors

    def _encoded(self, row: Any) -> Array:
        """Return one row as an array (1, columns)."""
        if not isinstance(self.forward_func, TabularAdapter):
            raise InputError(
                f"explain needs a TabularAdapter, but forward_func is {type(self.forward_func).__name__}; make "
                "LimeTabular with a TabularAdapter around the model."
            )
        table = self.forward_func.arrays(row.rows if isinstance(row, TabularEncoding) else row)
        if len(table) != 1:
            raise InputError(f"explain needs one row, but got {len(table)}; call it for each.")
        return table

    def _examples(self, rows: Array) -> Array:
        """Return rows (n, columns) in the form of the adapter's examples."""
        return rows

    def _rows(self, tensors: tuple[Tensor, ...], groups: Sequence[Sequence[int]]) -> Array:
        """Return input tensors as checked rows of the training data's columns, (B, columns)."""
        rows = np.empty((len(tensors[0]), self._training.shape[1]))
        for x, group in zip(tensors, groups, strict=True):
            rows[:, list(group)] = x.detach().to(device="cpu", dtype=torch.float64).numpy()
        return as_table(rows, self.feature_names)  # finite values only

    def _tensors(self, rows: Array, like: tuple[Tensor, ...], groups: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """Return rows (n, columns) as tensors of the inputs' devices and dtypes."""
        cells = torch.from_numpy(np.ascontiguousarray(rows))
        return tuple(self._cells(cells, g).to(x.device, x.dtype) for g, x in zip(groups, like, strict=True))

    def _cells(self, rows: Tensor, group: Sequence[int]) -> Tensor:
        """Return the part of rows (n, columns) that one input tensor holds."""
        return rows[:, list(group)]

    def _groups(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the columns of the training data that each tensor holds."""
        n = self._training.shape[1]
        shapes = [tuple(x.shape) for x in tensors]
        if any(x.dim() != 2 for x in tensors) or sum(x.shape[1] for x in tensors) != n:
            raise InputError(f"the training data has {n} columns, but the inputs have shapes {shapes}.")
        if isinstance(self.forward_func, TabularAdapter):
            groups = self.forward_func.column_groups(n)
            if [len(g) for g in groups] != [x.shape[1] for x in tensors]:
                raise InputError(
                    f"the adapter needs {[len(g) for g in groups]} columns per tensor, but the inputs have shapes "
                    f"{shapes}; pass adapter.encode(rows).inputs."
                )
            return groups
        ends = np.cumsum([x.shape[1] for x in tensors]).tolist()
        return tuple(tuple(range(e - x.shape[1], e)) for x, e in zip(tensors, ends, strict=True))
