"""The compiled kernel's file: verified when loaded, built anew when broken, and never another user's."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from captum_attn_lime.attention import native
from captum_attn_lime.errors import CompilerError

needs_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def _in_children(*functions):
    """Start each function in a process of its own and return the processes; a false answer is a failure."""
    started = []
    for function in functions:
        started.append(os.fork())
        if not started[-1]:
            failed = True
            try:
                failed = not function()
            finally:
                os._exit(failed)  # and nothing of the tests' own ending is run
    return started


def _succeed(processes) -> bool:
    return [os.waitpid(process, 0)[1] for process in processes] == [0] * len(processes)


def _loads(monkeypatch, compiler: str | None = None) -> bool:
    """Whether the kernel can be enabled anew, with another compiler where one is named."""
    native.disable()
    with monkeypatch.context() as patch:
        if compiler is not None:
            patch.setenv("CXX", compiler)
        try:
            native.enable()
        except CompilerError:
            return False
    return native.is_enabled()


def _kept(extensions: Path) -> Path:
    (kept,) = (extensions / "captum_attn_lime").iterdir()
    return kept


def _flipped(code: bytes, at: int) -> bytes:
    return code[:at] + bytes([code[at] ^ 0xFF]) + code[at + 1 :]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The bytes of a compiled kernel, and the name under which it is kept."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        try:
            native.enable()
        except CompilerError as error:
            pytest.skip(str(error))
        finally:
            native.disable()
    return _kept(folder).name, _kept(folder).read_bytes()


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    """A folder to compile into."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    yield tmp_path
    native.disable()


@pytest.fixture
def rebuilt(compiled, extensions, monkeypatch):
    """Put a damaged file in its place and return it, with a compiler that copies the good one."""
    name, code = compiled
    good, script = extensions / "good.so", extensions / "copy.py"
    good.write_bytes(code)
    script.write_text(f"import shutil, sys; shutil.copy({str(good)!r}, sys.argv[sys.argv.index('-o') + 1])")
    monkeypatch.setenv("CXX", f"{sys.executable} {script}")
    folder = extensions / "captum_attn_lime"
    folder.mkdir(mode=0o700)
    return folder / name


@pytest.mark.parametrize(
    "damage", ["cut off", "emptied", "garbage", "a bit flipped", "the last byte", "zeros", "a folder"]
)
def test_a_damaged_file_is_built_anew(rebuilt, compiled, damage, monkeypatch):
    _, code = compiled
    damaged = {
        "cut off": code[:4000],
        "emptied": b"",
        "garbage": bytes(range(256)) * (len(code) // 256),
        "a bit flipped": _flipped(code, len(code) // 2),
        "the last byte": _flipped(code, len(code) - 1),
        "zeros": code[:1024] + bytes(len(code) - 1024),
    }
    if damage == "a folder":
        rebuilt.mkdir()
        assert _loads(monkeypatch)
        return
    rebuilt.write_bytes(damaged[damage])
    assert not _loads(monkeypatch, "no-such-compiler")  # it is not loaded
    rebuilt.write_bytes(damaged[damage])
    assert _loads(monkeypatch)
    assert rebuilt.read_bytes() == code
    assert [x.name for x in rebuilt.parent.iterdir()] == [rebuilt.name]
    assert _loads(monkeypatch, "no-such-compiler")


@needs_forks
def test_a_file_cut_off_while_it_is_in_use_harms_nothing(rebuilt, compiled):
    rebuilt.write_bytes(compiled[1])
    rebuilt.chmod(0o600)
    ones = torch.ones(1, 1, 2, 1)

    def sums():
        return native.column_sums(ones, ones, torch.zeros(1, 1, 2), None, scale=1.0, is_causal=False)

    def use():
        native.enable()
        os.truncate(rebuilt, 100)
        first = sums()
        native.disable()
        native.enable()
        return torch.equal(sums(), first)

    assert _succeed(_in_children(use))
    assert rebuilt.read_bytes() == compiled[1]


needs_users = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions")
_OTHER = 12345  # a user who is not us


@needs_users
@pytest.mark.parametrize(
    "whose", ["file for all", "file for the group", "folder for all", "folder for the group", "link"]
)
def test_what_others_can_write_is_not_loaded(rebuilt, compiled, whose, extensions, monkeypatch):
    rebuilt.write_bytes(compiled[1])
    rebuilt.chmod(0o600)
    assert _loads(monkeypatch, "no-such-compiler")
    folder = rebuilt.parent
    if whose == "link":
        folder.rename(extensions / "elsewhere")
        folder.symlink_to(extensions / "elsewhere")
    else:
        changed, bit = (rebuilt if "file" in whose else folder), (0o002 if "all" in whose else 0o020)
        changed.chmod(changed.stat().st_mode | bit)
    assert not _loads(monkeypatch, "no-such-compiler")
    assert _loads(monkeypatch)
    if "file" in whose:
        assert stat.S_IMODE(rebuilt.stat().st_mode) == 0o600
        assert _loads(monkeypatch, "no-such-compiler")


@needs_users
@pytest.mark.parametrize("whose", ["file", "folder", "folder above"])
def test_what_belongs_to_others_is_not_loaded(rebuilt, compiled, whose, extensions, monkeypatch):
    if os.geteuid():
        pytest.skip("only root can give files away")
    rebuilt.write_bytes(compiled[1])
    rebuilt.chmod(0o600)
    os.chown({"file": rebuilt, "folder": rebuilt.parent, "folder above": extensions}[whose], _OTHER, _OTHER)
    assert not _loads(monkeypatch, "no-such-compiler")
    assert _loads(monkeypatch)


@needs_users
def test_in_a_folder_that_all_share_each_process_compiles_for_itself(rebuilt, compiled, extensions, monkeypatch):
    rebuilt.write_bytes(compiled[1])
    rebuilt.chmod(0o600)
    extensions.chmod(0o777)
    assert not _loads(monkeypatch, "no-such-compiler")
    assert _loads(monkeypatch)
    extensions.chmod(0o1777)  # as /tmp: what is there belongs to who made it
    assert _loads(monkeypatch, "no-such-compiler")


@needs_users
def test_what_is_kept_is_the_users_alone_whatever_the_mask(rebuilt, extensions):
    rebuilt.parent.rmdir()
    before = os.umask(0)
    try:
        native.enable()
    finally:
        os.umask(before)
    assert stat.S_IMODE(rebuilt.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(rebuilt.stat().st_mode) == 0o600


@needs_forks
def test_two_processes_at_once(rebuilt):
    def use():
        native.enable()
        return native.is_enabled()

    assert _succeed(_in_children(use, use))
    assert [x.name for x in rebuilt.parent.iterdir()] == [rebuilt.name]


def test_a_library_without_the_function_and_other_commands(extensions, monkeypatch):
    script = extensions / "other.py"
    script.write_text("import math, shutil, sys; shutil.copy(math.__file__, sys.argv[sys.argv.index('-o') + 1])")
    for command, said in (
        (f"{sys.executable} {script}", "cannot be loaded"),
        ('c++ "-O', "is not a valid command"),
        (str(script), "none of"),
    ):
        monkeypatch.setenv("CXX", command)
        with pytest.raises(CompilerError, match=said):
            native.enable()
    script.chmod(0o700)  # not a program
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(CompilerError, match="cannot be run"):
        native.enable()
    assert not (extensions / "captum_attn_lime").exists() or not any((extensions / "captum_attn_lime").iterdir())


def test_no_room_for_the_compiled_file(rebuilt, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CompilerError, match="No space left"):
        native.enable()
    assert list(rebuilt.parent.iterdir()) == []
