"""Writing files whole: what was there stays until the new file is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from captum_attn_lime.errors import FileError

# A file system that cannot flush a file says so by one of these; any other failure means that data may be lost.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def write_whole(
    path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], object], *, mode: int = 0o666
) -> Path:
    """Write a file under another name beside its place, then rename it, and return its path.

    Whatever goes wrong on the way, a full disk or an interrupt, the file that was there stays as it was, and nothing is
    left beside it. A link is followed, and the file it leads to is replaced. A new file gets the permissions that any
    new file gets; one that was there keeps its own.

    Args:
        path: Where to write.
        content: Bytes; text, which is written as UTF-8 with a replacement character for what has no encoding (half of a
            surrogate pair); or a function that writes to an open file.
        mode: Permissions of a new file, before the user's mask.

    Raises:
        FileError: The folder does not exist, a folder has that name, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "page.html", "<p>").read_text()
        '<p>'
    """
    shown = Path(path)
    try:
        with _opened(Path(os.path.realpath(shown)), mode) as file:
            if callable(content):
                content(file)
            else:
                file.write(content if isinstance(content, bytes) else encodable(content).encode("utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) or "null byte" in str(error):
            raise FileError(_message(shown, error)) from error
        raise
    return shown


def encodable(text: str) -> str:
    r"""Return a text with a replacement character for what UTF-8 cannot encode; two halves of a pair become one.

    Example:
        >>> encodable("a\ud800b") == "a\ufffdb", encodable("\ud83d\ude00") == "\U0001f600"
        (True, True)
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def _opened(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Open a file that takes its place at the end of the block, if that is reached."""
    before = path.stat().st_mode if path.exists() else None
    if before is not None and not stat.S_ISREG(before):
        with path.open("wb") as file:  # a device or a pipe holds nothing that could be lost; a folder raises
            yield file
        return
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file that is there must not be written to", str(path))
    # Not made of the file's own name, which may be as long as names can be.
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            _to_disk(file.fileno())
        if before is not None:
            beside.chmod(stat.S_IMODE(before))
        beside.replace(path)
    finally:
        try:
            beside.unlink(missing_ok=True)
        finally:
            beside.unlink(missing_ok=True)  # where an interrupt came before the first
    _flush_folder(path.parent)


def _to_disk(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _flush_folder(folder: Path) -> None:
    """Make a renaming last; the file is whole in any case, so a system that cannot do it may go without."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)  # Windows opens no folders, and renames at once
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _message(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"{str(path)!r} is no path: it has a NUL character."
    if isinstance(error, FileNotFoundError):
        return f"{path} cannot be written: the folder {path.parent} does not exist. Make it first."
    if isinstance(error, IsADirectoryError):
        return f"{path} cannot be written: it is a folder. Give the path of a file in it."
    kept = "What was there is unchanged." if os.path.lexists(path) else "Nothing was written."
    return f"{path} cannot be written: {error.strerror or error}. {kept}"
