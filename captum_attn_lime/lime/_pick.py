"""`submodular_pick`: picks a few of many examples whose LIME explanations cover the most important features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime._explained import Output
from captum_attn_lime._util.progress import Tick, progress
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import check_count
from captum_attn_lime.lime._explanations import explanation_weights
from captum_attn_lime.lime._tabular import LimeTabular
from captum_attn_lime.lime._text import LimeText
from captum_attn_lime.lime._text_input import OneText
from captum_attn_lime.lime._warnings import collected_warnings
from captum_attn_lime.metrics._global_view import global_view

if TYPE_CHECKING:
    from pandas import DataFrame, Series


@dataclass(frozen=True, eq=False)
class SubmodularPicks:
    """The picked examples, and the explanations that they were picked from.

    Attributes:
        picked: Indices of the picked examples, in the order of picking.
        explanations: The :class:`LimeExplanation` of each explained example, by its index.
        weights: The matrix W: a row for each explained example (by its index) and a column for each feature as lime
            shows it (a word, or a condition such as ``age <= 25.00``); 0 where an explanation does not have it.
        importance: The root of the sum of magnitudes over the explained examples, by feature.
        global_view: The mean magnitude of each word or column over the explained examples, its standard deviation and
            the number of explanations that have it, as :func:`captum_attn_lime.global_view` returns for other methods.
    """

    picked: tuple[int, ...]
    explanations: dict[int, Any]
    weights: DataFrame
    importance: Series[float]
    global_view: DataFrame

    @property
    def picked_explanations(self) -> tuple[Any, ...]:
        """The explanations of the picked examples, in the order of picking."""
        return tuple(self.explanations[k] for k in self.picked)

    @cached_property
    def coverage(self) -> Series[float]:
        """The share of all importance that each picked example and the earlier ones cover."""
        import pandas as pd

        has = self.weights.loc[list(self.picked)].abs().cumsum() > 0
        total = float(self.importance.sum()) or 1.0
        shares: Series[float] = pd.Series(
            has.to_numpy() @ self.importance.to_numpy() / total, has.index, name="coverage"
        )
        return shares

    def __repr__(self) -> str:
        return (
            f"{len(self.picked)} of {len(self.explanations)} explained examples, with "
            f"{float(self.coverage.iloc[-1]):.0%} of the importance of {self.weights.shape[1]} features: "
            f"{', '.join(map(str, self.picked))}"
        )


def submodular_pick(
    lime: LimeText | LimeTabular,
    examples: Any,
    *,
    picks: int = 5,
    sample: int | None = None,
    target: int | str | None = None,
    explained_text: OneText | None = None,
    num_samples: int = 5000,
    num_features: int | None = 10,
    output: Output = "probability",
    seed: int | None = None,
    show_progress: bool = False,
) -> SubmodularPicks:
    """Return a few examples whose explanations together cover the features that matter most.

    lime's official ``SubmodularPick`` picks among explanations made by ``lime.explain``. It is greedy: each pick adds
    the most importance of features that no earlier pick has, in ties the last example; a feature's importance is the
    root of the sum of its magnitudes over all explanations. The examples are drawn here, reproducibly and without
    NumPy's global random state.

    Args:
        lime: A :class:`LimeText`, :class:`LimeTabular` or :class:`LimeSequence`. (Pictures share no segments, so
            :class:`LimeImage` does not apply.)
        examples: The examples as for ``lime.explain``: a sequence of texts or pairs, an array or DataFrame of rows, an
            array of sequences.
        picks: Number of examples to pick.
        sample: Number of examples to explain, drawn without replacement; all by default.
        target: The class; by default each example's predicted one, which mixes the weights of different classes.
        explained_text: As for :meth:`LimeText.explain`, for pairs of texts.
        num_samples: Number of perturbed copies of each example.
        num_features: Largest number of features in an explanation, selected by lime. With None explanations have all
            features, and long texts are picked for their length.
        output: ``"probability"`` or ``"logits"``.
        seed: Seed of the draw and of each explanation; the explainer's by default.
        show_progress: Show a progress bar over the examples.

    Raises:
        InputError: Another explainer, fewer examples than picks, or an example that cannot be explained.

    Warns:
        LimeWarning: Explanations are less reliable than they look; once per kind, with the number of explanations.

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?", KDD 2016, Algorithm 2; ``lime.submodular_pick``.

    Example::

        picks = submodular_pick(LimeText(adapter), texts, picks=3)
        for explanation in picks.picked_explanations:
            print(explanation.as_list(label=explanation.available_labels()[0]))
        plot.global_view({"LIME": picks.global_view, "rollout": global_view(scores, x.feature_names)})
    """
    if not isinstance(lime, (LimeText, LimeTabular)):
        raise InputError(
            f"submodular_pick needs LimeText, LimeTabular or LimeSequence, whose features examples share; got "
            f"{type(lime).__name__}."
        )
    examples = _as_list(examples)
    check_count("picks", picks, 1)
    if sample is not None:
        check_count("sample", sample, 1)
    seed = lime.seed if seed is None else seed
    drawn = range(len(examples))
    if sample is not None and sample < len(examples):
        drawn = np.random.RandomState(seed).permutation(len(examples))[:sample].tolist()
    if picks > len(drawn):
        raise InputError(
            f"picks={picks} exceeds the {len(drawn)} explained example(s); pass fewer picks or more examples."
        )
    options: dict[str, Any] = dict(target=target, num_samples=num_samples, num_features=num_features, output=output)
    if explained_text is not None:
        options["explained_text"] = explained_text
    with progress(len(drawn), show_progress, "submodular_pick") as tick, collected_warnings():
        explainer = _Explainer(lime, examples, options | {"seed": seed}, tick)
        official = _official(explainer, list(drawn), picks)
    explanations = dict(zip(drawn, official.explanations, strict=True))
    weights = _weights(explanations)
    return SubmodularPicks(
        tuple(drawn[k] for k in official.V),
        explanations,
        weights,
        (weights.abs().sum() ** 0.5).rename("importance"),
        _view(lime, official.explanations),
    )


@dataclass(frozen=True)
class _Explainer:
    """An explainer for the official class, which explains an example by its index."""

    lime: Any
    examples: Sequence[Any]
    options: dict[str, Any]
    tick: Tick

    def explain_instance(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Return the explanation of one example; the official class's further arguments are ignored."""
        try:
            explanation = self.lime.explain(self.examples[index], **self.options)
        except InputError as error:
            raise type(error)(f"example {index} cannot be explained: {error}") from error
        self.tick(1)
        return explanation


