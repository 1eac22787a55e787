"""`LimeText.explain` compared with the official explainer and a plain classifier function.

Ordinary means: the list of texts is tokenised and padded, and run in one forward pass without gradients. Texts are film
reviews, cut or joined to a number of words; the BERTs are random, as nothing in the cost depends on their weights.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from lime.lime_text import LimeTextExplainer
from measure import Options
from torch import nn

from captum_attn_lime import LimeText, TextAdapter
from captum_attn_lime.errors import LimeWarning
from captum_attn_lime.lime import explanation_weights

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

# The model, words of the text, samples.
CASES = (
    ("BERT, 2 layers of 128", 30, 5000),
    ("BERT, 2 layers of 128", 200, 1000),
    ("BERT, 2 layers of 128", 200, 5000),
    ("BERT, 4 layers of 256", 30, 5000),
    ("BERT, 4 layers of 256", 200, 1000),
    ("MiniLM, a review", 0, 1000),  # as it is
    ("none", 30, 5000),  # so that only the explainer is left
    ("none", 200, 1000),
)
PLAIN_BYTES = 9_000  # for each word of all samples, that the ordinary way takes for a model of width 128
SIZES = {"BERT, 2 layers of 128": (128, 2), "BERT, 4 layers of 256": (256, 4)}


class NoModel(nn.Module):
    """Distinguishes rows, and costs almost nothing."""

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Return logits (n, 2)."""
        x = input_ids[:, 1].float() / 1e4
        return torch.stack([x, -x], dim=1)


def subject(name: str, words: int) -> tuple[nn.Module, Any, str]:
    """Return a model, its tokenizer and a text."""
    import film_reviews

    encoder, tokenizer = film_reviews.load_encoder(film_reviews.Settings().n_layers)
    texts = film_reviews.load_reviews()["text"].sample(frac=1, random_state=0).tolist()
    text = " ".join(" ".join(texts[:100]).split()[:words]) if words else texts[0]
    if name in SIZES:
        return bert(*SIZES[name]), tokenizer, text
    if name == "none":
        return NoModel().eval(), tokenizer, text
    head = nn.Linear(encoder.config.hidden_size, 2)
    return film_reviews.ReviewClassifier(encoder, head).eval(), tokenizer, text


def bert(width: int, layers: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32)
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=4 * width)).eval()


def plain(model: nn.Module, tokenizer: Any, text: str, samples: int) -> Any:
    """Return the official explainer's result with one forward pass over all texts."""

    def predict_proba(texts: list[str]) -> Any:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return getattr(out, "logits", out).softmax(dim=1).numpy()

    explainer = LimeTextExplainer(random_state=0, feature_selection="none")
    return explainer.explain_instance(text, predict_proba, labels=(1,), num_samples=samples)


def lime_alone(text: str, samples: int) -> Any:
    """Return the official explainer's result with constant answers: its cost alone, without tokenisation."""
    answers = np.random.default_rng(0).uniform(size=(samples, 2))
    explainer = LimeTextExplainer(random_state=0, feature_selection="none")
    return explainer.explain_instance(text, lambda texts: answers, labels=(1,), num_samples=samples)


def functions(subject: tuple[nn.Module, Any, str], samples: int) -> dict[str, Callable[[], Any]]:
    """Return the cases."""
    model, tokenizer, text = subject
    lime = LimeText(TextAdapter(model, tokenizer))
    return {
        "plain": lambda: plain(model, tokenizer, text, samples),
        "ours": lambda: lime.explain(text, 1, num_samples=samples),
    }


def build(case: str, name: str, words: int, samples: int, device: str = "cpu") -> Callable[[], Any]:
    """Return one of the cases."""
    told = subject(name, words)
    functions(told, 20)[case]()
    return functions(told, samples)[case]


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per model, text and number of samples."""
    warnings.simplefilter("ignore", LimeWarning)  # of random models
    rows = []
    for name, words, usual in CASES:
        samples = options.samples or usual
        told = subject(name, words)
        cases = functions(told, samples)
        if PLAIN_BYTES * SIZES.get(name, (128, 0))[0] / 128 * words * samples > measure.available_bytes():
            print(f"{samples} texts of {words} words at once do not fit the free memory; left out.", file=sys.stderr)
            del cases["plain"]
        weights = [explanation_weights(case(), 1) for case in cases.values()]
        if name == "none":
            cases["lime alone"] = partial(lime_alone, told[2], samples)
        times = measure.interleaved(cases, seconds=options.seconds)
        row: dict[str, Any] = {"model": name, "words": len(told[2].split()), "samples": samples}
        row |= {"tokens": len(told[1](told[2])["input_ids"]), "rounds": len(times["ours"])}
        row |= {case: measure.median(found) for case, found in times.items()}
        if "plain" in cases:
            row["ratio"] = measure.ratio(times["plain"], times["ours"])
            row["difference"] = max(abs(weights[0][k] - weights[1][k]) for k in weights[0])
        if "lime alone" in cases:
            row["overhead"] = measure.ratio(times["ours"], times["lime alone"])
        for case in cases if name != "none" else ():
            row[f"{case} bytes"] = measure.in_own_process("lime_text", case, name=name, words=words, samples=samples)
        print(row, file=sys.stderr)
        rows.append(row)
    return rows
