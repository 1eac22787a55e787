"""`LimeExplanation`: lime's explanation with the explained number and diagnostics. Imports lime."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from lime.explanation import Explanation

from captum_attn_lime._explained import Explained, class_index
from captum_attn_lime._util.files import write_whole
from captum_attn_lime.lime._base import Array
from captum_attn_lime.lime._diagnostics import Diagnostics, diagnose
from captum_attn_lime.lime._fits import Fit
from captum_attn_lime.lime._html import html_page
from captum_attn_lime.lime._stability import Replicates
from captum_attn_lime.lime._warnings import emit

_STRONGEST = 3  # features in a repr


class LimeExplanation(Explanation):  # type: ignore[misc]
    """The result of ``explain``: lime's ``Explanation`` with the explained number and diagnostics.

    lime's interface works as in lime: ``as_list``, ``as_map``, ``as_html``, ``local_exp``, ``intercept``, ``score``.
    For several classes ``score`` and ``local_pred`` are the last one's, as in lime; ``all_diagnostics`` has each one's.
    The HTML page names the explained number, draws each bar under its class and escapes names.

    Args:
        domain_mapper: lime's mapper from feature ids to names.
        fits: lime's fit of each explained class.
        feature_names: The name of each feature id.
        class_scores: The model's scores of the input, (classes,).
        class_names: The classes' names; numbers by default.
        seed: Seed of the samples.
        text: The text or pair of texts that the model saw.
        explained_text: The perturbed text of a pair, ``"first"`` or ``"second"``.
        token: The id of a language model's explained token.
        row: The explained row, or the sequence as a row of cells, (features,).
        factors: Factors from lime's weights to numbers by the semantics of :class:`LimeTabular`, (features,).

    Attributes:
        explained: The explained number; for several classes that of the first.
        diagnostics: Its :class:`Diagnostics`.
        all_diagnostics: The diagnostics of each explained class, by label.

    Warns:
        LimeWarning: The explanation is less reliable than it looks; ``diagnostics.warnings`` says why.
    """

    def __init__(
        self,
        domain_mapper: Any,
        fits: Sequence[Fit],
        *,
        feature_names: Sequence[str],
        class_scores: Array,
        class_names: Sequence[str] | None = None,
        seed: int = 0,
        text: str | tuple[str, str] | None = None,
        explained_text: Literal["first", "second"] | None = None,
        token: int | None = None,
        row: Array | None = None,
        factors: Array | None = None,
    ) -> None:
        is_regression = fits[0].explained.unit == "prediction"
        super().__init__(
            domain_mapper,
            mode="regression" if is_regression else "classification",
            class_names=[str(k) for k in range(len(class_scores))] if class_names is None else list(class_names),
        )
        if not is_regression:
            self.predict_proba = np.asarray(class_scores)
        self.feature_names = tuple(str(name) for name in feature_names)
        self.seed = seed
        self.text, self.explained_text, self.token = text, explained_text, token
        self.row, self.factors = row, factors
        self._fill(fits)

    def with_fits(self, fits: Sequence[Fit], replicates: Sequence[Replicates]) -> LimeExplanation:
        """Return a copy of the explanation with fits to other samples of the same input.

        Args:
            fits: lime's fit of each explained class.
            replicates: The agreement of the runs for each.
        """
        out = copy.copy(self)
        out._fill(fits, replicates)
        return out

    def _fill(self, fits: Sequence[Fit], replicates: Sequence[Replicates | None] | None = None) -> None:
        """Set the attributes that depend on the fits, and warn."""
        self.fits = tuple(fits)
        self.local_exp: dict[int, list[tuple[int, float]]] = {}
        self.intercept: dict[int, float] = {}
        self.all_diagnostics: dict[int, Diagnostics] = {}
        briefs: dict[str, None] = {}
        for fit, agreement in zip(fits, replicates or [None] * len(fits), strict=True):
            label = fit.data.label
            self.intercept[label], self.local_exp[label], self.score, self.local_pred = fit.result
            self.all_diagnostics[label], messages = diagnose(fit, agreement)
            briefs.update(dict.fromkeys(messages))
        if self.mode == "regression":  # as lime's tabular explainer does
            (weights,), y = self.local_exp.values(), fits[0].data.y
            self.local_exp = {0: [(k, -w) for k, w in weights], 1: weights}
            self.intercept = dict.fromkeys((0, 1), self.intercept[1])
            self.predicted_value, self.min_value, self.max_value = float(y[0]), float(y.min()), float(y.max())
        # lime draws the element ids of its page from this.
        self.random_state = np.random.RandomState(zlib.crc32(repr(self.local_exp).encode()))
        emit(tuple(briefs))

    @property
    def diagnostics(self) -> Diagnostics:
        """The diagnostics; for several classes those of the first."""
        return next(iter(self.all_diagnostics.values()))

    @property
    def explained(self) -> Explained:
        """The explained number; for several classes that of the first."""
        return self.diagnostics.explained

    def as_list(self, label: int | str | None = None, **kwargs: Any) -> Any:
        """Return the (name, weight) pairs of a class, by default of the explained one (in lime: class 1)."""
        return super().as_list(label=self._only(label), **kwargs)

    def as_pyplot_figure(self, label: int | str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return lime's bar plot of a class, by default of the explained one."""
        only = self._only(label)
        figure = super().as_pyplot_figure(only, *args, **kwargs)
        figure.axes[0].set_title(f"LIME of the {self._explained(only).label}", parse_math=False)
        return figure

    def as_html(
        self,
        labels: Sequence[int | str] | None = None,
        predict_proba: bool = True,
        show_predicted_value: bool = True,
        **kwargs: Any,
    ) -> str:
        """Return lime's HTML page, with every bar under its class.

        Args:
            labels: The classes to show, by index or name; all explained ones by default.
            predict_proba: Whether to show the model's probabilities, where probabilities are explained.
            show_predicted_value: Whether to show the prediction of a regression.
            **kwargs: Passed to lime.
        """
        chosen = None if labels is None else [self._only(label) for label in labels]
        keys = [1] if self.mode == "regression" else list(self.all_diagnostics) if chosen is None else chosen
        numbers = [self._explained(key) for key in keys]
        how: dict[str, Any] = dict(explained=self.explained, numbers=numbers, **kwargs)
        return html_page(self, chosen, predict_proba, show_predicted_value, **how)

    def save_to_file(self, file_path: Any, *args: Any, **kwargs: Any) -> None:
        """Write the page of ``as_html``; an existing file is replaced only by a complete page.

        Raises:
            FileError: The folder does not exist, or the file cannot be written.
        """
        write_whole(file_path, self.as_html(*args, **kwargs))

    def show_in_notebook(self, *args: Any, **kwargs: Any) -> None:
        """Show the explanation in a notebook, also with IPython 9, which lime does not support."""
        try:
            from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError(
                "show_in_notebook needs IPython, which notebooks have; elsewhere call save_to_file(path)."
            ) from error

        display(HTML(self.as_html(*args, **kwargs)))

    def _repr_html_(self) -> str:
        return self.as_html()

    def __repr__(self) -> str:
        shown = self.as_list(self.diagnostics.label)
        strongest = ", ".join(f"{name} {weight:.3g}" for name, weight in shown[:_STRONGEST])
        more = f", ... ({len(shown)} features)" if len(shown) > _STRONGEST else ""
        others = f" and {len(self.all_diagnostics) - 1} more" if len(self.all_diagnostics) > 1 else ""
        r2 = self.diagnostics.r2_shown
        return f"{type(self).__name__}({self.explained}{others}; R² {r2:.2f}; {strongest}{more})"

    def _only(self, label: int | str | None) -> int:
        if self.mode == "regression":
            return 1
        if label is None and len(self.local_exp) == 1:
            return int(next(iter(self.local_exp)))
        if isinstance(label, str):
            return class_index(label, len(self.class_names), self.class_names)
        return 1 if label is None else label

    def _explained(self, label: int) -> Explained:
        diagnostics = self.all_diagnostics.get(label)
        return self.explained if diagnostics is None else diagnostics.explained
