"""The error of a row of rollout against dense float64, compared with that of the dense float32 product."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import models
import torch
from measure import Options
from torch import Tensor

from captum_attn_lime import AttentionAttribution, capture

SIZES = (512, 2048)
# At 1 random weights give nearly uniform attention; at 16 a token's attention is spread over few others.
SHARPNESS = (1.0, 16.0)


def exact(attentions: Sequence[Tensor]) -> Tensor:
    """Return the first token's row of rollout in float64."""
    row = torch.zeros(attentions[0].shape[-1], dtype=torch.float64)
    row[0] = 1
    for weights in reversed(attentions):
        row = 0.5 * row @ weights[0].double().mean(0) + 0.5 * row
    return row


def from_scores(model: Any, ids: Tensor) -> Tensor:
    """Return the row in float64 from the queries and keys that the fused model computed in its precision."""
    with torch.no_grad(), capture(model) as maps:
        model(input_ids=ids)
    row = torch.zeros(ids.shape[1], dtype=torch.float64)
    row[0] = 1
    for layer in reversed(maps):
        query, key = layer.query[0].double(), layer.key[0].double()
        scores = query @ key.mT / query.shape[-1] ** 0.5
        row = 0.5 * row @ scores.softmax(dim=-1).mean(0) + 0.5 * row
    return row


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per size, sharpness of attention and precision."""
    rows = []
    for n in options.sizes or SIZES:
        ids = models.text(n)
        for sharpness in SHARPNESS:
            for dtype in (torch.float32, torch.bfloat16):
                fused = models.bert(n, sharpness=sharpness).to(dtype)
                eager = models.bert(n, sharpness=sharpness, attention="eager").to(dtype)
                ours = AttentionAttribution(models.logits_of(fused), method="rollout").attribute(ids)[0].double()
                dense = models.eager_rollout(eager)(ids).double()
                with torch.no_grad():
                    # The same weights, as rounded to dtype.
                    reference = exact(eager.double()(input_ids=ids, output_attentions=True).attentions)
                row = {
                    "n": n,
                    "sharpness": sharpness,
                    "dtype": str(dtype).removeprefix("torch."),
                    "error": float((ours - reference).abs().sum()),
                    "dense error": float((dense - reference).abs().sum()),
                    "from scores": float((ours - from_scores(fused, ids)).abs().sum()),
                }
                print(row, file=sys.stderr)
                rows.append(row)
    return rows
