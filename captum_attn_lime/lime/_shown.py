"""lime's explanation that can be shown: escaped HTML, and itself in a notebook. Imports lime."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from lime.explanation import Explanation
from lime.lime_text import TextDomainMapper

from captum_attn_lime._explained import Explained, class_index
from captum_attn_lime._util.files import write_whole

# lime's JavaScript comes first; nothing of the user's stands before the script after it.
_LIBRARY_END, _SCRIPT, _END = "</script></head>", "<script>", "</script>"
_STYLE = "font: 16px sans-serif; margin: 8px"
# What could end the script, written as JavaScript's own escapes: the strings stay what they are.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class ShownExplanation(Explanation):  # type: ignore[misc]
    """lime's ``Explanation`` of a text or a row that says what it explains, in words and on its page.

    lime draws positive weights of a two-class explanation under the second class, whichever class was explained, and
    calls whatever the model puts out probabilities. Here bars stand under the class that they speak for, the page
    begins with the number that is explained, and names are escaped.

    Attributes:
        explained: The number that is explained; of several classes the first. None for an official explanation.
        all_diagnostics: By label the diagnostics, and with them the number, of each class that was explained.
    """

    explained: Explained | None = None
    all_diagnostics: dict[int, Any] = {}  # noqa: RUF012  # replaced, never changed

    def as_list(self, label: int | str | None = None, **kwargs: Any) -> Any:
        """Return what ``Explanation.as_list`` returns; by default of the one class that was explained.

        lime's own default is class 1, whichever was explained.
        """
        return super().as_list(label=self._only(label), **kwargs)

    def as_pyplot_figure(self, label: int | str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return what ``Explanation.as_pyplot_figure`` returns; by default of the one class that was explained."""
        only = self._only(label)
        figure = super().as_pyplot_figure(only, *args, **kwargs)
        explained = self._explained(only)
        if explained is not None:
            figure.axes[0].set_title(f"LIME of the {explained.label}", parse_math=False)
        return figure

    def _only(self, label: int | str | None) -> int:
        if self.mode == "regression":
            return 1
        if label is None and len(self.local_exp) == 1:
            return int(next(iter(self.local_exp)))
        if isinstance(label, str):
            return class_index(label, len(self.class_names), self.class_names)
        return 1 if label is None else label

    def _explained(self, label: int) -> Explained | None:
        own = self.all_diagnostics.get(label)
        return self.explained if own is None else own.explained

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
            **kwargs: Handed to lime.
        """
        chosen = None if labels is None else [self._only(label) for label in labels]
        keys = [1] if self.mode == "regression" else self.available_labels() if chosen is None else chosen
        drawn, names = copy.copy(self), None
        if self.mode == "classification":
            is_two_sided = self.explained is None or self.explained.opposite is not None
            if len(self.class_names) == 2 and is_two_sided:  # negative bars stand under the first name
                drawn.local_exp = {
                    label: [(k, -w if label == 0 else w) for k, w in pairs] for label, pairs in self.local_exp.items()
                }
            elif len(self.class_names) == 2:
                names = self._names_of_bars(keys)
            is_probability = self.explained is None or self.explained.unit == "probability"
            # Of more than six classes lime sums up the last ones, which do not exclude each other in every model.
            adds_up = len(self.predict_proba) <= 6 or abs(float(np.sum(self.predict_proba)) - 1) < 1e-3
            predict_proba = predict_proba and is_probability and adds_up
        numbers = [found for found in map(self._explained, keys) if found is not None]
        as_html = super(ShownExplanation, drawn).as_html
        return escaped_html(
            as_html, chosen, predict_proba, show_predicted_value, numbers=numbers, names=names, **kwargs
        )

    def _names_of_bars(self, labels: Sequence[int]) -> tuple[list[str], list[str]]:
        """Return the names of two classes, and those between which the bars of labels stand in their place.

        With more than two names lime itself writes "NOT a" and "a".
        """
        names = [str(name) for name in self.class_names]
        one = names[labels[0]]
        return names, ([f"NOT {one}", one] if len(labels) == 1 else [*names, ""])

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


class TextMapper(TextDomainMapper):  # type: ignore[misc]
    """lime's ``TextDomainMapper`` whose page marks the right letters behind an emoji.

    lime counts characters where JavaScript counts 16-bit units, of which an emoji has two.
    """

    def visualize_instance_html(self, exp: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what lime returns, with positions as JavaScript counts them."""
        drawn = copy.copy(self)
        drawn.indexed_string = _Utf16(self.indexed_string)
        return super(TextMapper, drawn).visualize_instance_html(exp, *args, **kwargs)


class _Utf16:
    """A text with its units, whose positions are counted in 16-bit units."""

    def __init__(self, string: Any) -> None:
        self._string = string
        sizes = [1 + (ord(character) > 0xFFFF) for character in string.raw_string()]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def raw_string(self) -> Any:
        return self._string.raw_string()

    def word(self, id_: int) -> Any:
        return self._string.word(id_)

    def string_position(self, id_: int) -> Any:
        return self._starts[np.asarray(self._string.string_position(id_), dtype=np.int64)]


def as_regression(explanation: Any) -> None:
    """Make a text's explanation of one column one of a regression, as lime's tabular explainer gives it."""
    ((label, pairs),) = explanation.local_exp.items()
    explanation.mode = "regression"
    explanation.class_names = ["negative", "positive"]
    explanation.local_exp = {0: [(k, -w) for k, w in pairs], 1: list(pairs)}
    explanation.intercept = dict.fromkeys((0, 1), explanation.intercept[label])
    explanation.dummy_label = 1
    explanation.predicted_value = explanation.explained.value
    explanation.min_value, explanation.max_value = explanation.answer_range
    del explanation.predict_proba


def escaped_html(
    as_html: Any,
    *args: Any,
    numbers: Sequence[Explained] = (),
    names: tuple[list[str], list[str]] | None = None,
    **kwargs: Any,
) -> str:
    """Return lime's HTML with what came from the user escaped, below a line for each number that is explained.

    lime writes words and class names as JSON into a script, where ``</script>`` within one would end it. Between its
    start and its end the script has no ``<``, ``>`` or ``&`` of its own.

    Args:
        as_html: lime's method.
        *args: Its arguments.
        numbers: What is explained.
        names: The names of classes as lime writes them, and those that its bars get in their place.
        **kwargs: Further arguments of lime's method.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # lime leaves the file of its JavaScript open
        page = str(as_html(*args, **kwargs))
    if names is not None:
        was, now = (f"new lime.Explanation({json.dumps(own, ensure_ascii=False)})" for own in names)
        page = page.replace(was, now)
    head = page.index(_LIBRARY_END) + len(_LIBRARY_END)
    start = page.index(_SCRIPT, head) + len(_SCRIPT)
    end = page.rindex(_END)
    script = page[start:end]
    for character, escape_sequence in _ESCAPES.items():
        script = script.replace(character, escape_sequence)
    lines = "".join(f'<p style="{_STYLE}">LIME of the {escape(str(number))}</p>' for number in numbers)
    return page[:head] + page[head:start].replace("<body>", f"<body>{lines}", 1) + script + page[end:]
