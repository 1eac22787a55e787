"""Generates docs/performance.md and its plot from results.json; each table is between two markers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tables

from captum_attn_lime._util.files import write_whole
from captum_attn_lime.plot import save

Results = Mapping[str, Any]

_COLOURS = {"eager + dense": "#b5482a", "rollout": "#1f5fa8", "plain forward": "#555555"}


def read(path: Path) -> dict[str, Any]:
    """Return the stored results; empty if there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(results: Results, path: Path) -> None:
    """Store the results."""
    write_whole(path, json.dumps(results, indent=1) + "\n")


def fill(path: Path, results: Results) -> None:
    """Write each table between ``<!-- table: NAME -->`` and ``<!-- end -->``; the prose around them stays.

    Raises:
        ValueError: The page has no place for a table, or one for a table that there is not.
    """
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"<!-- table: (.+?) -->", text)
    if sorted(names) != sorted(tables.TABLES):
        raise ValueError(f"{path} has places for the tables {sorted(names)}; they are {sorted(tables.TABLES)}.")
    for name, table in tables.TABLES.items():
        begin = f"<!-- table: {name} -->"
        inside = re.compile(f"{re.escape(begin)}.*?<!-- end -->", re.DOTALL)
        filled = f"{begin}\n{table(results)}\n<!-- end -->"
        text = inside.sub(lambda _, filled=filled: filled, text)
    write_whole(path, text)


def plot(results: Results, path: Path) -> None:
    """Draw time and memory against the number of tokens; nothing if neither was measured."""
    sizes = sorted({row["n"] for part in ("rollout", "eager") for row in tables.rows_of(results, part)})
    if not sizes:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    wanted = (("CPU time, one thread", "{}", _time), ("peak memory beside the model", "{} bytes", _memory))
    for ax, (title, key, unit) in zip(axes, wanted, strict=True):
        ends = []
        for label, part, case in (
            ("plain forward", "rollout", "plain"),
            ("rollout", "rollout", "rollout"),
            ("eager + dense", "eager", "eager"),
        ):
            rows = [row for row in tables.rows_of(results, part) if row.get(key.format(case))]
            if rows:  # a part may have been measured without the other
                x, y = [row["n"] for row in rows], [row[key.format(case)] for row in rows]
                ax.loglog(x, y, marker="o", markersize=4, color=_COLOURS[label])
                ends.append((x[-1], y[-1], label))
        ax.set_xlim(sizes[0] / 1.3, sizes[-1] * 4.5)  # room for the labels
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes], rotation=45, ha="right")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _, unit=unit: unit(value))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("tokens")
        ax.set_title(title, loc="left", fontsize=11)
        ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        _label(ax, ends)
    save(figure, path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _label(ax: Any, ends: list[tuple[float, float, str]]) -> None:
    """Label each line at its end: to the right, or to the left if other lines continue beyond it."""
    ax.figure.canvas.draw()
    furthest = max(x for x, _, _ in ends)
    height, pixels_per_point = float("-inf"), ax.figure.dpi / 72
    for x, y, label in sorted(ends, key=lambda end: end[1]):
        aside, shift = {"ha": "right"}, 0.0
        if x == furthest:
            at = ax.transData.transform((x, y))[1] / pixels_per_point
            height = max(at, height + 13)  # names that would meet are moved apart
            aside, shift = {"ha": "left"}, height - at
        ax.annotate(
            label,
            (x, y),
            xytext=(7 if x == furthest else -7, shift),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=_COLOURS[label],
            **aside,
        )


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1000 * seconds:g} ms"


def _memory(size: float) -> str:
    return f"{size / 1e9:g} GB" if size >= 1e9 else f"{size / 1e6:g} MB"
