"""lime's HTML page of an explanation, with bars under their classes and escaped names. Imports lime."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from lime.explanation import DomainMapper, Explanation
from lime.lime_text import TextDomainMapper

from captum_attn_lime._explained import Explained

# lime's JavaScript comes first; user content appears only after it.
_LIBRARY_END, _SCRIPT, _END = "</script></head>", "<script>", "</script>"
_STYLE = "font: 16px sans-serif; margin: 8px"
# Characters that could end the script, as JavaScript escapes, which keep the strings' values.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def html_page(
    explanation: Explanation,
    labels: Sequence[int] | None = None,
    predict_proba: bool = True,
    show_predicted_value: bool = True,
    *,
    explained: Explained | None = None,
    numbers: Sequence[Explained] = (),
    **kwargs: Any,
) -> str:
    """Return the page of ``Explanation.as_html`` with every bar under its class.

    lime draws positive weights of a two-class explanation under the second class, whichever class was explained, and
    calls any output of a model a probability.

    Args:
        explanation: An explanation of the official explainer or of this package.
        labels: The classes to show; all explained ones by default.
        predict_proba: Whether to show the model's probabilities, where probabilities are explained.
        show_predicted_value: Whether to show the prediction of a regression.
        explained: The explained number, if known.
        numbers: The numbers to name at the top of the page.
        **kwargs: Passed to lime.
    """
    drawn, names = copy.copy(explanation), None
    if explanation.mode == "classification":
        shown = explanation.available_labels() if labels is None else labels
        is_two_sided = explained is None or explained.opposite is not None
        if len(explanation.class_names) == 2 and is_two_sided:  # lime draws negative bars under the first name
            drawn.local_exp = {
                label: [(k, -w if label == 0 else w) for k, w in pairs]
                for label, pairs in explanation.local_exp.items()
            }
        elif len(explanation.class_names) == 2:
            names = _names_of_bars([str(name) for name in explanation.class_names], shown)
        is_probability = explained is None or explained.unit == "probability"
        # lime sums the last of more than six classes, which not every model makes exclusive.
        scores = explanation.predict_proba
        adds_up = len(scores) <= 6 or abs(float(np.sum(scores)) - 1) < 1e-3
        predict_proba = predict_proba and is_probability and adds_up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # lime leaves the file of its JavaScript open
        page = str(Explanation.as_html(drawn, labels, predict_proba, show_predicted_value, **kwargs))
    return _escaped(page, numbers, names)


def _names_of_bars(names: list[str], labels: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return the names of two classes, and the names to write on the two sides of the bars instead.

    With more than two names lime writes "NOT a" and "a".
    """
    one = names[labels[0]]
    return names, ([f"NOT {one}", one] if len(labels) == 1 else [*names, ""])


def _escaped(page: str, numbers: Sequence[Explained], names: tuple[list[str], list[str]] | None) -> str:
    """Return lime's HTML with user content escaped, below a line for each explained number.

    lime writes words and class names as JSON into a script, where ``</script>`` in a word would end it. lime's part of
    the script has no ``<``, ``>`` or ``&``.

    Args:
        page: lime's page.
        numbers: The explained numbers.
        names: The class names that lime writes, and the names that replace them.
    """
    if names is not None:
        old, new = (f"new lime.Explanation({json.dumps(pair, ensure_ascii=False)})" for pair in names)
        page = page.replace(old, new)
    head = page.index(_LIBRARY_END) + len(_LIBRARY_END)
    start = page.index(_SCRIPT, head) + len(_SCRIPT)
    end = page.rindex(_END)
    script = page[start:end]
    for character, escape_sequence in _ESCAPES.items():
        script = script.replace(character, escape_sequence)
    lines = "".join(f'<p style="{_STYLE}">LIME of the {escape(str(number))}</p>' for number in numbers)
    return page[:head] + page[head:start].replace("<body>", f"<body>{lines}", 1) + script + page[end:]


class NamedMapper(DomainMapper):  # type: ignore[misc]
    """A ``DomainMapper`` of lime that shows features by name."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def map_exp_ids(self, exp: Any, **kwargs: Any) -> Any:
        """Return (name, weight) pairs for (id, weight) pairs."""
        return [(self.names[k], weight) for k, weight in exp]


class TextMapper(TextDomainMapper):  # type: ignore[misc]
    """A ``TextDomainMapper`` of lime whose page highlights the right letters after an emoji.

    lime counts characters, JavaScript 16-bit code units, of which an emoji has two.
    """

    def visualize_instance_html(self, exp: Any, *args: Any, **kwargs: Any) -> Any:
        """Return lime's HTML with positions in 16-bit code units."""
        drawn = copy.copy(self)
        drawn.indexed_string = _Utf16(self.indexed_string)
        return super(TextMapper, drawn).visualize_instance_html(exp, *args, **kwargs)


class _Utf16:
    """An indexed string with positions in 16-bit code units."""

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
