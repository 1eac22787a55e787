"""Files are whole or as they were: pages, pictures, and what writes them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from captum_attn_lime import LimeTabular, TabularAdapter, compare, plot
from captum_attn_lime._util.files import encodable, write_whole
from captum_attn_lime.adapters import Encoding
from captum_attn_lime.errors import ExplanationError, FileError

needs_users = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions")


def _comparison(second="b"):
    encoding = Encoding(torch.ones(1, 2), (), torch.zeros(1, 2), torch.tensor([[0, 1]]), (("a", second),))
    return compare({"m": [1.0, 2.0]}, encoding, k=1)


def _explanation():
    adapter = TabularAdapter(torch.nn.Linear(2, 2), feature_names=["x", "y"])
    lime = LimeTabular(adapter, np.random.default_rng(0).normal(size=(50, 2)))
    return lime.explain(np.zeros(2), 1, num_samples=50)


WRITERS = {
    "page": lambda path: _comparison().save_html(path),
    "lime's page": lambda path: _explanation().save_to_file(str(path)),
    "picture": lambda path: plot.save(Figure(), path, format="png"),
    "text": lambda path: write_whole(path, "text"),
}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


def _left_in(folder: Path) -> list[str]:
    return sorted(x.name for x in folder.iterdir())


@writers
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_was_there_stays_until_the_new_one_is_whole(write, error, step, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    page = tmp_path / "page.html"
    page.write_text("the page of yesterday")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt):
            write(page)
    assert page.read_text() == "the page of yesterday"
    assert _left_in(tmp_path) == ["page.html"]
    write(page)
    assert page.read_bytes() != b"the page of yesterday"
    assert _left_in(tmp_path) == ["page.html"]


@writers
def test_a_place_that_cannot_be_written_is_named(write, tmp_path):
    (tmp_path / "folder").mkdir()
    for path, said in (
        (tmp_path / "none" / "page.html", "the folder .*none does not exist"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "a\0b", "NUL"),
        (tmp_path / ("n" * 300), "Nothing was written"),
    ):
        with pytest.raises(FileError, match=said) as caught:
            write(path)
        assert isinstance(caught.value, (ExplanationError, OSError))
    assert _left_in(tmp_path) == ["folder"]


@writers
def test_a_full_disk(write, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(FileError, match="No space"):
        write(Path("/dev/full"))
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)  # a device is written to, and never replaced


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("the page of yesterday")
    explanation = _explanation()
    with pytest.raises(KeyError):
        explanation.save_to_file(str(page), labels=[7])
    with pytest.raises(ValueError, match="format"):
        plot.save(Figure(), page, format="no such format")
    assert page.read_text() == "the page of yesterday"
    assert _left_in(tmp_path) == ["page.html"]


@pytest.mark.parametrize("name", ["\ud800", "film\udc80", "\udc00\ud800"])
def test_half_a_surrogate_pair_is_written_as_a_replacement_character(name, tmp_path):
    page = tmp_path / "page.html"
    comparison = _comparison(name)
    assert comparison.save_html(page) == page
    assert page.read_text(encoding="utf-8") == comparison.to_html()
    assert "\ufffd" in page.read_text(encoding="utf-8")
    comparison._repr_html_().encode()
    scores = pd.DataFrame({"rollout": [0.2, 0.8]}, index=[name, "film"])
    plot.save(plot.bars(scores), tmp_path / "bars.png")
    plot.save(plot.text([name, "film"], [0.2, 0.8]), tmp_path / "text.png")


def test_encodable_changes_nothing_else():
    text = "a\0é漢\U0001f600\ufeff\uffff"
    assert encodable(text) == text
    assert encodable("\ufefftext") == "\ufefftext"
    assert encodable("\ud83d\ude00 \ud83dx") == "\U0001f600 \ufffdx"


@needs_users
def test_permissions_and_links(tmp_path):
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    before = os.umask(0o027)
    try:
        write_whole(page, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(page.stat().st_mode) == 0o640
    page.chmod(0o604)
    link.symlink_to(page)
    assert write_whole(link, "newer") == link
    assert link.is_symlink()
    assert page.read_text() == "newer"
    assert stat.S_IMODE(page.stat().st_mode) == 0o604
    link.unlink()
    link.symlink_to(tmp_path / "later.html")  # leads nowhere yet, as with open()
    write_whole(link, "through the link")
    assert (tmp_path / "later.html").read_text() == "through the link"


def test_pictures_are_those_of_savefig(tmp_path):
    figure = Figure(figsize=(1, 1))
    ax = figure.subfigures(1, 2)[0].subplots()
    figure.savefig(tmp_path / "a.png", dpi=50)
    assert plot.save(ax, tmp_path / "b.png", dpi=50).read_bytes() == (tmp_path / "a.png").read_bytes()
    assert plot.save(figure, tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    assert plot.save(figure, tmp_path / "d") == tmp_path / "d.png"
