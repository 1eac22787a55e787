"""The cost of a capture: a forward pass inside `capture`, without computing anything from the maps."""

from __future__ import annotations

import sys
from typing import Any

import measure
import models
import torch
from measure import Options

from captum_attn_lime import capture

SHAPES = ((1, 16), (1, 128), (32, 128))


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per (batch, tokens)."""
    rows = []
    for batch, n in [(1, n) for n in options.sizes] if options.sizes else SHAPES:
        model, ids = models.bert(n, device=options.device), models.text(n, device=options.device, batch=batch)
        plain = models.plain(model)

        def captured(model: Any = model, ids: torch.Tensor = ids) -> None:
            with torch.no_grad(), capture(model):
                model(input_ids=ids)

        for _ in range(3):
            plain(ids)
            captured()
        times = measure.interleaved(
            {"plain": lambda p=plain, x=ids: p(x), "capture": captured},
            seconds=options.seconds / 2,
            device=options.device,
            most=400,
        )
        row: dict[str, Any] = {"batch": batch, "n": n, "rounds": len(times["plain"])}
        row |= {name: measure.median(times[name]) for name in times}
        row["ratio"] = measure.ratio(times["capture"], times["plain"])
        print(row, file=sys.stderr)
        rows.append(row)
    return rows
