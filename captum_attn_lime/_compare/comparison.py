"""`Comparison`, the result of `compare`: tables, a figure and an HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_attn_lime import plot as plots
from captum_attn_lime._explained import Explained
from captum_attn_lime._util.files import write_whole
from captum_attn_lime.adapters import Encoding, ImageEncoding, TextEncoding
from captum_attn_lime.plot._common import outside_note
from captum_attn_lime.plot._image import images_height
from captum_attn_lime.plot._text import texts_height

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several attributions of one input, on the same features.

    Agreement says nothing about which method is right: two can agree and both be wrong about the model.

    Attributes:
        scores: One row per feature (word or column; a repeated word has one row per occurrence), one column per method;
            NaN where a method has no value for a feature.
        agreement: One row per pair of methods: Kendall's tau-b, Spearman's correlation and the overlap of the top k.
        attributions: The unchanged result of each method.
        encoding: The input.
        explained: The number that all methods explain; None if only tensors or plain functions were given.
        outside: Share of each method's magnitudes that lies outside the features: one row per special token ([CLS],
            [SEP], padding) and kind of token, one for tokens that are not part of the input (class tokens of images and
            tables, prefixes), one column per method. NaN if a method has none, like LIME. For products of layers, it
            includes what the residual connection keeps on the query token.
        scores_with_special_tokens: The scores with additional rows for these tokens, in the order of the text.
    """

    scores: DataFrame
    agreement: DataFrame
    attributions: dict[str, Any]
    encoding: Encoding
    explained: Explained | None
    outside: DataFrame
    scores_with_special_tokens: DataFrame

    @cached_property
    def is_text(self) -> bool:
        """Whether the features are the words of a text, in order."""
        return isinstance(self.encoding, TextEncoding) or hasattr(self.encoding, "words")

    def plot(
        self,
        *,
        title: str | None = None,
        width: float = 9.0,
        max_features: int = 15,
        special_tokens: bool = False,
    ) -> Figure:
        """Return a figure: each method's coloured text, image or bars, and the agreement matrix below.

        Args:
            title: Title of the figure; defaults to the explained number.
            width: Width in inches.
            max_features: Number of table columns to show.
            special_tokens: Whether to show tokens that are not features, on the same scale. An image has no place for
                them; it states their share only.
        """
        from matplotlib.figure import Figure as NewFigure

        if title is None and self.explained is not None:
            title = f"Explained: {self.explained}"
        is_image = isinstance(self.encoding, ImageEncoding)
        scores = self.scores_with_special_tokens if special_tokens and not is_image else self.scores
        names = [str(name) for name in scores.index]
        if self.is_text:
            top = texts_height(names, self.scores.shape[1], width=width, title=title)
        elif isinstance(self.encoding, ImageEncoding):
            top = images_height(self.encoding.segments.shape[1:], self.scores.shape[1], width=width, title=title)
        else:
            foot = 0.6 + 0.17 * sum(bool(outside_note(self.outside[name])) for name in self.scores)
            top = 1.0 + foot + min(len(names), max_features) * (0.16 * self.scores.shape[1] + 0.14)
        bottom = 1.7 + 0.42 * self.scores.shape[1] if len(self.agreement) else 0.0
        figure = NewFigure(figsize=(width, top + bottom))
        upper: Any = figure
        lower: Any = None
        if len(self.agreement):
            parts: Any = figure.subfigures(2, 1, height_ratios=[top, bottom])
            upper, lower = parts
        if self.is_text:
            plots.texts(names, scores, figure=upper, title=title, outside=self.outside)
        elif isinstance(self.encoding, ImageEncoding):
            segments, picture = self.encoding.segments[0], self.encoding.images[0]
            plots.images(self.scores, segments, picture, figure=upper, title=title, outside=self.outside)
        else:
            axes = upper.add_axes((0.3, foot / top, 0.66, 1 - (0.8 + foot) / top))
            plots.bars(scores, ax=axes, title=title, max_features=max_features, outside=self.outside)
        if lower is not None:
            for place, measure in enumerate(("kendall_tau", "top_k_jaccard")):
                axes = lower.add_axes((0.2 + 0.46 * place, 1.1 / bottom, 0.3, 1 - 1.5 / bottom))
                plots.agreement(self.agreement, measure=measure, ax=axes)
                if place:
                    axes.set_yticklabels([])
        return figure

    def to_html(
        self,
        *,
        title: str = "Comparison of attributions",
        prediction: str | None = None,
        special_tokens: bool = False,
    ) -> str:
        """Return the comparison as a self-contained, escaped HTML page."""
        return plots.html_page(
            self.scores_with_special_tokens if special_tokens else self.scores,
            self.agreement,
            title=title,
            prediction=prediction,
            explained=None if self.explained is None else str(self.explained),
            as_text=self.is_text,
            notes=_notes(
                self.agreement, self.explained, outside=bool((self.outside > 0).any(axis=None)), shown=special_tokens
            ),
            outside=self.outside,
        )

    def save_html(
        self,
        path: str | Path,
        *,
        title: str = "Comparison of attributions",
        prediction: str | None = None,
        special_tokens: bool = False,
    ) -> Path:
        """Write the HTML page atomically and return its path.

        Args:
            path: Where to write.
            title: Heading of the page.
            prediction: The model's prediction, shown below the heading with the explained number.
            special_tokens: Whether to show tokens that are not features, on the same scale.

        Raises:
            FileError: The folder does not exist, or the file cannot be written.
        """
        page = self.to_html(title=title, prediction=prediction, special_tokens=special_tokens)
        return write_whole(path, page)

    def __repr__(self) -> str:
        of = "" if self.explained is None else f"; {self.explained}"
        head = f"Comparison of {', '.join(map(str, self.scores.columns))} over {len(self.scores)} features{of}"
        notes = [(name, outside_note(self.outside[name])) for name in self.outside]
        return "\n".join([head, *(f"{name}: {note}" for name, note in notes if note)])

    def _repr_html_(self) -> str:
        # An iframe keeps the page's style from leaking into the notebook.
        from html import escape

        page = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:36em;border:0" title="comparison"></iframe>'


def _notes(agreement: DataFrame, explained: Explained | None, *, outside: bool, shown: bool) -> list[str]:
    """Return the explanatory notes of the page."""
    notes = [
        "Colours are scaled to each method's largest magnitude, because the methods' units differ.",
        "Attention has one colour: it says what was read, not whether it speaks for or against a class.",
        "A hatched feature has no value for that method.",
    ]
    if explained is not None:
        against = "" if explained.opposite is None else f", and speak for class {explained.opposite!r}"
        notes.insert(
            0, f"Positive scores of signed methods raise the {explained.label}; negative ones lower it{against}."
        )
    if outside and not shown:
        notes.append(
            "The share of special tokens is stated, not coloured: the strongest feature has the full colour however "
            "small the features' share."
        )
    if len(agreement):
        compared = "the scores with their signs" if agreement.attrs["signed"] else "magnitudes"
        notes.append(
            f"Agreement compares {compared}. It is not quality: methods can agree and all be wrong about the model."
        )
        # NaN if a pair has at most k features.
        levels = sorted({f"{c:.2f}" for c in agreement.attrs["jaccard_by_chance"].values() if c == c})
        if levels:
            by = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]} (depending on the pair)"
            notes.append(f"Random scores would have a top-{agreement.attrs['k']} overlap of {by} on average.")
    return notes
