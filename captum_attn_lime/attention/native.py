"""The optional compiled kernel for products with an attention map: how it is built, loaded and called.

Besides the log-sum-exp that `_fused.py` needs, PyTorch's fused kernels compute a product with values and each row's
maximum score, which is unnecessary when the row's log-sum is known. `column_sums.cpp` computes neither.

It is plain C++ with a C interface, called through ctypes: it compiles in about a second, without PyTorch's headers, and
the binary works with every version of PyTorch and Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from captum_attn_lime._util.files import write_whole
from captum_attn_lime.errors import CompilerError, InputError

_SOURCE = Path(__file__).with_name("column_sums.cpp")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
# By the CPU capability that PyTorch detects. Not -march=native, since several machines may share the folder.
_CAPABILITY_FLAGS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
}
_FAR = 2**30  # larger than any distance between tokens

_kernel: Callable[..., int] | None = None


def enable() -> None:
    """Compile the kernel, or load it from the cache, and use it in this process from now on.

    It needs GCC or Clang: the command in ``CXX``, otherwise ``c++``, ``g++`` or ``clang++``. The binary is cached in
    PyTorch's folder for extensions, ``TORCH_EXTENSIONS_DIR``, by default ``~/.cache/torch_extensions``. A damaged
    binary is compiled again. If other users could change the folder or the file, nothing is cached or loaded there, and
    each process compiles the kernel, which takes about a second. To cache it, set ``TORCH_EXTENSIONS_DIR`` to a private
    folder.

    Raises:
        CompilerError: There is no compiler, it fails, or its binary cannot be loaded.
    """
    global _kernel
    if _kernel is None:
        _kernel = _load()


def disable() -> None:
    """Return to PyTorch's kernels; a later call of `enable` is free."""
    global _kernel
    _kernel = None


def is_enabled() -> bool:
    """Return whether the kernel is in use."""
    return _kernel is not None


