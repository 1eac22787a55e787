"""Rollout of the predicting token with its readout, compared with the forward pass of the same fused model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure
import models
from measure import Options

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.attention import native
from captum_attn_lime.errors import CompilerError

SIZES = {
    "cpu": (128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "cuda": (512, 2048, 8192, 32768, 131072),
}
WARM = 64
FIRST_TO = 4096  # the memory of a first call is measured up to here; it takes as long again
COMPILED_TO = 4096


def functions(n: int, device: str) -> dict[str, Callable[..., Any]]:
    """Return the cases as functions of ids."""
    model = models.bert(n, device=device)
    attribution = AttentionAttribution(models.logits_of(model), method="rollout")
    found: dict[str, Callable[..., Any]] = {"plain": models.plain(model), "rollout": attribution.attribute}
    if device == "cpu" and n <= COMPILED_TO and has_compiler():
        found["compiled"] = compiled(attribution.attribute)
    return found


def has_compiler() -> bool:
    """Return whether the optional kernel can be enabled."""
    try:
        native.enable()
    except CompilerError:
        return False
    native.disable()
    return True


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the optional kernel."""

    def run(ids: Any) -> Any:
        native.enable()
        try:
            return function(ids)
        finally:
            native.disable()

    return run


def build(case: str, n: int, device: str = "cpu", *, first: bool = False) -> Callable[[], Any]:
    """Return one of the cases on n tokens: the first call, or a later one."""
    function, ids = functions(n, device)[case], models.text(n, device=device)
    return (lambda: function(ids)) if first else models.warmed(function, ids, to=WARM)


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per size."""
    rows = []
    for n in options.sizes or SIZES[options.device]:
        found, ids = functions(n, options.device), models.text(n, device=options.device)
        times = measure.interleaved(
            {name: models.warmed(function, ids, to=1024) for name, function in found.items()},
            seconds=options.seconds,
            device=options.device,
        )
        row: dict[str, Any] = {"n": n, "rounds": len(times["plain"])}
        row |= {name: measure.median(times[name]) for name in times}
        row["ratio"] = measure.ratio(times["rollout"], times["plain"])
        if "compiled" in times:
            row["compiled ratio"] = measure.ratio(times["compiled"], times["plain"])
        told = {"n": n, "device": options.device}
        for case in ("plain", "rollout"):
            row[f"{case} bytes"] = measure.in_own_process("rollout", case, **told)
        if n <= FIRST_TO:
            row["first bytes"] = measure.in_own_process("rollout", "rollout", first=True, **told)
        print(row, file=sys.stderr)
        rows.append(row)
    return rows
