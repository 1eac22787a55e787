"""The performance targets of the package, and the measured values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """One target.

    Attributes:
        what: What is measured.
        bar: The worst that will do.
        aim: What is aimed at; None where the bar is all.
        measured: Takes the results and gives the figure, or None where it was not measured.
        at_least: Whether more is better.
        form: How figures are written.
    """

    what: str
    bar: float
    aim: float | None
    measured: Callable[[Results], float | None]
    at_least: bool = False
    form: str = ".2f"

    def line(self, results: Results) -> list[str]:
        """Return the cells of its table row."""
        value, sign = self.measured(results), "≥" if self.at_least else "≤"
        cells = [self.what, f"{sign} {self._write(self.bar)}", "-" if self.aim is None else self._write(self.aim)]
        if value is None:
            return [*cells, "-", ""]
        return [*cells, self._write(value), self._verdict(value)]

    def _write(self, value: float) -> str:
        if "e" in self.form:
            return format(value, self.form)
        return (
            format(value, self.form).rstrip("0").rstrip(".")
            if value in (self.bar, self.aim)
            else format(value, self.form)
        )

    def _verdict(self, value: float) -> str:
        def reached(goal: float) -> bool:
            return value >= goal if self.at_least else value <= goal

        if not reached(self.bar):
            return "missed"
        return "aim" if self.aim is not None and reached(self.aim) else "bar"


def find(results: Results, part: str, **wanted: Any) -> dict[str, Any]:
    """Return the row of a part with these values; empty if there is none."""
    rows = results.get(part, {}).get("rows", [])
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), {})


def memory_ratio(row: Mapping[str, Any]) -> float | None:
    """Return the memory of the dense products relative to ours."""
    if not row.get("eager bytes") or not row.get("rollout bytes"):
        return None
    return row["eager bytes"] / row["rollout bytes"]


def worst_error(results: Results, dtype: str, key: str = "error", over: str | None = None) -> float | None:
    """Return the largest error of a precision, or the largest ratio of two errors."""
    rows = [row for row in results.get("accuracy", {}).get("rows", []) if row["dtype"] == dtype]
    return max((row[key] / (row[over] if over else 1) for row in rows), default=None)


def gigabytes(row: Mapping[str, Any]) -> float | None:
    """Return the memory of an explanation."""
    return row["ours bytes"] / 1e9 if row.get("ours bytes") else None


def lime_difference(results: Results) -> float | None:
    """Return the largest difference between our weights and the official explainer's, over all models."""
    rows = [row for part in ("lime_text", "lime_image") for row in results.get(part, {}).get("rows", [])]
    return max((row["difference"] for row in rows if "difference" in row), default=None)


def _ratio(part: str, **wanted: Any) -> Callable[[Results], float | None]:
    return lambda results: find(results, part, **wanted).get("ratio")


BARS = (
    Bar("rollout / forward, 512 tokens", 1.5, 1.3, _ratio("rollout", n=512)),
    Bar("rollout / forward, 2,048 tokens", 1.8, 1.5, _ratio("rollout", n=2048)),
    Bar("rollout / forward, 4,096 tokens", 1.9, 1.6, _ratio("rollout", n=4096)),
    Bar(
        "rollout / forward, 4,096 tokens, compiled kernel",
        1.9,
        1.4,
        lambda results: find(results, "rollout", n=4096).get("compiled ratio"),
    ),
    Bar("extra memory / (Q, K, log-sums), 8,192 tokens", 1.5, 1.15, _ratio("memory", n=8192, case="rollout")),
    Bar("time of eager + dense / ours, 2,048 tokens", 4, 6, _ratio("eager", n=2048), at_least=True, form=".1f"),
    Bar(
        "memory of eager + dense / ours, 4,096 tokens",
        15,
        40,
        lambda results: memory_ratio(find(results, "eager", n=4096)),
        at_least=True,
        form=".1f",
    ),
    Bar("L1 error of a row, float32", 1e-5, None, lambda r: worst_error(r, "float32"), form=".0e"),
    Bar(
        "L1 error of a row / the dense float32 product's",
        4,
        None,
        lambda r: worst_error(r, "float32", over="dense error"),
    ),
    Bar("L1 error of a row, bfloat16", 1e-3, None, lambda r: worst_error(r, "bfloat16"), form=".0e"),
    Bar(
        "the same, given the model's queries and keys",
        1e-3,
        None,
        lambda r: worst_error(r, "bfloat16", "from scores"),
        form=".0e",
    ),
    Bar("relevance / (forward + backward), 2,048 tokens", 1.8, 1.3, _ratio("relevance", n=2048)),
    Bar("capture / forward, batch 1, 16 tokens", 1.15, 1.08, _ratio("overhead", batch=1, n=16)),
    Bar("capture / forward, batch 32, 128 tokens", 1.05, 1.02, _ratio("overhead", batch=32, n=128)),
    Bar("rollout / forward, 1,000 film reviews", 1.25, 1.1, _ratio("reviews", reviews=1000)),
    *(
        Bar(
            f"official LIME / ours, {words} words, {samples:,} samples, {model}",
            bar,
            aim,
            _ratio("lime_text", model=model, words=words, samples=samples),
            at_least=True,
        )
        for model, words, samples, bar, aim in (
            ("BERT, 2 layers of 128", 30, 5000, 2, 3),
            ("BERT, 4 layers of 256", 30, 5000, 2, 3),
            ("BERT, 2 layers of 128", 200, 1000, 2.5, 4),
            ("BERT, 2 layers of 128", 200, 5000, 2.5, 4),
        )
    ),
    Bar(
        "official LIME / ours, the MiniLM on a review, 1,000 samples",
        2,
        3,
        _ratio("lime_text", model="MiniLM, a review", samples=1000),
        at_least=True,
    ),
    Bar(
        "GB of LIME, 200 words, 5,000 samples",
        0.5,
        0.2,
        lambda results: gigabytes(find(results, "lime_text", words=200, samples=5000)),
    ),
    Bar(
        "LIME without a model / official LIME's own work, 30 words, 5,000 samples",
        1,
        0.3,
        lambda results: find(results, "lime_text", model="none", words=30, samples=5000).get("overhead"),
    ),
    Bar(
        "official LIME / ours, picture of 196 patches",
        2,
        3,
        _ratio("lime_image", model="ViT, 3 layers of 64", samples=1000),
        at_least=True,
    ),
    Bar("difference of LIME's weights from the official", 1e-6, None, lime_difference, form=".0e"),
)


def lines(results: Results) -> list[list[str]]:
    """Return the table's rows."""
    return [bar.line(results) for bar in BARS]
