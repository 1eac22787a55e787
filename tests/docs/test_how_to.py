"""The how-to pages are true: their code runs from top to bottom and prints what they show."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

from tests import ROOT

PAGES = sorted((ROOT / "docs" / "how_to").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page):
    torch.manual_seed(0)
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"^```(\w+)", text, flags=re.MULTILINE)) == {"pycon"}
    code = "\n".join(re.findall(r"^```pycon\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {"__name__": "__main__"}, page.stem, str(page), 0)
    report: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append)
    assert result.attempted
    assert not result.failed, "".join(report)


def test_the_architecture_page_names_every_wing_and_every_how_to_page():
    import captum_attn_lime

    root = Path(captum_attn_lime.__file__).parent
    wings = {p.stem for p in root.iterdir() if (p.is_dir() and (p / "__init__.py").exists()) or p.suffix == ".py"}
    text = (PAGES[0].parent.parent / "architecture.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == wings - {"__init__"}
    assert {f"{p.stem}.md" for p in PAGES} <= set(re.findall(r"\(how_to/(\w+\.md)\)", text))
