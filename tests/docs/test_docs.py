"""The pages that are made from the tests' tables have every row."""

from __future__ import annotations

import pytest

from tests import ROOT
from tests.families import FAMILIES, build

PAGE = ROOT / "docs" / "models.md"


@pytest.mark.parametrize("make", FAMILIES, ids=lambda f: f.__name__)
def test_which_models_lists_every_family(make):
    family = build(make)
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {family.title} |")]
    assert len(rows) == 1, "run `make models`"
    in_double, in_single = (float(cell) for cell in rows[0].strip("| ").split(" | ")[-2:])
    assert in_single <= 1e-6
    assert in_double <= 1e-6  # a library may round to float32


def test_it_has_no_row_that_is_gone():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len([row for row in rows if not row.startswith("| model |")]) == len(FAMILIES), "run `make models`"
