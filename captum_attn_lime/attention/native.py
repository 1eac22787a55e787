"""The optional compiled kernel for products with an attention map: building it, loading it, and its one function.

PyTorch's fused kernels compute a product with values beside the log-sum-exp that `fused.py` asks them for, and look for
each row's greatest score, which is not needed where the row's log-sum is known. `column_sums.cpp` does neither.

It is plain C++ behind a C function, called through ctypes: that compiles in about a second, without PyTorch's headers,
and what was compiled serves every version of PyTorch and Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from captum_attn_lime.errors import CompilerError, InputError

_SOURCE = Path(__file__).with_name("column_sums.cpp")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
# By what PyTorch found this processor able to do. Not -march=native: the folder may be shared by several machines.
_CAPABILITY_FLAGS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
}
_FAR = 2**30  # further apart than any two tokens

_kernel: Callable[..., int] | None = None


def enable() -> None:
    """Compile the kernel, or load it where it has been compiled before, and use it from now on in this process.

    It needs GCC or Clang, which is looked for in ``CXX`` and as ``c++``, ``g++`` and ``clang++``. The compiled file is
    kept where PyTorch keeps its extensions: in ``TORCH_EXTENSIONS_DIR``, by default ``~/.cache/torch_extensions``.

    Raises:
        CompilerError: There is no compiler, or it fails.
    """
    global _kernel
    if _kernel is None:
        _kernel = _load()


def disable() -> None:
    """Go back to PyTorch's own kernels; `enable` costs nothing after that."""
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

    With logs_i = log r_i - lse_i, lse_i being the log-sum-exp of row i's scores, it is rᵀA. Exponents are taken as they
    are, so a sum that float32 does not hold is infinite; with such logs none is. The result does not depend on the
    number of threads, which is PyTorch's.

    Args:
        query: (B, H, Q, d), float32 on the CPU; of any strides, but copied where the last dimension is not contiguous.
        key: (B, Hk, K, d) where Hk divides H; as the query.
        logs: (B, H, Q), float32; -1e29 or less for a row that counts nothing, which is not computed.
        bias: Added to the scores per key, (B or 1, H or 1, K), float32, -inf where a key is masked; or None.
        scale: Factor on the scores.
        is_causal: Query i sees keys 0 to i only; needs Q = K.
        window: Query i sees keys after i - window only; what lies outside of it is not computed.

    Raises:
        CompilerError: The kernel is not enabled.
        InputError: Tensors of other shapes, types or devices.
    """
    if _kernel is None:
        raise CompilerError("the compiled kernel is not in use; call captum_attn_lime.attention.native.enable() first.")
    _check(query, key, logs, bias, is_causal, window)
    batch, heads, queries, size = query.shape
    key_heads, keys = key.shape[1:3]
    # The tensors stay bound to these names, and so alive, while the kernel reads their memory.
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
    """Refuse what the kernel, which reads memory by addresses, would read wrongly or beyond its end."""
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
    """Return the kernel's function, from the file compiled before where there is one that loads."""
    # An override of PyTorch's own by ATEN_CPU_CAPABILITY holds here as well.
    capability = torch.backends.cpu.get_cpu_capability()
    flags = (*_FLAGS, *_CAPABILITY_FLAGS.get(capability, ()))
    made_of = "\0".join((_SOURCE.read_text(), *flags, sys.platform, platform.machine()))
    name = f"column_sums_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    kept = _cache_folder()
    if kept is not None:
        try:
            if (kept / name).is_file():
                return _function(kept / name)
        except OSError:
            pass  # made by a compiler whose runtime is not here, or cut off: compile it again
    # A file of its own, moved to its place when it is whole: no lock that a killed process could leave behind.
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        made = Path(folder) / name
        _compile(made, flags)
        if kept is not None:
            made = made.replace(kept / name)
        try:
            return _function(made)
        except OSError as error:
            raise CompilerError(f"the kernel was compiled, but cannot be loaded from {made}: {error}") from error


def _function(path: Path) -> Callable[..., int]:
    function = ctypes.CDLL(str(path)).captum_attn_lime_column_sums
    numbers = ctypes.POINTER(ctypes.c_int64)
    function.argtypes = [ctypes.c_void_p] * 5 + [numbers] * 2 + [ctypes.c_double] + [ctypes.c_int64] * 3
    function.restype = ctypes.c_int
    return function


def _cache_folder() -> Path | None:
    """Return a folder to keep the compiled kernel in; None where there is none that can be written to."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = root or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch_extensions")
    try:
        folder = Path(root).expanduser().absolute() / "captum_attn_lime"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError where there is no home
        return None


def _compile(target: Path, flags: tuple[str, ...]) -> None:
    """Write the compiled kernel to a file."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = [named] if named else [[c] for c in ("c++", "g++", "clang++")]
    compiler = next((c for c in found if shutil.which(c[0])), None)
    if compiler is None:
        raise CompilerError(
            f"the kernel needs a C++ compiler, but none of {[c[0] for c in found]} is on the PATH. Install GCC or "
            "Clang (apt install g++, dnf install gcc-c++, conda install cxx-compiler, xcode-select --install), or name "
            "one in CXX. Everything works without the kernel, slower."
        )
    command = [*compiler, *flags, "-o", str(target), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not target.is_file():
        raise CompilerError(
            f"{shlex.join(command)} failed with exit code {done.returncode}; GCC or Clang with C++17 is needed. "
            f"Its first messages:\n{done.stderr[:2000]}"
        )
