"""README's code runs as it stands."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from captum_attn_lime import WordTokenizer
from tests import ROOT
from tests.families import HandWritten

README = ROOT / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


class TwoClasses(HandWritten):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask)[:, :2]


def test_the_code(tmp_path, monkeypatch, capsys):
    five_lines, _, check = snippets()
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


@pytest.mark.filterwarnings("ignore:LIME")  # of a random model
def test_the_code_for_pictures(tmp_path, monkeypatch):
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=300)
    vit = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(40, 40, 3)).save("cat.jpg")
    names = {"vit": vit, "processor": ViTImageProcessor(size=32)}
    exec("from captum_attn_lime import AttentionAttribution, compare\n" + snippets()[1], names)
    assert names["x"].inputs.shape == (1, 3, 32, 32)
    assert list(names["lime"].local_exp) == [281]
    assert len(names["lime"].local_exp[281]) == 16


def test_every_file_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / path).is_file(), path
