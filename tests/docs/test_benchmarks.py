"""The page of the benchmarks is made from what they measured, and every part of them runs."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests import ROOT

PAGE = ROOT / "docs" / "performance.md"
MODULES = ("page", "tables", "bars", "measure")


@pytest.fixture
def modules(monkeypatch):
    """The benchmarks' modules by name; they are scripts, and import each other by their file names."""
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def _rollout(**changed):
    row = {"n": 512, "rounds": 3, "plain": 0.2, "rollout": 0.26, "ratio": 1.3, "plain bytes": 3e7, "rollout bytes": 6e7}
    return row | changed


def _results(*rows, part="rollout"):
    return {part: {"machine": {"processor": "abacus", "torch": "0"}, "rows": list(rows)}}


def test_the_page_is_that_of_the_results(modules, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    modules.page.fill(copy, modules.page.read(ROOT / "benchmarks" / "results.json"))
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), "run `benchmarks/run.py page`"


def test_tables_are_filled_and_the_prose_stays(modules, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    results = _results(_rollout(), _rollout(n=1024, plain=0.5, rollout=0.9, ratio=1.8))
    for _ in range(2):  # filled once more, it is the same
        modules.page.fill(copy, results)
    text = copy.read_text(encoding="utf-8")
    assert "| 1,024 | 500 ms | 900 ms | 1.80 | - | 2.5 | 3.5 |" in text
    assert "| 512 | 200 ms | 260 ms | 1.30 | - | - | - |" in text
    assert "abacus" in text

    def prose(whole):
        return [part.split("<!-- end -->")[-1] for part in whole.split("<!-- table: ")]

    assert prose(text) == prose(PAGE.read_text(encoding="utf-8"))


def test_a_page_without_a_place_for_a_table_is_refused(modules, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text("<!-- table: rollout -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has places for the tables"):
        modules.page.fill(copy, {})


@pytest.mark.parametrize(("ratio", "verdict"), [(1.2, "aim"), (1.4, "bar"), (1.6, "missed")])
def test_figures_stand_beside_their_bars(modules, ratio, verdict):
    line = modules.bars.lines(_results(_rollout(ratio=ratio)))[0]
    assert line == ["rollout / forward, 512 tokens", "≤ 1.5", "1.3", f"{ratio:.2f}", verdict]


def test_what_should_be_large_is_not_taken_for_missed(modules):
    row = {"n": 2048, "ratio": 7.0}
    lines = {line[0]: line for line in modules.bars.lines(_results(row, part="eager"))}
    assert lines["time of eager + dense / ours, 2,048 tokens"][1:] == ["≥ 4", "6", "7.0", "aim"]
    assert lines["rollout / forward, 2,048 tokens"][-2:] == ["-", ""]


def test_lime_has_its_bars(modules):
    text = {"model": "BERT, 2 layers of 128", "words": 200, "samples": 5000, "ours bytes": 6e8}
    results = _results(text, text | {"samples": 1000, "ratio": 2.4, "difference": 2e-9}, part="lime_text")
    image = {"model": "ViT, 3 layers of 64", "samples": 1000, "ratio": 2.6, "difference": 3e-6}
    lines = {line[0]: line for line in modules.bars.lines(results | _results(image, part="lime_image"))}
    bert = "BERT, 2 layers of 128"
    assert lines[f"official LIME / ours, 30 words, 5,000 samples, {bert}"][-2:] == ["-", ""]
    assert lines[f"official LIME / ours, 200 words, 1,000 samples, {bert}"][1:] == ["≥ 2.5", "4", "2.40", "missed"]
    assert lines["GB of LIME, 200 words, 5,000 samples"][-2:] == ["0.60", "missed"]
    assert lines["official LIME / ours, picture of 196 patches"][1:] == ["≥ 2", "3", "2.60", "bar"]
    assert lines["difference of LIME's weights from the official"][-2:] == ["3e-06", "missed"]


def test_a_ratio_is_taken_within_rounds(modules):
    # The machine slows down by half in the middle: both times double, their ratio does not.
    assert modules.measure.ratio([2.0, 4.0, 4.0], [1.0, 2.0, 2.0]) == 2.0
    assert modules.measure.median([2.0, 4.0, 9.0]) == 4.0


def test_rounds_are_interleaved_and_end(modules):
    order = []
    cases = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = modules.measure.interleaved(cases, seconds=60, most=4)
    assert order == list("abababab")
    assert {len(t) for t in times.values()} == {4}


def test_a_peak_is_seen_after_it_is_over(modules):
    megabyte = 2**20
    grown = modules.measure.peak_growth(lambda: len(bytearray(64 * megabyte)))
    assert 60 * megabyte <= grown <= 80 * megabyte
    assert modules.measure.peak_growth(lambda: None) < 8 * megabyte  # a new measurement begins anew


@pytest.mark.slow
def test_every_part_runs(modules, tmp_path):
    page, plot, results = (tmp_path / name for name in ("page.md", "plot.png", "results.json"))
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    told = ["--sizes", "32", "--seconds", "0", "--reviews", "8", "--samples", "20"]
    where = ["--results", str(results), "--page", str(page), "--plot", str(plot)]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "run.py"), *told, *where], check=True)
    measured = json.loads(results.read_text(encoding="utf-8"))
    parts = ["rollout", "eager", "relevance", "reviews", "overhead", "memory", "accuracy", "lime_text", "lime_image"]
    assert sorted(measured) == sorted(parts)
    for part, result in measured.items():
        for row in result["rows"]:
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            assert numbers, part
            assert all(math.isfinite(value) for value in numbers.values()), (part, row)
            # So short a text takes no memory to speak of, and its growth may come out as nothing.
            sizes = {name for name in numbers if name.endswith("bytes") or name == "difference" or part == "memory"}
            assert all(numbers[name] > 0 for name in numbers.keys() - sizes), (part, row)
    assert max(row["error"] for row in measured["accuracy"]["rows"] if row["dtype"] == "float32") < 1e-5
    for part in ("lime_text", "lime_image"):
        assert max(row["difference"] for row in measured[part]["rows"] if "difference" in row) < 1e-6
    assert plot.stat().st_size > 10_000
    text = page.read_text(encoding="utf-8")
    filled = {name: text.split(f"<!-- table: {name} -->")[1].split("<!-- end -->")[0] for name in modules.tables.TABLES}
    unmeasured = {name for name, table in filled.items() if "| --- |" not in table}
    assert unmeasured == {"peers", "cuda"}
