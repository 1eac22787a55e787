"""The extra memory of rollout over the forward pass, compared with the size of the tensors that it stores."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import measure
import models
from measure import Options

from captum_attn_lime import AttentionAttribution

SIZES = (8192,)
CASES = ("rollout", "offload to files")


def scores_bytes(n: int) -> int:
    """Return the bytes of query, key and log-sum-exp of all layers in float32."""
    return models.LAYERS * (2 * n * models.WIDTH + models.HEADS * n) * 4


def has_offload() -> bool:
    """Return whether queries and keys can be offloaded."""
    return "offload" in inspect.signature(AttentionAttribution.__init__).parameters


def build(case: str, n: int, device: str = "cpu", folder: str | None = None) -> Callable[[], Any]:
    """Return one of the cases on n tokens."""
    model, ids = models.bert(n, device=device), models.text(n, device=device)
    if case == "plain":
        return models.warmed(models.plain(model), ids, to=64)
    settings = {} if folder is None else {"offload": folder}
    attribution = AttentionAttribution(models.logits_of(model), method="rollout", **settings)
    return models.warmed(attribution.attribute, ids, to=64)


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per size and storage."""
    rows = []
    for n in options.sizes or SIZES:
        plain = measure.in_own_process("memory", "plain", n=n, device=options.device)
        for case in CASES if has_offload() else CASES[:1]:
            with tempfile.TemporaryDirectory() as folder:
                kept = {"folder": folder} if case == "offload to files" else {}
                peak = measure.in_own_process("memory", case, n=n, device=options.device, **kept)
            row: dict[str, Any] = {"n": n, "case": case, "plain bytes": plain, "bytes": peak}
            row["scores bytes"] = scores_bytes(n)
            row["ratio"] = None if plain is None or peak is None else (peak - plain) / row["scores bytes"]
            print(row, file=sys.stderr)
            rows.append(row)
    return rows
