"""lime's explanation that can be shown: escaped HTML, and itself in a notebook. Imports lime."""

from __future__ import annotations

import warnings
from typing import Any

from lime.explanation import Explanation

# lime's JavaScript comes first; nothing of the user's stands before the script after it.
_LIBRARY_END, _SCRIPT, _END = "</script></head>", "<script>", "</script>"
# What could end the script, written as JavaScript's own escapes: the strings stay what they are.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class ShownExplanation(Explanation):  # type: ignore[misc]
    """lime's ``Explanation`` of a text or a row whose HTML escapes all names, and which shows itself in a notebook."""

    def as_list(self, label: int | None = None, **kwargs: Any) -> Any:
        """Return what ``Explanation.as_list`` returns; by default of the one class that was explained.

        lime's own default is class 1, whichever was explained.
        """
        return super().as_list(label=self._only(label), **kwargs)

    def as_pyplot_figure(self, label: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return what ``Explanation.as_pyplot_figure`` returns; by default of the one class that was explained."""
        return super().as_pyplot_figure(self._only(label), *args, **kwargs)

    def _only(self, label: int | None) -> int:
        if label is None and len(self.local_exp) == 1:
            return int(next(iter(self.local_exp)))
        return 1 if label is None else label

    def as_html(self, *args: Any, **kwargs: Any) -> str:
        """Return what ``Explanation.as_html`` returns, with words and names escaped."""
        return escaped_html(super().as_html, *args, **kwargs)

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


def escaped_html(as_html: Any, *args: Any, **kwargs: Any) -> str:
    """Return lime's HTML with what came from the user escaped.

    lime writes words and class names as JSON into a script, where ``</script>`` within one would end it. Between its
    start and its end the script has no ``<``, ``>`` or ``&`` of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # lime leaves the file of its JavaScript open
        page = str(as_html(*args, **kwargs))
    start = page.index(_SCRIPT, page.index(_LIBRARY_END)) + len(_SCRIPT)
    end = page.rindex(_END)
    script = page[start:end]
    for character, escape in _ESCAPES.items():
        script = script.replace(character, escape)
    return page[:start] + script + page[end:]
