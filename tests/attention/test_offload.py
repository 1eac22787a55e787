"""Maps whose tensors lie elsewhere: the same numbers, nothing left in memory, and no file left behind."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import stat
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_attn_lime import capture
from captum_attn_lime._capture import Keep, record
from captum_attn_lime.attention import (
    AttentionMap,
    DenseMap,
    HeadFusedMap,
    ModifiedScoreMap,
    OffloadedMap,
    ScoreMap,
    WindowedMap,
    offloaded,
)
from captum_attn_lime.errors import FileError, SelectionError, UnreadableAttentionError
from tests.attention.cases import FUSIONS, cases, kernel_log_sums, vectors


def _place(where: str, folder: Path) -> str | Path:
    return "cpu" if where == "cpu" else folder


both = pytest.mark.parametrize("where", ["cpu", "folder"])


def _left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@both
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_verb_gives_the_same(where, tmp_path, data):
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    case = data.draw(cases(dtype=dtype))
    here: AttentionMap = case.map(log_sums=kernel_log_sums(case) if data.draw(st.booleans()) else None, name="layer")
    if data.draw(st.booleans()):
        here = DenseMap(here.dense().to(dtype), name="layer")
    there = offloaded(copy.copy(here), _place(where, tmp_path))
    assert isinstance(there, OffloadedMap)
    assert (there.shape, there.name, there.kind, there.dtype) == (here.shape, "layer", here.kind, here.dtype)
    r, fusion = data.draw(vectors(case.shape)), data.draw(st.sampled_from(sorted(FUSIONS)))
    for a, b in ((here, there), (here.first(1), there.first(1))):
        part = r[: a.shape[0]]
        assert torch.equal(a.dense(), b.dense())
        assert torch.equal(a.rows([0, -1], heads=[0]), b.rows([0, -1], heads=[0]))
        verbs = [AttentionMap.vecmat] + [AttentionMap.residual_vecmat] * (a.shape[2] == a.shape[3])
        for heads in (None, [0]):
            options = {"head_fusion": fusion, "heads": heads}
            # The map that was not moved remembers log-sums, and computes what follows from those.
            for verb in verbs:
                assert torch.allclose(verb(a, part, **options), verb(b, part, **options), rtol=1e-5, atol=3e-5)
        if len(verbs) > 1:
            assert torch.equal(a.reads_itself(), b.reads_itself())


@both
def test_functions_of_position_go_with_their_scores(where, tmp_path):
    query, key = torch.randn(2, 2, 3, 5, 4)
    here = ModifiedScoreMap(
        query, key, score_mod=lambda s, b, h, i, j: s + (i - j) * (h + 1), mask_mod=lambda b, h, i, j: i >= j - b
    )
    there, r = offloaded(here, _place(where, tmp_path)), torch.rand(2, 5)
    assert torch.equal(there.vecmat(r), here.vecmat(r))
    assert torch.equal(there.reads_itself(), here.reads_itself())
    assert torch.equal(there.first(1).dense(), here.first(1).dense())


@both
def test_no_tensor_stays_with_the_map(where, tmp_path):
    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    kept = [weakref.ref(query), weakref.ref(key)]
    attention = offloaded(ScoreMap(query, key), _place(where, tmp_path))
    del query, key
    assert [x() for x in kept] == [None, None]
    assert all(x is None for x in (attention._empty.query, attention._empty.key))
    attention.vecmat(torch.ones(1, 6))
    assert all(x is None for x in (attention._empty.query, attention._empty.key, attention._empty.log_sums))


@both
def test_the_model_may_write_into_what_was_moved_but_not_into_masks(where, tmp_path):
    query, key, mask = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), torch.zeros(6, 6)
    attention = offloaded(ScoreMap(query, key, masks=[mask], name="a.b"), _place(where, tmp_path))
    before = attention.dense()
    query.zero_()
    key.zero_()
    assert torch.equal(attention.dense(), before)
    mask += 1
    for ask in (attention.dense, lambda: attention.vecmat(torch.ones(1, 6))):
        with pytest.raises(UnreadableAttentionError, match=r"wrote into .* of 'a\.b'"):
            ask()


@both
def test_labels_values_and_gradients_come_along(where, tmp_path):
    here = ScoreMap(*torch.randn(2, 2, 2, 3, 4), kind="self", name="layer")
    here.index, here.follows, here.reads, here.mixed = 3, frozenset({1}), frozenset({2}), True
    here.value, here.output_gradient = torch.randn(2, 2, 2, 3, 4)
    there = offloaded(copy.copy(here), _place(where, tmp_path))
    part = there.first(1)
    for x in (there, part):
        assert (x.index, x.follows, x.reads, x.mixed, x.kind) == (3, frozenset({1}), frozenset({2}), True, "self")
    r = torch.rand(2, 3)
    assert torch.equal(there.gated_vecmat(r), here.gated_vecmat(r))
    assert torch.equal(part.gated_vecmat(r[:1]), here.first(1).gated_vecmat(r[:1]))
    there.value = there.output_gradient = None
    with pytest.raises(SelectionError, match="without its values"):
        there.gated_vecmat(r)


def test_windows_and_fused_heads_stay_where_they_are(tmp_path):
    dense = DenseMap(torch.full((1, 1, 2, 2), 0.5), kind="self")
    for attention in (WindowedMap(dense, torch.tensor([[1, 0]]), examples=1), HeadFusedMap(dense)):
        assert offloaded(attention, tmp_path) is attention
    assert _left_in(tmp_path) == []


def test_offloaded_windows_have_the_same_products(tmp_path):
    query, key = torch.randn(2, 3, 2, 4, 8)
    token = torch.randperm(12).reshape(3, 4)
    here = WindowedMap(ScoreMap(query, key, kind="self"), token, examples=1)
    there = WindowedMap(offloaded(ScoreMap(query, key, kind="self"), tmp_path), token, examples=1)
    r = torch.rand(1, 12)
    assert torch.equal(here.dense(), there.dense())
    assert torch.allclose(here.vecmat(r), there.vecmat(r), atol=1e-6)
    for attention in (here, there):
        attention.value, attention.output_gradient = torch.ones(1, 2, 12, 3), torch.arange(72.0).reshape(1, 2, 12, 3)
    assert torch.allclose(here.gated_vecmat(r), there.gated_vecmat(r), rtol=1e-5)


def test_files_hold_the_tensors_and_go_with_the_last_map_that_needs_them(tmp_path):
    attention = offloaded(ScoreMap(torch.randn(1, 2, 8, 4).bfloat16(), torch.randn(1, 1, 8, 4).bfloat16()), tmp_path)
    (folder,) = _left_in(tmp_path)
    assert {f.name: f.stat().st_size for f in folder.iterdir()} == {"query": 2 * 2 * 8 * 4, "key": 2 * 8 * 4}
    part = attention.first(1)
    del attention
    assert _left_in(tmp_path) == [folder]
    assert part.dense().shape == (1, 2, 8, 8)
    del part
    assert _left_in(tmp_path) == []


def test_files_are_gone_after_an_exception(tmp_path):
    def failing() -> None:
        attention = offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4)), tmp_path)
        assert _left_in(tmp_path)
        attention.vecmat(torch.ones(1, 3))

    with pytest.raises(SelectionError, match="one weight per query"):
        failing()
    assert _left_in(tmp_path) == []


ENDING = """
import os, pathlib, sys, torch
from captum_attn_lime.attention import ScoreMap, offloaded
for ending in ("pass", "raise RuntimeError", "raise SystemExit(3)"):  # each in a process of its own, of one import
    child = os.fork()
    if not child:
        kept = offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4)), sys.argv[1])
        print("written" if any(pathlib.Path(sys.argv[1]).iterdir()) else "nothing", flush=True)
        exec(ending)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(os.listdir(sys.argv[1])), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_files_are_gone_when_python_ends(tmp_path):
    done = subprocess.run([sys.executable, "-c", ENDING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["written", "0 0", "written", "1 0", "written", "3 0"], done.stderr


def test_tensors_of_no_contiguous_layout_come_back_as_they_were(tmp_path):
    query = torch.randn(1, 6, 2, 4).transpose(1, 2)
    key = torch.randn(1, 1, 6, 4).expand(1, 2, 6, 4)
    here = ScoreMap(query, key)
    assert torch.equal(offloaded(here, tmp_path).dense(), here.dense())


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_outlive_the_map_and_files_go_with_the_last(tmp_path, again):
    here = ScoreMap(*torch.randn(2, 1, 2, 8, 4))
    attention = offloaded(copy.copy(here), tmp_path)
    copied = again(attention)
    del attention
    assert torch.equal(copied.dense(), here.dense())
    del copied
    assert _left_in(tmp_path) == []


def test_copies_know_what_was_written_into_the_mask(tmp_path):
    mask = torch.zeros(8, 8)
    attention = offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4), masks=[mask]), tmp_path)
    before = pickle.loads(pickle.dumps(attention))
    mask += 1
    assert torch.equal(before.dense(), copy.deepcopy(before).dense())
    with pytest.raises(UnreadableAttentionError, match="wrote into"):
        copy.deepcopy(attention).dense()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX permissions")
