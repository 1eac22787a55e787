"""README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from captum_attn_lime import WordTokenizer
from tests.families import HandWritten

README = Path(__file__).parent.parent / "README.md"


class TwoClasses(HandWritten):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask)[:, :2]


def test_the_code(tmp_path, monkeypatch, capsys):
    five_lines, check = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"model": TwoClasses().eval(), "tokenizer": WordTokenizer.fit(["the film starts predictable"])}
    exec(five_lines, names)
    page = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert "promisingly" in page
    assert isinstance(names["rollout"], torch.Tensor)
    exec(check, names)
    printed = capsys.readouterr().out
    assert printed.startswith("3 attention calls\n    0  model.layers.0")
    assert "ok   weights times values give the call's output" in printed


def test_every_file_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / path).is_file(), path
