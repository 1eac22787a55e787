"""docs/lime.md is true: the code of each section runs after the set-up and prints what the page shows."""

from __future__ import annotations

import doctest
import re

import pytest
import torch

from tests import ROOT

PAGE = ROOT / "docs" / "lime.md"
TEXT = PAGE.read_text(encoding="utf-8")
SET_UP, *TRAPS = re.split(r"^(?=### )", TEXT, flags=re.MULTILINE)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def title(section: str) -> str:
    return section.partition("\n")[0].removeprefix("### ")


def code_of(section: str) -> str:
    """The section with empty lines in place of everything but code, so that line numbers stay."""
    lines, is_code = [], False
    for line in section.splitlines():
        if line.startswith("```"):
            is_code, line = line == "```pycon", ""
        lines.append(line if is_code else "")
    return "\n".join(lines)


def run(section: str, names: dict[str, object]) -> dict[str, object]:
    """Run a section's code from these names, and return the names that it leaves."""
    line = TEXT[: TEXT.index(section)].count("\n")
    test = doctest.DocTestParser().get_doctest(code_of(section), dict(names), title(section), str(PAGE), line)
    assert test.examples, "a section without code"
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.append, clear_globs=False)
    assert not result.failed, "".join(report)
    return test.globs


@pytest.fixture(scope="module")
def set_up() -> dict[str, object]:
    return run(SET_UP, {"__name__": "__main__"})


@pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.TruncationWarning")
@pytest.mark.filterwarnings("ignore:unclosed file.*bundle.js:ResourceWarning")  # lime's own
@pytest.mark.parametrize("section", TRAPS, ids=title)
def test_a_trap(section, set_up):
    torch.manual_seed(0)
    run(section, set_up)


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub and in MyST."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_contents_list_every_trap_in_its_order():
    listed = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)", SET_UP, flags=re.MULTILINE)
    assert listed == [(title(section), slug(title(section))) for section in TRAPS]


def test_all_code_on_the_page_runs():
    assert set(re.findall(r"^```(\w+)", TEXT, flags=re.MULTILINE)) == {"pycon"}
    assert TEXT.count("\n### ") == len(TRAPS)
