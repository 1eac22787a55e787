"""Relevance compared with one forward and backward pass, and with autograd through stored probabilities."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure
import models
from measure import Options

from captum_attn_lime import AttentionAttribution

SIZES = (512, 2048, 4096)
DENSE_TO = 2048  # autograd over the probabilities keeps three matrices per head and layer
TARGET = 1


def functions(n: int, device: str) -> dict[str, Callable[..., Any]]:
    """Return the cases as functions of ids; dense ones only for small sizes."""
    model = models.bert(n, device=device)
    attribution = AttentionAttribution(models.logits_of(model), method="relevance")
    found: dict[str, Callable[..., Any]] = {
        "gradient": models.gradient(model, TARGET),
        "relevance": lambda ids: attribution.attribute(ids, target=TARGET)[0],
    }
    if n <= DENSE_TO:
        found["dense"] = models.eager_relevance(models.bert(n, attention="eager", device=device), TARGET)
    return found


def build(case: str, n: int, device: str = "cpu") -> Callable[[], Any]:
    """Return one of the cases on n tokens."""
    return models.warmed(functions(n, device)[case], models.text(n, device=device), to=64)


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per size."""
    rows = []
    for n in options.sizes or SIZES:
        ids, found = models.text(n, device=options.device), functions(n, options.device)
        times = measure.interleaved(
            {name: models.warmed(function, ids, to=512) for name, function in found.items()},
            seconds=options.seconds,
            device=options.device,
        )
        row: dict[str, Any] = {"n": n, "rounds": len(times["gradient"])}
        row |= {name: measure.median(times[name]) for name in times}
        row["ratio"] = measure.ratio(times["relevance"], times["gradient"])
        if "dense" in found:
            row["dense ratio"] = measure.ratio(times["dense"], times["relevance"])
            # The first token's own share of 1 comes from the identity and is the same in both.
            dense, ours = (found[case](ids[:, :512])[1:] for case in ("dense", "relevance"))
            row["difference"] = float((dense - ours).abs().max() / dense.abs().max())
        for case in found:
            row[f"{case} bytes"] = measure.in_own_process("relevance", case, n=n, device=options.device)
        print(row, file=sys.stderr)
        rows.append(row)
    return rows
