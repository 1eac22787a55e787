"""Attention with a known truth: RXNMapper's head follows atoms through a reaction, and our capture reproduces it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from captum_attn_lime import capture
from tests import ROOT

_SPEC = importlib.util.spec_from_file_location("atom_mapping", ROOT / "examples" / "atom_mapping.py")
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("rxnmapper") is None, reason="rxnmapper is not installed")

# Acetic acid is 0 methyl, 1 carbonyl carbon, 2 its oxygen, 3 hydroxyl; ethanol is 4 methyl, 5 methylene, 6 hydroxyl.
CANONICAL = "CC(=O)O.CCO>>CCOC(C)=O"


@pytest.fixture(scope="module")
def trained():
    return example.load()


@pytest.fixture(scope="module")
def counts(trained):
    return example.count_right(*trained)


@pytest.mark.parametrize(
    ("reaction", "right"),
    [
        (CANONICAL, [4, 5, 6, 1, 0, 2]),
        (CANONICAL + ".O", [4, 5, 6, 1, 0, 2, 3]),
        ("CC(=O)O.CCO>>CC(=O)OCC.O", [0, 1, 2, 6, 5, 4, 3]),
    ],
)
def test_the_accepted_mapping_of_a_fischer_esterification(trained, reaction, right):
    tokens, reactants, products, attention = example.atom_attention(*trained, reaction)
    assert example.origins(tokens, reactants, products, attention) == right
    assert attention.argmax(dim=1).tolist() == right, "without being told the elements"


def test_the_example_has_the_canonical_reaction():
    assert example.REACTION == CANONICAL + ".O"
    assert example.RIGHT == [4, 5, 6, 1, 0, 2, 3]


@pytest.mark.parametrize("head", [0, 1, 2, 3, 4, 6, 7])
def test_no_other_head_of_the_layer_gets_half_of_it(trained, head):
    found = example.origins(*example.atom_attention(*trained, example.REACTION, head=head))
    assert sum(a == b for a, b in zip(found, example.RIGHT, strict=True)) <= 3


def test_in_other_spellings_the_mechanism_is_a_coin_toss(counts):
    ways = list(example.ways_to_write())
    assert len({reaction for reaction, _, _ in ways}) == 108
    for reaction, before, after in ways:
        atoms = [sum(map(str.isalpha, side)) for side in reaction.split(">>")]
        assert atoms == [len(before), len(after)]
        assert sorted(before) == list("abcdxyz")
        assert sorted(after) == list("abcdxyz" if len(after) == 7 else "abcxyz")
    assert counts["atoms"] == 36 * (6 + 7 + 7)
    assert 0.7 < counts["atoms right"] / counts["atoms"] < 0.85
    assert 0.4 < counts["bridging oxygens right"] / counts["ways"] < 0.65


def test_captured_under_fused_attention_equals_what_the_model_reports():
    model, vocabulary = example.load()
    ids = torch.tensor([[vocabulary[token] for token in example.tokenize(example.REACTION)]])
    model = model.double()  # float32 would compare the two kernels over ten layers, not the weights
    with torch.no_grad(), capture(model) as maps:
        model(ids)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        reported = model(ids, output_attentions=True).attentions
    assert len(maps) == len(reported) == 12
    for attention, wanted in zip(maps, reported, strict=True):
        torch.testing.assert_close(attention.rows(slice(None)), wanted, atol=1e-12, rtol=0)


def test_captured_under_eager_attention_equals_what_the_model_reports():
    model, vocabulary = example.load()
    ids = torch.tensor([[vocabulary[token] for token in example.tokenize(example.REACTION)]])
    model.set_attn_implementation("eager")
    with torch.no_grad(), capture(model) as maps:
        reported = model(ids, output_attentions=True).attentions
    for attention, wanted in zip(maps, reported, strict=True):
        torch.testing.assert_close(attention.rows(slice(None)), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("token", "element"),
    [("C", "C"), ("c", "C"), ("Cl", "Cl"), ("[nH]", "N"), ("[C@@H]", "C"), ("[Na+]", "Na"), ("[13CH3]", "C")],
)
def test_the_element_of_an_atoms_token(token, element):
    assert example.element(token) == element
    assert example.tokenize(f"{token}>>{token}") == ["[CLS]", token, ">>", token, "[SEP]"]


@pytest.mark.parametrize("token", ["(", "=", ".", "1", "#", "%12", "/"])
def test_what_is_no_atom(token):
    assert example.element(token) is None


@pytest.mark.parametrize("text", ["C.C", "Xx>>C", "C >>C"])
def test_what_is_no_reaction_is_refused(text):
    with pytest.raises(ValueError, match="not a reaction"):
        example.tokenize(text)


def test_the_script(tmp_path, monkeypatch, capsys, counts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "count_right", lambda *_: counts)
    example.main()
    printed = capsys.readouterr().out
    assert "7 of 7 atoms agree with the mechanism" in printed
    assert "108 ways, " in printed
    assert (tmp_path / "output" / "atom_mapping.png").stat().st_size > 10_000