def test_folders_are_the_users_alone_whatever_the_mask(tmp_path):
    before = os.umask(0)
    try:
        maps = [offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4)), tmp_path) for _ in range(3)]
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in _left_in(tmp_path)] == [0o700] * len(maps)


@pytest.mark.parametrize("damage", ["cut off", "gone", "longer"])
def test_files_are_verified_when_they_are_read(tmp_path, damage):
    attention = offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4)), tmp_path)
    (file,) = tmp_path.glob("*/key")
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:-4] if damage == "cut off" else whole * 2)
    with pytest.raises(FileError, match="Capture again"):
        attention.dense()


def test_a_disk_without_room_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    class Full(np.ndarray):
        def tofile(self, *_):
            raise OSError("8 requested and 0 written")

    real = torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: real(self).view(Full))
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.zeros(1, 3, 8)
    with pytest.raises(FileError, match="another folder"), capture(layer, offload=tmp_path):
        layer(x, x, x)
    gc.collect()
    assert _left_in(tmp_path) == []
    folder = tmp_path / "gone"
    folder.mkdir()
    keep = Keep(offload=folder)
    folder.rmdir()
    with pytest.raises(FileError, match="gone"), record(layer, keep=keep):
        layer(x, x, x)


def test_an_interrupt_while_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise KeyboardInterrupt

    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4)), tmp_path)
    gc.collect()
    assert _left_in(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_leaves_the_files(tmp_path):
    attention = offloaded(ScoreMap(*torch.randn(2, 1, 2, 8, 4)), tmp_path)
    child = os.fork()
    if not child:
        del attention
        os._exit(0)
    os.waitpid(child, 0)
    assert attention.dense().shape == (1, 2, 8, 8)
