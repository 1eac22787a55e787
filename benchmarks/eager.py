"""Eager attention with all weights stored and dense float32 products, compared with this package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure
import models
from measure import Options

from captum_attn_lime import AttentionAttribution

SIZES = (128, 256, 512, 1024, 2048, 4096)


def functions(n: int, device: str) -> dict[str, Callable[..., Any]]:
    """Return the cases as functions of ids."""
    forward = models.logits_of(models.bert(n, device=device))
    return {
        "eager": models.eager_rollout(models.bert(n, attention="eager", device=device)),
        "rollout": AttentionAttribution(forward, method="rollout").attribute,
    }


def build(case: str, n: int, device: str = "cpu") -> Callable[[], Any]:
    """Return one of the cases on n tokens."""
    return models.warmed(functions(n, device)[case], models.text(n, device=device), to=64)


def fits(n: int) -> bool:
    """Return whether the weights of all layers, plus half as much for the products, fit into the free memory."""
    return 1.5 * models.LAYERS * models.HEADS * n * n * 4 < measure.available_bytes()


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per size that fits into memory."""
    rows = []
    for n in options.sizes or SIZES:
        if not fits(n):
            print(f"eager attention on {n} tokens does not fit the free memory; left out.", file=sys.stderr)
            continue
        found, ids = functions(n, options.device), models.text(n, device=options.device)
        times = measure.interleaved(
            {name: models.warmed(function, ids, to=1024) for name, function in found.items()},
            seconds=options.seconds / 2,
            device=options.device,
        )
        row: dict[str, Any] = {"n": n, "rounds": len(times["eager"])}
        row |= {name: measure.median(times[name]) for name in times}
        row["ratio"] = measure.ratio(times["eager"], times["rollout"])
        for case in found:
            row[f"{case} bytes"] = measure.in_own_process("eager", case, n=n, device=options.device)
        print(row, file=sys.stderr)
        rows.append(row)
    return rows
