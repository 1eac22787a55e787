"""`LimeTabular`: the official tabular LIME over the columns of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._explained import Output
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime.adapters import TabularAdapter
from captum_attn_lime.adapters.numeric._columns import as_table, column_indices, names_of_categories, table_names
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array, check_count, result_dtype
from captum_attn_lime.lime._replicates import MAX_SAMPLES, NumSamples, Plan
from captum_attn_lime.lime._rows import LimeRows, Semantics, needs_training_data


class LimeTabular(LimeRows):
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
        categorical_names: For each categorical column, by index or name, the names of its categories from 0 on, for
            explanations.
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
        adapter = forward_func if isinstance(forward_func, TabularAdapter) else None
        names = feature_names
        if names is None:
            names = table_names(training_data) if adapter is None else adapter.feature_names
        training = _training(training_data, adapter, names)
        if categorical_features is None:
            categorical_features = adapter.categorical_features if adapter is not None else ()
        self.feature_names = tuple(str(n) for n in (range(training.shape[1]) if names is None else names))
        self.categorical_features = column_indices(categorical_features, self.feature_names)
        self.categorical_names = names_of_categories(
            categorical_names, self.categorical_features, self.feature_names, training
        )
        super().__init__(
            forward_func,
            training,
            self.feature_names,
            semantics=semantics,
            categorical=self.categorical_features,
            categorical_names=self.categorical_names,
            class_names=class_names if class_names is not None or adapter is None else adapter.class_names,
            discretizer=discretizer,
            training_labels=training_labels,
            sample_around_instance=sample_around_instance,
            kernel_width=kernel_width,
            distance_metric=distance_metric,
            model_regressor=model_regressor,
            seed=seed,
        )

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

        def to_tensors(part: Array) -> list[Tensor]:
            columns = torch.from_numpy(part)
            return [columns[:, list(g)].to(x.device, x.dtype) for g, x in zip(groups, tensors, strict=True)]

        weights = self._row_weights(
            rows,
            tensors,
            to_tensors,
            groups=groups,
            target=target,
            additional_forward_args=additional_forward_args,
            n_samples=n_samples,
            batch=perturbations_per_eval,
            show_progress=show_progress,
        )
        found = torch.from_numpy(weights).to(tensors[0].device, result_dtype(tensors))
        if not return_input_shape:
            return found
        return format_output(isinstance(inputs, tuple), tuple(found[:, list(g)].contiguous() for g in groups))

    def explain(
        self,
        row: Any,
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
        """Explain a row as lime does, and return lime's own ``Explanation``.

        Classification explains the probability of the class or its logit, regression the prediction.

        Args:
            row: One row, in any form that the adapter takes.
            target: The class, by its index or name; the predicted one by default. Of a regression with several
                outputs one of these; with a single one there is nothing to choose.
            labels: Several classes, in the place of a target, all from the same samples.
            top_labels: So many classes with the highest scores, in the place of a target.
            num_samples: Number of perturbed rows, or ``"auto"``: runs are added until the strongest
                ``num_features`` or 5 and their order are told apart, or ``max_samples`` are spent.
            num_features: Greatest number of columns; lime selects them and fits again. All by default.
            replicates: Number of runs, each of ``num_samples`` with a seed of its own. lime fits the samples of all
                of them together, and ``diagnostics.replicates`` says how the runs agree.
            max_samples: Greatest number of samples with ``num_samples="auto"``.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                model with a single logit z the logits of the two classes are -z and z. A regression has its prediction
                in either case.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a bar over the rows that the model runs on.

        Returns:
            ``lime.explanation.Explanation``, its weights untouched: per bin or per scaled unit. Its ``diagnostics``
            (:class:`Diagnostics`) say how far it can be trusted, ``all_diagnostics`` for each class, and
            ``explained`` (:class:`Explained`) is the number that is explained.

        Raises:
            TargetError: The model does not have that class.

        Warns:
            LimeWarning: The explanation says less than it seems to; ``diagnostics.warnings`` says why.
        """
        adapter = self.forward_func
        if not isinstance(adapter, TabularAdapter):
            raise InputError(
                f"explain needs probabilities of rows, which {type(adapter).__name__} does not give; "
                "make LimeTabular with a TabularAdapter around the model."
            )
        table = adapter.arrays(row)
        if len(table) != 1:
            raise InputError(f"explain takes one row, but {len(table)} came; call it for each.")
        return self._explanation(
            adapter,
            table,
            table[0],
            choice=dict(target=target, labels=labels, top_labels=top_labels),
            plan=Plan(num_samples, num_features, replicates, max_samples, self.model_regressor),
            output=output,
            seed=seed,
            show_progress=show_progress,
        )

    def _official(self, training: Array, options: dict[str, Any]) -> Any:
        from lime.lime_tabular import LimeTabularExplainer

        return LimeTabularExplainer(training, feature_names=list(self.feature_names), **options)

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


def _check_one_feature_per_column(feature_mask: TensorOrTuple | None) -> None:
    if feature_mask is None:
        return
    ids = [i for mask in as_tuple(feature_mask) for i in mask[0].flatten().tolist()]
    if len(set(ids)) != len(ids):
        raise InputError(
            "feature_mask joins several columns into one feature, which LimeTabularExplainer cannot perturb together; "
            "leave feature_mask out, or use captum's Lime."
        )


def _training(given: Any, adapter: TabularAdapter | None, names: Sequence[str] | None) -> Array:
    """Return the training rows as an array, checked."""
    if given is None:
        if adapter is None or adapter.training_data is None:
            raise needs_training_data()
        return adapter.training_data
    if adapter is not None:
        return adapter.arrays(given)
    return as_table(given, names, None if names is None else len(names))
