"""The HTML page of a comparison: self-contained, escaped, with a light and a dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captum_attn_lime._util.files import encodable
from captum_attn_lime.plot._common import as_table, is_signed, largest, outside_note, outside_of_method, plain
from captum_attn_lime.plot._comparison import measure_title, square

if TYPE_CHECKING:
    from pandas import DataFrame


def html_page(
    scores: DataFrame,
    agreement: DataFrame | None = None,
    *,
    title: str = "Comparison of attributions",
    prediction: str | None = None,
    explained: str | None = None,
    as_text: bool = True,
    notes: Sequence[str] = (),
    outside: DataFrame | None = None,
) -> str:
    """Return a page with the scores, as text or as bars, and the agreement of the methods.

    The page loads nothing from elsewhere, and all words, names and titles are escaped.

    Args:
        scores: One row per feature and one column per method; NaN where a method has no value.
        agreement: The result of :func:`captum_attn_lime.metrics.agreement`; omitted if it has no pairs.
        title: The heading.
        prediction: The model's prediction, below the heading.
        explained: The number that the scores explain, below the heading.
        as_text: Whether the features are words of a running text; otherwise they are shown as bars.
        notes: Sentences below the tables.
        outside: Share of each method's magnitudes outside the features, shown beside the scores: one row per token and
            one column per method, as in :attr:`Comparison.outside`.

    Raises:
        InputError: The scores are not a table of numbers, or are empty.

    Example:
        >>> import pandas as pd
        >>> page = html_page(pd.DataFrame({"rollout": [0.2, 0.8]}, index=["<em>", "film"]), title="a & b")
        >>> "&lt;em&gt;" in page, "<em>" in page, "a &amp; b" in page
        (True, False, True)
    """
    import jinja2

    table = as_table(scores)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("captum_attn_lime.plot", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    methods = [
        _method(str(name), table.iloc[:, i].to_list()) | {"outside": outside_note(outside_of_method(outside, name))}
        for i, name in enumerate(table.columns)
    ]
    page = environment.get_template("comparison.html.jinja").render(
        title=title,
        prediction=prediction,
        explained=explained,
        as_text=as_text,
        features=[plain(name) for name in table.index],
        methods=methods,
        measures=[] if agreement is None or not len(agreement) else _measures(agreement),
        notes=notes,
    )
    return encodable(page)  # files and notebooks cannot store lone surrogates


def _method(name: str, values: list[float]) -> dict[str, Any]:
    """Return a method's data for the template; each cell has a sign and a strength from 0 to 100."""
    import numpy as np

    array = np.asarray(values, dtype=float)
    top, signed = largest(array), is_signed(array)
    return {
        "name": name,
        "signed": signed,
        "low": _number(-top, signed) if signed else "0",
        "high": _number(top, signed),
        "cells": [_cell(value, top, signed) for value in values],
    }


def _cell(value: float, top: float, signed: bool) -> dict[str, Any]:
    if math.isnan(value):
        return {"kind": "missing", "strength": 0, "label": "no value"}
    strength = round(100 * min(1.0, abs(value) / top))
    return {"kind": "minus" if value < 0 else "plus", "strength": strength, "label": _number(value, signed)}


def _number(value: float, signed: bool) -> str:
    """Return a number with three digits, and with a sign if the method has signs."""
    return f"{value:{'+' if signed else ''}.3g}"


def _measures(agreement: DataFrame) -> list[dict[str, Any]]:
    """Return each measure as a square matrix for the template."""
    found = []
    for measure in agreement.columns:
        names, matrix = square(agreement, measure)
        rows = [
            {"name": name, "cells": [None if i == j else _agreement_cell(v) for j, v in enumerate(row)]}
            for i, (name, row) in enumerate(zip(names, matrix.tolist(), strict=True))
        ]
        found.append({"name": measure_title(agreement, measure), "methods": names, "rows": rows})
    return found


def _agreement_cell(value: float) -> dict[str, Any]:
    if math.isnan(value):
        return {"kind": "missing", "strength": 0, "label": "n/a"}
    return {"kind": "minus" if value < 0 else "agree", "strength": round(100 * abs(value)), "label": f"{value:.2f}"}
