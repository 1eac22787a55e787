"""Rollout over real film reviews with a trained encoder, compared with the forward pass over the same batches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import measure
import torch
from measure import Options

from captum_attn_lime import AttentionAttribution, TextAdapter

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

BATCH = 32


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row: the reviews, their tokens, and the times of all batches together."""
    import film_reviews

    # The head is not fitted: nothing in the cost depends on its weights.
    encoder, tokenizer = film_reviews.load_encoder(film_reviews.Settings().n_layers)
    head = torch.nn.Linear(encoder.config.hidden_size, len(film_reviews.CLASS_NAMES))
    model = film_reviews.ReviewClassifier(encoder, head).eval().requires_grad_(False).to(options.device)
    adapter = TextAdapter(model, tokenizer, class_names=film_reviews.CLASS_NAMES)
    table = film_reviews.load_reviews()
    texts = sorted(table["text"].sample(min(options.reviews, len(table)), random_state=0), key=len)
    batches = [adapter.encode(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    rollout = AttentionAttribution(adapter, method="rollout")

    def plain(x: Any) -> Any:
        with torch.no_grad():
            return adapter(x.inputs, *x.forward_args)

    totals: dict[str, list[float]] = {"plain": [], "rollout": []}
    for repeat in range(4 if options.seconds else 2):
        rounds = [
            measure.interleaved(
                {
                    "plain": lambda x=x: plain(x),
                    "rollout": lambda x=x: rollout.attribute(**x.arguments(rollout)),
                },
                seconds=0,
                device=options.device,
                most=1,
            )
            for x in batches
        ]
        if repeat:  # the first warms up
            for name, total in totals.items():
                total.append(sum(times[name][0] for times in rounds))
    row: dict[str, Any] = {"reviews": len(texts), "rounds": len(totals["plain"])}
    row["tokens"] = sum(len(review) for review in tokenizer(texts)["input_ids"]) / len(texts)
    row |= {name: measure.median(total) for name, total in totals.items()}
    row["ratio"] = measure.ratio(totals["rollout"], totals["plain"])
    print(row, file=sys.stderr)
    return [row]
