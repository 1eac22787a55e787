"""`LimeTabular`: the official tabular LIME over the columns of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime._progress import Tick, progress
from captum_attn_lime.adapters import TabularAdapter
from captum_attn_lime.adapters.columns import as_table, column_indices, table_names
from captum_attn_lime.errors import InputError, TargetError
from captum_attn_lime.lime.base import (
    Array,
    TargetScalar,
    check_count,
    class_of,
    result_dtype,
    settled,
    target_scalars,
)
from captum_attn_lime.lime.explanations import explanation_weights

Semantics = Literal["contrast", "gradient", "times_input"]


class LimeTabular(PerturbationAttribution):  # type: ignore[misc]
    r"""The ``LimeTabularExplainer`` of the official lime package as a Captum attribution.

    Perturbed rows are drawn from the training data's distribution, so there are no baselines, and the features are the
    columns. What a column's number means depends on how lime is set up, and ``semantics`` says it:

    - ``"contrast"`` (lime's default): numeric columns are cut into quartiles; the number is the effect of a value in
      the row's own bin against a value in another bin. It does not change while the value moves inside its bin.
    - ``"gradient"``: no bins; the number is the slope of the local linear model, ``w / scale``.
    - ``"times_input"``: no bins; ``w * (x - mean) / scale``, the part of the local linear model's output that the
      column's distance from its mean accounts for (compare Integrated Gradients from the mean).

    Categorical columns always give the contrast of the row's own category against others.

    In one point the explainer is mended: where all training values of a bin are equal (a constant column, many ties at
    the least value), lime 0.2.0.1 would draw about 0 in their place; here it draws that value.

    Args:
        forward_func: A ``TabularAdapter``; for :meth:`attribute` any function of row tensors (B, columns).
        training_data: Rows (n, columns), array or DataFrame; by default the adapter's.
        semantics: What the numbers mean, as above.
        categorical_features: Indices or names of the categorical columns; by default the adapter's. For a function of
            tensors the columns of integer tensors are always among them.
        feature_names: Names of the columns; by default the adapter's or the DataFrame's.
        categorical_names: For each categorical column the names of its categories, for explanations.
        class_names: Names of the classes in explanations; by default the adapter's.
        discretizer: ``"quartile"``, ``"decile"``, ``"entropy"`` (needs ``training_labels``) or lime's own
            ``BaseDiscretizer``; for ``"contrast"`` only.
        training_labels: Labels of the training rows, for ``"entropy"`` only.
        sample_around_instance: Whether numeric columns are drawn around the row, not around their means; not for
            ``"contrast"``.
        kernel_width: Width of lime's kernel; 0.75 times the root of the number of columns by default.
        distance_metric: Distance between rows, a name that scikit-learn knows.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Every call starts its random numbers here, so that equal calls give equal results.

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
        categorical_names: Mapping[int, Sequence[str]] | None = None,
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
        super().__init__(forward_func)
        _check_options(semantics, discretizer, training_labels, sample_around_instance)
        adapter = forward_func if isinstance(forward_func, TabularAdapter) else None
        names = feature_names
        if names is None:
            names = table_names(training_data) if adapter is None else adapter.feature_names
        self._training = _training(training_data, adapter, names)
        if categorical_features is None:
            categorical_features = adapter.categorical_features if adapter is not None else ()
        self.feature_names = tuple(str(n) for n in (range(self._training.shape[1]) if names is None else names))
        self.categorical_features = column_indices(categorical_features, self.feature_names)
        self.categorical_names = dict(categorical_names or {})
        self.class_names = class_names if class_names is not None or adapter is None else adapter.class_names
        self.semantics = semantics
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
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        n_samples: int = 5000,
        perturbations_per_eval: int = 256,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        r"""Fit lime's linear model to the forward function around each row.

        Lime runs in its regression mode on the target scalar, which is the forward function's own output (logits, for
        an adapter).

        Args:
            inputs: Rows (B, columns), or a tuple such as numeric and categorical columns. The columns are those of
                the training data: in the adapter's order, or one tensor after the other.
            baselines: Taken for Captum's order and not used: lime draws other rows from the training data.
            target: Index of the output to explain, in any of Captum's forms.
            additional_forward_args: Further positional arguments of the forward function.
            feature_mask: Taken for Captum's order; lime's features are the columns, so each must be its own feature.
            n_samples: Number of perturbed rows for each row.
            perturbations_per_eval: Number of perturbed rows in one forward pass.
            return_input_shape: Whether to return the inputs' shapes; else (B, columns) in the training data's order.
            show_progress: Whether to show a progress bar.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, in the shape of the inputs.

        Raises:
            TargetError: The output does not have the target.
            InputError: The inputs are not rows of the training data's columns, or a feature joins several columns.
        """
        check_count("n_samples", n_samples, 2)
        check_count("perturbations_per_eval", perturbations_per_eval, 1)
        tensors = as_tuple(inputs)
        _check_one_feature_per_column(feature_mask)
        groups = self._groups(tensors)
        rows = np.empty((len(tensors[0]), self._training.shape[1]))
        for x, group in zip(tensors, groups, strict=True):
            rows[:, list(group)] = x.detach().to(device="cpu", dtype=torch.float64).numpy()
        as_table(rows, self.feature_names)  # finite values only
        weights = np.zeros_like(rows)
        scalars = target_scalars(self.forward_func, tensors, target, additional_forward_args)
        integer = [c for x, group in zip(tensors, groups, strict=True) if not x.is_floating_point() for c in group]
        training = _rounded_like(self._training, tensors, groups)
        explainer = self._explainer("regression", self.seed, "none", integer, training=training)
        with settled(self.forward_func), progress(len(rows) * n_samples, show_progress, "LimeTabular") as tick:
            for i, scalar in enumerate(scalars):
                explainer.random_state.seed(self.seed)  # The explainer's parts share this generator.
                predict = _predictor(scalar, tensors, groups, perturbations_per_eval, tick)
                weights[i] = self._weights(explainer, rows[i], predict, n_samples)
        found = torch.from_numpy(weights).to(tensors[0].device, result_dtype(tensors))
        if not return_input_shape:
            return found
        return format_output(isinstance(inputs, tuple), tuple(found[:, list(g)].contiguous() for g in groups))

    def explain(
        self,
        row: Any,
        target: int | None = None,
        *,
        num_samples: int = 5000,
        num_features: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Explain a row as lime does, and return lime's own ``Explanation``.

        Classification explains the probability of the class, regression the prediction.

        Args:
            row: One row, in any form that the adapter takes.
            target: The class; the predicted one by default. Regression has none.
            num_samples: Number of perturbed rows.
            num_features: Greatest number of columns; lime selects them and fits again. All by default.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a bar over the rows that the model runs on.

        Returns:
            ``lime.explanation.Explanation``, its weights untouched: per bin or per scaled unit.

        Raises:
            TargetError: The model does not have that class.
        """
        check_count("num_samples", num_samples, 2)
        if num_features is not None:
            check_count("num_features", num_features, 1)
        adapter = self.forward_func
        if not isinstance(adapter, TabularAdapter):
            raise InputError(
                f"explain needs probabilities of rows, which {type(adapter).__name__} does not give; "
                "make LimeTabular with a TabularAdapter around the model."
            )
        table = adapter.table(row)
        if len(table) != 1:
            raise InputError(f"explain takes one row, but {len(table)} came; call it for each.")
        function = adapter.predict if adapter.task == "regression" else adapter.predict_proba
        label = _label(adapter, table, target)
        selection = "none" if num_features is None else "auto"
        explainer = self._explainer(adapter.task, self.seed if seed is None else seed, selection)
        explanation = explainer.explain_instance(
            table[0],
            partial(function, show_progress=show_progress),
            labels=(label,),
            num_features=table.shape[1] if num_features is None else num_features,
            num_samples=num_samples,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        explanation.explained_row = table[0]  # lime keeps two decimals; compare has to know the row
        return explanation

    def _weights(self, explainer: Any, row: Array, predict: Callable[[Array], Array], n_samples: int) -> Array:
        """Return the number of each column, by the declared semantics."""
        explanation = explainer.explain_instance(
            row,
            predict,
            num_features=len(row),
            num_samples=n_samples,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        out = np.zeros(len(row))
        for column, weight in explanation_weights(explanation).items():
            out[column] = weight
        if self.semantics == "contrast":
            return out
        # lime has set the mean to 0 and the scale to 1 for categorical columns, whose variable is 1 at the row itself.
        mean, scale = explainer.scaler.mean_, explainer.scaler.scale_
        if self.semantics == "gradient":
            return np.asarray(out / scale)
        distance = (row - mean) / scale
        distance[explainer.categorical_features] = 1.0
        return np.asarray(out * distance)

    def _explainer(
        self, mode: str, seed: int, selection: str, integer: Sequence[int] = (), *, training: Array | None = None
    ) -> Any:
        from lime.lime_tabular import LimeTabularExplainer

        explainer = LimeTabularExplainer(
            self._training if training is None else training,
            mode=mode,
            training_labels=self.training_labels,
            feature_names=list(self.feature_names),
            categorical_features=sorted({*self.categorical_features, *integer}),
            categorical_names=self.categorical_names,
            kernel_width=self.kernel_width,
            class_names=None if self.class_names is None else list(self.class_names),
            feature_selection=selection,
            discretize_continuous=self.semantics == "contrast",
            discretizer=self.discretizer,
            sample_around_instance=self.sample_around_instance,
            random_state=seed,
        )
        if isinstance(self.discretizer, str) and explainer.discretizer is not None:
            _mend_point_bins(explainer.discretizer)
        return explainer

    def _groups(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
        """Return for each tensor the columns of the training data that it holds."""
        n = self._training.shape[1]
        shapes = [tuple(x.shape) for x in tensors]
        if any(x.dim() != 2 for x in tensors) or sum(x.shape[1] for x in tensors) != n:
            raise InputError(f"the training data has {n} columns, but the inputs have shapes {shapes}.")
        if isinstance(self.forward_func, TabularAdapter):
            groups = self.forward_func.column_groups(n)
            if [len(g) for g in groups] != [x.shape[1] for x in tensors]:
                raise InputError(
                    f"the adapter takes {[len(g) for g in groups]} columns per tensor, but the inputs have shapes "
                    f"{shapes}; take them from adapter.encode(rows).inputs."
                )
            return groups
        ends = np.cumsum([x.shape[1] for x in tensors]).tolist()
        return tuple(tuple(range(e - x.shape[1], e)) for x, e in zip(tensors, ends, strict=True))


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


def _check_one_feature_per_column(feature_mask: TensorOrTuple | None) -> None:
    if feature_mask is None:
        return
    ids = [i for mask in as_tuple(feature_mask) for i in mask[0].flatten().tolist()]
    if len(set(ids)) != len(ids):
        raise InputError(
            "feature_mask joins several columns into one feature, which LimeTabularExplainer cannot perturb together; "
            "leave feature_mask out, or use captum's Lime."
        )


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
    scalar: TargetScalar, like: tuple[Tensor, ...], groups: Sequence[Sequence[int]], batch: int, tick: Tick
) -> Callable[[Array], Array]:
    """Return lime's predict function: from rows (n, columns) to the target scalar (n,)."""

    def predict(rows: Array) -> Array:
        values = []
        for start in range(0, len(rows), batch):
            part = torch.from_numpy(np.ascontiguousarray(rows[start : start + batch]))
            tensors = [part[:, list(g)].to(x.device, x.dtype) for g, x in zip(groups, like, strict=True)]
            values.append(scalar(tuple(tensors)))
            tick(len(part))
        return np.concatenate(values)

    return predict


def _label(adapter: TabularAdapter, table: Array, target: int | None) -> int:
    """Return the class to explain; 1, which lime ignores, for regression."""
    if adapter.task == "regression":
        if target not in (None, 0):
            raise TargetError(f"target {target!r}: regression has one output; leave target out.")
        return 1
    return class_of(target, adapter.predict_proba(table)[0])


def _training(given: Any, adapter: TabularAdapter | None, names: Sequence[str] | None) -> Array:
    """Return the training rows as an array, checked."""
    if given is None:
        if adapter is None or adapter.training_data is None:
            raise InputError("LIME draws its rows from training data; pass training_data=, here or to the adapter.")
        return adapter.training_data
    if adapter is not None:
        return adapter.table(given)
    return as_table(given, names, None if names is None else len(names))


def _check_options(semantics: str, discretizer: Any, training_labels: Any, sample_around_instance: bool) -> None:
    """Raise for options that lime would ignore."""
    if semantics not in ("contrast", "gradient", "times_input"):
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
