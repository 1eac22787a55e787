"""`LimeText.explain` against the official explainer run plainly: CPU time, peak memory, and cost beside the model.

Run `python benchmarks/lime_text.py` (about ten minutes), or with `--quick` for a smoke run. Plainly means a
`predict_proba` that tokenises the list of texts, pads it and runs one forward pass without gradients. Both run in turn
in one process on one thread; times are CPU seconds, the median of the rounds, and ratios are medians of the rounds'
ratios. Peak memory is measured in a process of its own. Texts are film reviews, cut or joined to a number of words; the
BERTs are random, as nothing in the cost depends on their weights.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Before numpy and torch are there: their threads spin, and CPU time would count that.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np
import torch
from lime.lime_text import LimeTextExplainer
from torch import nn

from captum_attn_lime import LimeText, TextAdapter
from captum_attn_lime.lime import explanation_weights

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

# Width, layers, words, samples, rounds.
TIMES = [
    (128, 2, 30, 5000, 5),
    (256, 4, 30, 5000, 3),
    (128, 2, 200, 1000, 5),
    (128, 2, 200, 5000, 2),
    (256, 4, 200, 1000, 3),
]
QUICK = [(128, 2, 30, 300, 2), (128, 2, 200, 100, 2)]


class Null(nn.Module):
    """A model that costs nothing."""

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Return logits (n, 2) that tell rows apart."""
        x = input_ids[:, 1].float() / 1e4
        return torch.stack([x, -x], dim=1)


def bert(width: int, layers: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32)
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=4 * width)).eval()


def reviews() -> tuple[nn.Module, Any, list[str]]:
    """Return MiniLM with a head, its tokenizer, and reviews in a random order."""
    import film_reviews

    encoder, tokenizer = film_reviews.load_encoder(film_reviews.Settings().n_layers)
    head = nn.Linear(encoder.config.hidden_size, 2)
    model = film_reviews.ReviewClassifier(encoder, head).eval()
    return model, tokenizer, film_reviews.load_reviews()["text"].sample(frac=1, random_state=0).tolist()


def text_of(words: int, texts: list[str]) -> str:
    """Return the beginning of the joined reviews with so many words between spaces."""
    return " ".join(" ".join(texts).split()[:words])


def plain(model: nn.Module, tokenizer: Any, text: str, samples: int) -> Any:
    """Return what the official explainer gives with one forward pass over all texts."""

    def predict_proba(texts: list[str]) -> Any:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return getattr(out, "logits", out).softmax(dim=1).numpy()

    explainer = LimeTextExplainer(random_state=0, feature_selection="none")
    return explainer.explain_instance(text, predict_proba, labels=(1,), num_samples=samples)


def compared(model: nn.Module, tokenizer: Any, texts: list[str], samples: int, rounds: int) -> dict[str, Any]:
    """Return the times of both ways over the same texts, and how far their weights differ."""
    adapter = TextAdapter(model, tokenizer)
    lime = LimeText(adapter)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    difference = 0.0
    for text in texts:  # warm
        lime.explain(text, 1, num_samples=10)
        plain(model, tokenizer, text, 10)
    for _ in range(rounds):
        spent = {"plain": 0.0, "ours": 0.0}
        for text in texts:
            start = time.process_time()
            theirs = plain(model, tokenizer, text, samples)
            middle = time.process_time()
            found = lime.explain(text, 1, num_samples=samples)
            spent["ours"] += time.process_time() - middle
            spent["plain"] += middle - start
            one, two = explanation_weights(theirs), explanation_weights(found)
            difference = max(difference, *(abs(one[k] - two[k]) for k in one))
        for name, value in spent.items():
            times[name].append(value)
    ratio = statistics.median(a / b for a, b in zip(times["plain"], times["ours"], strict=True))
    return {name: statistics.median(own) for name, own in times.items()} | {"ratio": ratio, "difference": difference}


def overhead(tokenizer: Any, text: str, samples: int, rounds: int) -> dict[str, float]:
    """Return the cost beside the model: ours, official lime's alone, and official lime's with tokenisation."""
    model = Null()
    lime = LimeText(TextAdapter(model, tokenizer))
    scores = np.random.default_rng(0).random((samples, 2))
    ways = {
        "ours": lambda: lime.explain(text, 1, num_samples=samples),
        "lime": lambda: LimeTextExplainer(random_state=0, feature_selection="none").explain_instance(
            text, lambda texts: scores, labels=(1,), num_samples=samples
        ),
        "lime_tokens": lambda: plain(model, tokenizer, text, samples),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def peak(width: int, layers: int, words: int, samples: int) -> float:
    """Return the megabytes of the peak of an explanation beyond what was there before it; Linux alone tells."""
    _, tokenizer, texts = reviews()
    text = text_of(words, texts)
    lime = LimeText(TextAdapter(bert(width, layers), tokenizer))
    lime.explain(text, 1, num_samples=20)
    del texts
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, which loading the reviews made
    before = memory("VmRSS")
    lime.explain(text, 1, num_samples=samples)
    return (memory("VmHWM") - before) / 1024


def memory(name: str) -> int:
    """Return a line of the process' status, in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def peak_elsewhere(*case: int) -> float:
    """Return :func:`peak` of a process of its own."""
    command = [sys.executable, __file__, "--peak", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(*, quick: bool) -> None:
    """Print the tables."""
    model, tokenizer, texts = reviews()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread.\n")
    print("| model | text | samples | plain, CPU s | LimeText, CPU s | ratio | largest difference of a weight |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def line(name: str, about: str, samples: int, found: dict[str, Any]) -> None:
        cells = f"{found['plain']:.2f} | {found['ours']:.2f} | {found['ratio']:.2f} | {found['difference']:.1e}"
        print(f"| {name} | {about} | {samples} | {cells} |", flush=True)

    for width, layers, words, samples, rounds in QUICK if quick else TIMES:
        text = text_of(words, texts)
        about = f"{words} words, {len(tokenizer(text)['input_ids'])} tokens"
        found = compared(bert(width, layers), tokenizer, [text], samples, rounds)
        line(f"BERT H{width} L{layers}", about, samples, found)
    chosen, samples = texts[: 1 if quick else 5], 100 if quick else 1000
    tokens = statistics.mean(len(tokenizer(text)["input_ids"]) for text in chosen)
    found = compared(model, tokenizer, chosen, samples, 2 if quick else 3)
    line("MiniLM", f"{len(chosen)} reviews, {tokens:.0f} tokens each", samples, found)

    print("\n| cost beside the model | samples | LimeText, CPU s | lime | ratio | lime with tokenising | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for words, samples in [(30, 300)] if quick else [(30, 5000), (200, 1000), (200, 5000)]:
        cost = overhead(tokenizer, text_of(words, texts), samples, 3 if quick else 5)
        ours, alone, tokenised = cost["ours"], cost["lime"], cost["lime_tokens"]
        ratios = f"{alone:.3f} | {ours / alone:.2f} | {tokenised:.3f} | {ours / tokenised:.2f}"
        print(f"| {words} words | {samples} | {ours:.3f} | {ratios} |", flush=True)

    print("\n| peak memory beyond the model, BERT H128 L2 | MB |")
    print("| --- | --- |")
    for words, samples in [(200, 100)] if quick else [(200, 1000), (200, 5000), (200, 20000)]:
        print(f"| {words} words, {samples} samples | {peak_elsewhere(128, 2, words, samples):.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", type=int, nargs=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(json.dumps(peak(*arguments.peak)))
    else:
        main(quick=arguments.quick)
