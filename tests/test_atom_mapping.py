"""Attention with a known truth: RXNMapper's head follows atoms through a reaction, and our capture reproduces it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from captum_attn_lime import capture

_SPEC = importlib.util.spec_from_file_location(
    "atom_mapping", Path(__file__).parent.parent / "examples" / "atom_mapping.py"
)
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("rxnmapper") is None, reason="rxnmapper is not installed")


def test_the_published_mapping_of_a_fischer_esterification():
    found = example.mapped(*example.atom_mapping(example.REACTION))
    # Ethyl acetate: methyl, carbonyl and its oxygen from the acid; the bridging oxygen and the ethyl from ethanol,
    # which is written the other way round; the water's oxygen was the acid's hydroxyl.
    assert found == [0, 1, 2, 6, 5, 4, 3] == example.RIGHT


def test_another_head_does_not_do_it(monkeypatch):
    monkeypatch.setattr(example, "HEAD", 0)
    assert example.mapped(*example.atom_mapping(example.REACTION)) != example.RIGHT


def test_the_captured_head_equals_the_one_the_model_reports():
    model, vocabulary = example.load()
    tokens = ["[CLS]", *example.TOKEN.findall(example.REACTION), "[SEP]"]
    ids = torch.tensor([[vocabulary[token] for token in tokens]])
    with torch.no_grad(), capture(model) as maps:
        model(ids)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        reported = model(ids, output_attentions=True).attentions
    difference = maps[example.LAYER].rows(slice(None), heads=example.HEAD)[:, 0] - reported[10][:, 5]
    assert difference.abs().max() <= 5e-6  # two kernels, ten layers


def test_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example.main()
    assert "7 of 7 atoms as the mechanism has it" in capsys.readouterr().out
    assert (tmp_path / "output" / "atom_mapping.png").stat().st_size > 10_000
