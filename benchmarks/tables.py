"""The tables of docs/performance.md, each a function of all results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bars

Results = Mapping[str, Any]
NOT_MEASURED = "Not measured yet."


def rows_of(results: Results, part: str) -> list[dict[str, Any]]:
    """Return the rows of a part; none if it was not measured."""
    return results.get(part, {}).get("rows", [])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; without rows, a sentence that says so."""
    if not rows:
        return NOT_MEASURED
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float | None) -> str:
    """Return a time with three figures."""
    if value is None:
        return "-"
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def megabytes(value: float | None) -> str:
    """Return a size in megabytes (10^6 bytes)."""
    return "-" if value is None else f"{value / 1e6:,.0f}"


def times(value: float | None) -> str:
    """Return a ratio."""
    return "-" if value is None else f"{value:.2f}"


def growth(rows: Sequence[dict[str, Any]], at: int, key: str) -> str:
    """Return the growth factor of a quantity since the previous row, which has half as many tokens."""
    now, before = rows[at], rows[at - 1] if at else {}
    if before.get("n") != now["n"] / 2 or not before.get(key) or not now.get(key):
        return "-"
    return f"{now[key] / before[key]:.1f}"


def machine(results: Results) -> str:
    """Return the machines and versions, with the parts that were measured on each."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for part, result in results.items():
        found.setdefault(tuple(result["machine"].items()), []).append(part)
    names = dict.fromkeys(name for told in found for name, _ in told)
    return markdown(
        ["part", *names],
        [[", ".join(sorted(parts)), *(dict(told).get(name, "-") for name in names)] for told, parts in found.items()],
    )


def rollout(results: Results, part: str = "rollout") -> str:
    """Return rollout and the forward pass."""
    rows = rows_of(results, part)
    head = ["tokens", "forward", "rollout", "ratio", "ratio, compiled", "forward, N / (N/2)", "rollout, N / (N/2)"]
    head += ["forward, MB", "rollout, MB", "MB, N / (N/2)", "first call, MB", "rounds"]
    return markdown(
        head,
        [
            [
                f"{row['n']:,}",
                seconds(row["plain"]),
                seconds(row["rollout"]),
                times(row["ratio"]),
                times(row.get("compiled ratio")),
                growth(rows, i, "plain"),
                growth(rows, i, "rollout"),
                megabytes(row["plain bytes"]),
                megabytes(row["rollout bytes"]),
                growth(rows, i, "rollout bytes"),
                megabytes(row.get("first bytes")),
                str(row["rounds"]),
            ]
            for i, row in enumerate(rows)
        ],
    )


def eager(results: Results) -> str:
    """Return the dense products and ours."""
    rows = rows_of(results, "eager")
    head = ["tokens", "eager + dense", "rollout", "times as long", "eager, N / (N/2)", "eager + dense, MB"]
    head += ["rollout, MB", "times as much", "MB, N / (N/2)", "rounds"]
    return markdown(
        head,
        [
            [
                f"{row['n']:,}",
                seconds(row["eager"]),
                seconds(row["rollout"]),
                times(row["ratio"]),
                growth(rows, i, "eager"),
                megabytes(row["eager bytes"]),
                megabytes(row["rollout bytes"]),
                times(bars.memory_ratio(row)),
                growth(rows, i, "eager bytes"),
                str(row["rounds"]),
            ]
            for i, row in enumerate(rows)
        ],
    )


def relevance(results: Results) -> str:
    """Return relevance, a backward pass, and autograd through probabilities."""
    rows = rows_of(results, "relevance")
    head = ["tokens", "forward + backward", "relevance", "ratio", "eager + autograd", "eager/relevance"]
    head += ["forward + backward, MB", "relevance, MB", "eager + autograd, MB", "difference", "rounds"]
    return markdown(
        head,
        [
            [
                f"{row['n']:,}",
                seconds(row["gradient"]),
                seconds(row["relevance"]),
                times(row["ratio"]),
                seconds(row.get("dense")),
                times(row.get("dense ratio")),
                megabytes(row["gradient bytes"]),
                megabytes(row["relevance bytes"]),
                megabytes(row.get("dense bytes")),
                f"{row['difference']:.0e}" if "difference" in row else "-",
                str(row["rounds"]),
            ]
            for row in rows
        ],
    )


def reviews(results: Results) -> str:
    """Return the throughput over film reviews."""
    return markdown(
        ["reviews", "mean tokens", "forward", "rollout", "ratio", "reviews/s with rollout", "rounds"],
        [
            [
                f"{row['reviews']:,}",
                f"{row['tokens']:.0f}",
                seconds(row["plain"]),
                seconds(row["rollout"]),
                times(row["ratio"]),
                f"{row['reviews'] / row['rollout']:,.0f}",
                str(row["rounds"]),
            ]
            for row in rows_of(results, "reviews")
        ],
    )


def overhead(results: Results) -> str:
    """Return the cost of a capture alone."""
    return markdown(
        ["batch", "tokens", "forward", "captured", "ratio", "rounds"],
        [
            [
                str(row["batch"]),
                str(row["n"]),
                seconds(row["plain"]),
                seconds(row["capture"]),
                f"{row['ratio']:.3f}",
                str(row["rounds"]),
            ]
            for row in rows_of(results, "overhead")
        ],
    )


def memory(results: Results) -> str:
    """Return the extra memory and the size of the stored tensors."""
    return markdown(
        [
            "tokens",
            "queries and keys",
            "forward, MB",
            "rollout, MB",
            "extra, MB",
            "Q, K and log-sums, MB",
            "extra / these",
        ],
        [
            [
                f"{row['n']:,}",
                "in memory" if row["case"] == "rollout" else "in files",
                megabytes(row["plain bytes"]),
                megabytes(row["bytes"]),
                megabytes(None if row["ratio"] is None else row["bytes"] - row["plain bytes"]),
                megabytes(row["scores bytes"]),
                times(row["ratio"]),
            ]
            for row in rows_of(results, "memory")
        ],
    )


def accuracy(results: Results) -> str:
    """Return the errors against float64."""
    return markdown(
        ["tokens", "query weights", "precision", "rollout", "dense product", "rollout, given its queries and keys"],
        [
            [
                f"{row['n']:,}",
                f"x {row['sharpness']:g}",
                row["dtype"],
                f"{row['error']:.1e}",
                f"{row['dense error']:.1e}",
                f"{row['from scores']:.1e}",
            ]
            for row in rows_of(results, "accuracy")
        ],
    )


def lime_text(results: Results) -> str:
    """Return LIME of texts and the official explainer."""
    return _lime(results, "lime_text", ("words", "tokens", "samples"))


def lime_image(results: Results) -> str:
    """Return LIME of images and the official explainer."""
    return _lime(results, "lime_image", ("segments", "samples"))


def _lime(results: Results, part: str, numbers: Sequence[str]) -> str:
    rows = rows_of(results, part)
    alone = ["forward"] if any("forward" in row for row in rows) else []
    head = ["model", *numbers, *alone, "official", "ours", "times as long", "official, MB", "ours, MB", "difference"]
    own = any("overhead" in row for row in rows)
    return markdown(
        [*head, "rounds", *(["ours / lime's own work"] if own else [])],
        [
            [
                row["model"],
                *(f"{row[name]:,}" for name in numbers),
                *(seconds(row[name]) for name in alone),
                seconds(row.get("plain")),
                seconds(row["ours"]),
                times(row.get("ratio")),
                megabytes(row.get("plain bytes")),
                megabytes(row.get("ours bytes")),
                f"{row['difference']:.0e}" if "difference" in row else "-",
                str(row["rounds"]),
                *([times(row.get("overhead"))] if own else []),
            ]
            for row in rows
        ],
    )


def peers(results: Results) -> str:
    """Return the other packages, and a note for each that did not run or needed changes."""
    rows = rows_of(results, "peers")
    ran = [row for row in rows if "error" not in row]
    head = ["package", "what", "tokens", "its time", "ours", "times as long", "its MB", "ours", "greatest difference"]
    table = markdown(
        head,
        [
            [
                f"{row['peer']} {row['version']}",
                row["what"],
                f"{row['n']:,}",
                seconds(row["peer seconds"]),
                seconds(row["ours seconds"]),
                times(row["ratio"]),
                megabytes(row["peer bytes"]),
                megabytes(row["ours bytes"]),
                f"{row['difference']:.0e} of {row['greatest']:.0e}",
            ]
            for row in ran
        ],
    )
    notes = dict.fromkeys(f"* {row['peer']}: {row['note']}." for row in ran)
    errors = dict.fromkeys(
        f"* {row['peer']} does not run on {row['n']:,} tokens: `{row['error']}`" for row in rows if "error" in row
    )
    return "\n".join([table, *([""] if notes or errors else []), *notes, *errors])


def cuda(results: Results) -> str:
    """Return rollout on CUDA, if it was measured."""
    if not rows_of(results, "rollout cuda"):
        return "Not run yet."
    return rollout(results, "rollout cuda")


TABLES: dict[str, Callable[[Results], str]] = {
    "bars": lambda results: markdown(["what", "bar", "aim", "measured", ""], bars.lines(results)),
    "rollout": rollout,
    "eager": eager,
    "relevance": relevance,
    "reviews": reviews,
    "capture": overhead,
    "memory": memory,
    "accuracy": accuracy,
    "LIME of texts": lime_text,
    "LIME of pictures": lime_image,
    "peers": peers,
    "cuda": cuda,
    "machine": machine,
}