def _official(explainer: _Explainer, indices: list[int], picks: int) -> Any:
    from lime.submodular_pick import SubmodularPick

    # "full" explains all examples in order, without NumPy's global random state.
    return SubmodularPick(explainer, indices, None, method="full", num_exps_desired=picks)


def _weights(explanations: dict[int, Any]) -> DataFrame:
    """Return the matrix W of the official class."""
    import pandas as pd

    rows = []
    for explanation in explanations.values():
        row: dict[str, float] = {}
        for name, weight in explanation.as_list(label=_label(explanation)):
            row[str(name)] = row.get(str(name), 0.0) + float(weight)
        rows.append(row)
    index = pd.Index(list(explanations), name="example")
    weights: DataFrame = pd.DataFrame(rows, index=index, dtype=float).fillna(0.0)
    return weights


def _view(lime: Any, explanations: Sequence[Any]) -> DataFrame:
    """Return the global view over words, or over columns regardless of their values."""
    names, scores = [], []
    for explanation in explanations:
        weights = explanation_weights(explanation)
        if isinstance(lime, LimeTabular):
            names.append([lime.feature_names[k] for k in weights])
        else:
            names.append([str(name) for name, _ in explanation.as_list(label=_label(explanation))])
        scores.append(list(weights.values()))
    return global_view(scores, names)


def _label(explanation: Any) -> Any:
    """Return the explained label."""
    return 1 if explanation.mode == "regression" else next(iter(explanation.local_exp))


def _as_list(examples: Any) -> list[Any]:
    """Return the examples as a list."""
    if isinstance(examples, str) or not hasattr(examples, "__len__"):
        raise InputError(f"examples must be a sequence of texts, rows or sequences, but is {type(examples).__name__}.")
    if hasattr(examples, "iloc"):
        one = examples.iloc
        return [one[[k]] if examples.ndim == 2 else one[k] for k in range(len(examples))]
    return [examples[k] for k in range(len(examples))]