def column_sums(
    query: Tensor,
    key: Tensor,
    logs: Tensor,
    bias: Tensor | None,
    *,
    scale: float,
    is_causal: bool,
    window: int | None = None,
) -> Tensor:
    """Return the mean over heads of Σ_i exp(scale · q_i·k_j + bias_j + logs_i), (B, K), in memory linear in the tokens.

    With logs_i = log r_i - lse_i, where lse_i is the log-sum-exp of row i's scores, this is rᵀA. Exponentials are not
    rescaled, so that sums beyond the range of float32 become infinite; with such logs this cannot happen. The result
    does not depend on the number of threads, which is PyTorch's.

    Args:
        query: (B, H, Q, d), float32 on the CPU, with any strides; copied if the last dimension is not contiguous.
        key: (B, Hk, K, d), where Hk divides H; otherwise like the query.
        logs: (B, H, Q), float32; rows with -1e29 or less have weight zero and are skipped.
        bias: Added to the scores per key, (B or 1, H or 1, K), float32, -inf where a key is masked; or None.
        scale: Factor on the scores.
        is_causal: Whether query i attends to keys 0 to i only; needs Q = K.
        window: If given, query i attends only to keys after i - window; all others are skipped.

    Raises:
        CompilerError: The kernel is not enabled.
        InputError: The tensors have other shapes, dtypes or devices.
    """
    if _kernel is None:
        raise CompilerError("the compiled kernel is not in use; call captum_attn_lime.attention.native.enable() first.")
    _check(query, key, logs, bias, is_causal, window)
    batch, heads, queries, size = query.shape
    key_heads, keys = key.shape[1:3]
    # These names keep the tensors alive while the kernel reads their memory.
    query, key, logs = _rows_contiguous(query), _rows_contiguous(key), logs.contiguous()
    bias = None if bias is None else _rows_contiguous(bias)
    sums = torch.zeros(batch, heads, keys, dtype=torch.float64, device="cpu")
    if min(batch, heads, queries, keys) > 0:
        over = (0, 0) if bias is None else [0 if bias.shape[i] == 1 else bias.stride(i) for i in (0, 1)]
        failed = _kernel(
            query.data_ptr(),
            key.data_ptr(),
            logs.data_ptr(),
            None if bias is None else bias.data_ptr(),
            sums.data_ptr(),
            (ctypes.c_int64 * 6)(batch, heads, key_heads, queries, keys, size),
            (ctypes.c_int64 * 8)(*query.stride()[:3], *key.stride()[:3], *over),
            scale,
            0 if is_causal else -_FAR,
            _FAR if window is None else min(window - 1, _FAR),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a product with attention of shape {(batch, heads, queries, keys)}.")
    return sums.mean(dim=1).to(torch.float32)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _check(query: Tensor, key: Tensor, logs: Tensor, bias: Tensor | None, is_causal: bool, window: int | None) -> None:
    """Raise for tensors that the kernel, which reads raw memory, would read incorrectly or out of bounds."""
    given = {"query": query, "key": key, "logs": logs, **({} if bias is None else {"bias": bias})}
    for name, x in given.items():
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise InputError(f"the kernel needs float32 on the CPU, but {name} is {x.dtype} on {x.device}.")
    shapes = {name: tuple(x.shape) for name, x in given.items()}
    fits = query.dim() == key.dim() == 4 and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    fits = fits and key.shape[1] > 0 and query.shape[1] % key.shape[1] == 0 and logs.shape == query.shape[:3]
    if fits and bias is not None:
        fits = bias.dim() == 3 and bias.shape[2] == key.shape[2]
        fits = fits and all(bias.shape[i] in (1, query.shape[i]) for i in (0, 1))
    if not fits:
        raise InputError(
            "the kernel needs query (B, H, Q, d), key (B, Hk, K, d) with Hk dividing H, logs (B, H, Q) and bias "
            f"(B or 1, H or 1, K), but got {shapes}."
        )
    if is_causal and query.shape[2] != key.shape[2]:
        raise InputError(f"causal attention needs as many queries as keys here, but got {shapes}.")
    if window is not None and window < 1:
        raise InputError(f"a window needs at least one token, but got {window}.")


def _load() -> Callable[..., int]:
    """Return the kernel's function, from an intact cached binary or newly compiled."""
    # ATEN_CPU_CAPABILITY overrides the capability here, as in PyTorch.
    capability = torch.backends.cpu.get_cpu_capability()
    flags = (*_FLAGS, *_CAPABILITY_FLAGS.get(capability, ()))
    try:
        made_of = "\0".join((_SOURCE.read_text(encoding="utf-8"), *flags, sys.platform, platform.machine()))
        name = f"column_sums_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}_"
        folder = _cache_folder()
        for code in () if folder is None else _kept(folder, name):
            # Compiled again if the runtime library of its compiler is missing.
            with contextlib.suppress(OSError, AttributeError):
                return _function(code, folder)
        code = _compile(flags, folder)
        try:
            function = _function(code, folder)
        except (OSError, AttributeError) as error:
            raise CompilerError(f"the kernel was compiled, but cannot be loaded: {error}") from error
    except OSError as error:
        raise CompilerError(
            f"the kernel cannot be built: {error}. It needs a folder for temporary files (TMPDIR) with free space, on "
            "a file system that allows execution. Everything works without the kernel, only slower."
        ) from error
    if folder is not None:
        with contextlib.suppress(OSError):  # otherwise the next process compiles it again
            write_whole(folder / f"{name}{hashlib.sha256(code).hexdigest()}.so", code, mode=0o600)
    return function


def _kept(folder: Path, name: str) -> Iterator[bytes]:
    """Yield the cached binaries that are intact; delete the others.

    The file name ends with a hash of the content, which reveals truncated or changed files. The hash does not protect
    from other users, who could compute it too; the owner and the permissions do.
    """
    for path in sorted(folder.glob(f"{name}*.so")):
        code = _read_private(path)
        if code is not None and path.stem == name + hashlib.sha256(code).hexdigest():
            yield code
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _read_private(path: Path) -> bytes | None:
    """Return the bytes of a regular file that only the user can write; otherwise None."""
    try:
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        # Check the open file, not the path, which may refer to another file by now.
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            return None
        with open(opened, "rb", closefd=False) as file:
            return file.read()
    except OSError:
        return None
    finally:
        os.close(opened)


def _function(code: bytes, folder: Path | None) -> Callable[..., int]:
    """Load the kernel from a private copy that nobody can change while it is in use."""
    with _workplace(folder) as place:
        copy = Path(place) / "column_sums.so"
        copy.write_bytes(code)
        function = ctypes.CDLL(str(copy)).captum_attn_lime_column_sums
    numbers = ctypes.POINTER(ctypes.c_int64)
    function.argtypes = [ctypes.c_void_p] * 5 + [numbers] * 2 + [ctypes.c_double] + [ctypes.c_int64] * 3
    function.restype = ctypes.c_int
    return function


def _workplace(folder: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Return a new private folder: in the cache, or among the temporary files if the cache is not writable.

    The cache comes first, because temporary folders are often mounted without permission to execute.
    """
    if folder is not None:
        with contextlib.suppress(OSError):
            return tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def _cache_folder() -> Path | None:
    """Return the cache folder of the compiled kernel; None if others than the user could change it."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = root or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch_extensions")
    try:
        folder = Path(root).expanduser().absolute() / "captum_attn_lime"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or not _is_private(status):
            return None
        folder = folder.resolve()
        return folder if all(_is_safe_above(above) for above in folder.parents) else None
    except (OSError, ValueError, RuntimeError):  # RuntimeError if there is no home folder
        return None


def _is_private(status: os.stat_result) -> bool:
    """Return whether a file or folder belongs to the user, and nobody else may write to it."""
    if not hasattr(os, "geteuid"):
        return True  # Windows stores permissions elsewhere
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_safe_above(folder: Path) -> bool:
    """Return whether only the user and root can replace a subfolder of this folder."""
    if not hasattr(os, "geteuid"):
        return True
    status = folder.stat()
    is_sticky = bool(status.st_mode & stat.S_ISVTX)  # like /tmp: only the owner of an entry can rename it
    others = stat.S_IWOTH if _is_own_group(status.st_gid) else stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid in (0, os.geteuid()) and (is_sticky or not status.st_mode & others)


def _is_own_group(group: int) -> bool:
    """Return whether a group has the user as its only member, like the per-user groups of many systems."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user and set(found.gr_mem) <= {user}


def _compile(flags: tuple[str, ...], folder: Path | None) -> bytes:
    """Return the compiled kernel, the content of a shared library."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompilerError(f"CXX={os.environ['CXX']!r} is not a valid command: {error}.") from error
    found = [named] if named else [[c] for c in ("c++", "g++", "clang++")]
    compiler = next((c for c in found if shutil.which(c[0])), None)
    if compiler is None:
        raise CompilerError(
            f"the kernel needs a C++ compiler, but none of {[c[0] for c in found]} is on the PATH. Install GCC or "
            "Clang (apt install g++, dnf install gcc-c++, conda install cxx-compiler, xcode-select --install), or name "
            "one in CXX. Everything works without the kernel, only slower."
        )
    with _workplace(folder) as place:
        target = Path(place) / "column_sums.so"
        command = [*compiler, *flags, "-o", str(target), str(_SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise CompilerError(f"the compiler cannot be run: {shlex.join(command)}: {error}") from error
        if done.returncode == 0 and target.is_file():
            return target.read_bytes()
    raise CompilerError(
        f"{shlex.join(command)} failed with exit code {done.returncode}; GCC or Clang with C++17 is needed. "
        f"Its first messages:\n{done.stderr[:2000]}"
    )
