"""`LimeExplanation`: lime's explanation with what it explains and how far it can be trusted. Imports lime."""

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
    """What ``explain`` returns: lime's own ``Explanation``, typed, with the explained number and its diagnostics.

    Everything of lime's works as in lime: ``as_list``, ``as_map``, ``as_html``, ``local_exp``, ``intercept``,
    ``score``. Where several classes were explained, ``score`` and ``local_pred`` are the last one's, as in lime;
    ``all_diagnostics`` has each one's. On its page bars stand under the class that they speak for, the page begins with
    the number that is explained, and names are escaped.

    Args:
        domain_mapper: lime's mapper from feature ids to what is shown.
        fits: What lime fitted, for each explained class.
        feature_names: A name for each feature id.
        answers: The model's answers for the input itself, (classes,).
        class_names: One for each answer; numbered by default.
        seed: Where the random numbers of the samples began.
        text: The text or pair of texts that the model saw.
        explained_text: ``"first"`` or ``"second"``: which text of a pair was perturbed.
        token: Of a language model the id of the explained token.
        row: The explained row, or the sequence as a row of cells, (features,).
        factors: What turns lime's weights into numbers by the semantics of :class:`LimeTabular`, (features,).

    Attributes:
        explained: The number that is explained; of several classes the first.
        diagnostics: Its :class:`Diagnostics`.
        all_diagnostics: By label the diagnostics, and with them the number, of each class that was explained.

    Warns:
        LimeWarning: The explanation says less than it seems to; ``diagnostics.warnings`` says why.
    """

    def __init__(
        self,
        domain_mapper: Any,
        fits: Sequence[Fit],
        *,
        feature_names: Sequence[str],
        answers: Array,
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
            class_names=[str(k) for k in range(len(answers))] if class_names is None else list(class_names),
        )
        if not is_regression:
            self.predict_proba = np.asarray(answers)
        self.feature_names = tuple(str(name) for name in feature_names)
        self.seed = seed
        self.text, self.explained_text, self.token = text, explained_text, token
        self.row, self.factors = row, factors
        self._fill(fits)

    def with_fits(self, fits: Sequence[Fit], replicates: Sequence[Replicates]) -> LimeExplanation:
        """Return the same explanation from other samples of the same input.

        Args:
            fits: What lime fitted to them, for each explained class.
            replicates: For each how its runs agree.
        """
        out = copy.copy(self)
        out._fill(fits, replicates)
        return out

    def _fill(self, fits: Sequence[Fit], replicates: Sequence[Replicates | None] | None = None) -> None:
        """Set what follows from the fits, and warn."""
        self.fits = tuple(fits)
        self.local_exp: dict[int, list[tuple[int, float]]] = {}
        self.intercept: dict[int, float] = {}
        self.all_diagnostics: dict[int, Diagnostics] = {}
        briefs: dict[str, None] = {}
        for fit, agreement in zip(fits, replicates or [None] * len(fits), strict=True):
            label = fit.data.label
            self.intercept[label], self.local_exp[label], self.score, self.local_pred = fit.result
            self.all_diagnostics[label], own = diagnose(fit, agreement)
            briefs.update(dict.fromkeys(own))
        if self.mode == "regression":  # as lime's tabular explainer leaves it
            (weights,), y = self.local_exp.values(), fits[0].data.y
            self.local_exp = {0: [(k, -w) for k, w in weights], 1: weights}
            self.intercept = dict.fromkeys((0, 1), self.intercept[1])
            self.predicted_value, self.min_value, self.max_value = float(y[0]), float(y.min()), float(y.max())
        # lime draws the ids of its page's parts here.
        self.random_state = np.random.RandomState(zlib.crc32(repr(self.local_exp).encode()))
        emit(tuple(briefs))

    @property
    def diagnostics(self) -> Diagnostics:
        """How far the explanation can be trusted; of several classes the first."""
        return next(iter(self.all_diagnostics.values()))

    @property
    def explained(self) -> Explained:
        """The number that is explained; of several classes the first."""
        return self.diagnostics.explained

    def as_list(self, label: int | str | None = None, **kwargs: Any) -> Any:
        """Return what ``Explanation.as_list`` returns; by default of the one class that was explained.

        lime's own default is class 1, whichever was explained.
        """
        return super().as_list(label=self._only(label), **kwargs)

    def as_pyplot_figure(self, label: int | str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return what ``Explanation.as_pyplot_figure`` returns; by default of the one class that was explained."""
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
        """Return what ``Explanation.as_html`` returns, with every bar under the class that it speaks for.

        Args:
            labels: The classes to show, by index or name; all that were explained by default.
            predict_proba: Whether to show the model's probabilities, where it is probabilities that are explained.
            show_predicted_value: Whether to show the prediction of a regression.
            **kwargs: Passed to lime.
        """
        chosen = None if labels is None else [self._only(label) for label in labels]
        keys = [1] if self.mode == "regression" else list(self.all_diagnostics) if chosen is None else chosen
        numbers = [self._explained(key) for key in keys]
        how: dict[str, Any] = dict(explained=self.explained, numbers=numbers, **kwargs)
        return html_page(self, chosen, predict_proba, show_predicted_value, **how)

    def save_to_file(self, file_path: Any, *args: Any, **kwargs: Any) -> None:
        """Write the page of ``as_html``; a page that was there stays until the new one is whole.

        Raises:
            FileError: The folder does not exist, or the file cannot be written.
        """
        write_whole(file_path, self.as_html(*args, **kwargs))

    def show_in_notebook(self, *args: Any, **kwargs: Any) -> None:
        """Show the explanation in a notebook, also with IPython 9, which lime's own way does not know."""
        try:
            from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError(
                "show_in_notebook needs IPython, which every notebook has; elsewhere write the page with "
                "save_to_file(path)."
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
        found = self.all_diagnostics.get(label)
        return self.explained if found is None else found.explained
