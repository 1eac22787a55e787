"""The command line of the benchmarks: ``python benchmarks/run.py [PART ...]``; by default all except the peers.

What is measured is kept in results.json, from which docs/performance.md and its plot are filled; a part that is run
again alone replaces its own numbers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# Before numpy and torch are there: threads that wait for work would count as CPU time.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # also where this file is loaded as a module

import measure  # noqa: E402
import page  # noqa: E402
import torch  # noqa: E402

PARTS = ("rollout", "eager", "relevance", "reviews", "overhead", "memory", "accuracy", "lime_text", "lime_image")
CUDA = ("rollout", "eager", "relevance", "reviews", "overhead", "memory")
APART = ("peers",)  # needs packages that this one does not


def main(arguments: list[str]) -> None:
    """Measure the selected parts, store their numbers, and generate the page."""
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.own_process:
        print(own_process(**json.loads(options.own_process)))
        return
    results = page.read(options.results)
    told = measure.Options(
        sizes=None if options.sizes is None else tuple(options.sizes),
        seconds=options.seconds,
        device=options.device,
        reviews=options.reviews,
        samples=options.samples,
    )
    for part in options.parts:
        print(f"{part} ...", file=sys.stderr)
        rows = importlib.import_module(part).run(told)
        name = part if told.device == "cpu" else f"{part} {told.device}"
        results[name] = {"machine": measure.machine(told.device), "rows": rows}
        page.write(results, options.results)
    page.fill(options.page, results)
    page.plot(results, options.plot)


def own_process(part: str, case: str, device: str = "cpu", calls: int = 1, **arguments: Any) -> int:
    """Return the growth of this process's memory during the last of several calls of a case."""
    function = importlib.import_module(part).build(case, device=device, **arguments)
    return measure.peak_growth(function, device, calls=calls)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join([*PARTS, *APART])}, page")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of tokens, in place of each part's own")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to repeat one comparison")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--reviews", type=int, default=1000, help="how many film reviews")
    parser.add_argument("--samples", type=int, help="how many samples LIME draws, in place of each part's own")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    parser.add_argument("--plot", type=Path, default=HERE.parent / "docs" / "performance.png")
    parser.add_argument("--own-process", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    known = CUDA if options.device == "cuda" else (*PARTS, *APART)
    options.parts = options.parts or list(PARTS if options.device == "cpu" else CUDA)
    if unknown := [part for part in options.parts if part not in (*known, "page")]:
        parser.error(f"{', '.join(unknown)}: not a part on {options.device}; these are: {', '.join(known)}, page.")
    options.parts = [part for part in options.parts if part != "page"]  # which is filled in any case
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
