"""Warnings of many explanations: once a kind, with a count, at the user's line."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

from captum_attn_lime import LimeText, TextAdapter, WordTokenizer, submodular_pick
from captum_attn_lime.errors import InputError, LimeWarning
from captum_attn_lime.lime import collected_warnings

LONG = "a fine film it is not bad and the actors are good"
TEXTS = [LONG, "fine", LONG, "a film it is not bad", "good"]


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.arange(20.0)[:, None] / 10)

    def forward(self, input_ids):
        z = self.table(input_ids).sum(1)
        return torch.cat([-z, z], dim=1)


@pytest.fixture
def lime():
    return LimeText(TextAdapter(Sum(), WordTokenizer.fit([LONG])))


def said(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    seen = [w for w in seen if w.category is LimeWarning]
    assert all(w.filename == __file__ for w in seen)
    return [str(w.message) for w in seen]


def explain_all(lime, texts=TEXTS, num_samples=100):
    for text in texts:
        lime.explain(text, 1, num_samples=num_samples, output="logits")


def test_a_loop_of_the_users(lime):
    def run():
        with collected_warnings():
            explain_all(lime)

    messages = said(run)
    assert len(messages) == len({m.split(":")[1] for m in messages})
    assert next(m for m in messages if "single feature" in m).startswith("2 of 5 explanations: ")
    assert next(m for m in messages if "few samples" in m).startswith("4 of 5 explanations: ")
    assert len(said(lambda: explain_all(lime))) > len(messages)


def test_nothing_to_say_and_one_explanation(lime):
    def run(texts, n):
        with collected_warnings():
            explain_all(lime, texts, n)

    assert said(lambda: run([LONG, LONG], 1000)) == []
    assert said(lambda: run([], 1000)) == []
    one = said(lambda: run(["fine"], 100))
    assert one == said(lambda: explain_all(lime, ["fine"], 100))


def test_blocks_within_blocks_and_exceptions(lime):
    def nested():
        with collected_warnings():
            explain_all(lime, ["fine"])
            with collected_warnings():
                explain_all(lime, ["good"])

    assert any("2 of 2" in m for m in said(nested))

    def broken():
        with collected_warnings():
            explain_all(lime, ["fine"])
            lime.explain(LONG, 1, num_samples=1)

    def caught():
        with pytest.raises(InputError):
            broken()

    assert said(caught) == []
    assert said(lambda: explain_all(lime, ["fine"], 100))  # and nothing is collected any more


def test_another_thread_warns_of_its_own(lime):
    messages = []

    def other():
        messages.extend(m for m in said(lambda: explain_all(lime, ["fine"])))

    with collected_warnings():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert any("single feature" in m for m in messages)


def test_the_pick(lime):
    messages = said(lambda: submodular_pick(lime, TEXTS, picks=2, num_samples=100, target=1, output="logits"))
    assert next(m for m in messages if "single feature" in m).startswith("2 of 5 explanations: ")
    assert len(messages) == len({m.split(":")[1] for m in messages})
