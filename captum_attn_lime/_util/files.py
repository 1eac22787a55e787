"""Atomic file writes: an existing file stays until the new one is complete."""

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

# Errors of a file system that does not support flushing; any other error means that data may be lost.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def write_whole(
    path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], object], *, mode: int = 0o666
) -> Path:
    """Write a file atomically, by renaming a temporary file in the same folder, and return its path.

    After any failure, such as a full disk or an interrupt, an existing file is unchanged and no temporary file remains.
    A symbolic link is followed, and its target replaced. A new file gets default permissions; an existing file keeps
    its permissions.

    Args:
        path: Where to write.
        content: Bytes; text, written as UTF-8 with a replacement character for what cannot be encoded (half of a
            surrogate pair); or a function that writes to an open file.
        mode: Permissions of a new file, before the umask.

    Raises:
        FileError: The folder does not exist, the path is a folder, or the file cannot be written.

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
    r"""Return a text that UTF-8 can encode: surrogate pairs are joined, and lone surrogates replaced.

    Example:
        >>> encodable("a\ud800b") == "a\ufffdb", encodable("\ud83d\ude00") == "\U0001f600"
        (True, True)
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def _opened(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces the path if the block ends without an exception."""
    before = path.stat().st_mode if path.exists() else None
    if before is not None and not stat.S_ISREG(before):
        with path.open("wb") as file:  # a device or a pipe has no content to lose; a folder raises
            yield file
        return
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the existing file is read-only", str(path))
    # Independent of the file's name, which may already have the maximum length.
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
            beside.unlink(missing_ok=True)  # an interrupt may have come before the first
    _flush_folder(path.parent)


def _to_disk(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _flush_folder(folder: Path) -> None:
    """Flush a rename to disk; the file is complete in any case, so errors are ignored."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)  # fails on Windows, where renames are immediate
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _message(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"{str(path)!r} is not a valid path: it contains a NUL character."
    if isinstance(error, FileNotFoundError):
        return f"{path} cannot be written: the folder {path.parent} does not exist. Create it first."
    if isinstance(error, IsADirectoryError):
        return f"{path} cannot be written: it is a folder. Pass the path of a file in it."
    kept = "The existing file is unchanged." if os.path.lexists(path) else "Nothing was written."
    return f"{path} cannot be written: {error.strerror or error}. {kept}"
