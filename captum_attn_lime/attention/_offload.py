"""`OffloadedMap`: an attention map whose tensors are stored on the CPU or in files, and loaded for each product."""

from __future__ import annotations

import atexit
import copy
import os
import secrets
import shutil
import weakref
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.attention._combine import Combine
from captum_attn_lime.attention._dense import DenseMap
from captum_attn_lime.attention._map import AttentionMap
from captum_attn_lime.attention._scores import ScoreMap
from captum_attn_lime.errors import FileError

_AGAIN = "Capture again, with a folder that nothing else cleans up."


class OnCpu:
    """A tensor moved to CPU memory.

    Args:
        tensor: The tensor.
        device: The device to load it to; by default the tensor's.
    """

    def __init__(self, tensor: Tensor, device: torch.device | None = None) -> None:
        self._device = tensor.device if device is None else device
        self._held = tensor.to("cpu", copy=tensor.device.type == "cpu")

    def load(self) -> Tensor:
        """Return the tensor on its original device."""
        return self._held.to(self._device)


class Folder:
    """A new private folder inside another one; removed when nothing refers to it, or when Python exits.

    Copies of a map share the folder; it is removed with the last of them.

    Raises:
        FileError: The folder cannot be created.
    """

    def __init__(self, parent: str | PathLike[str]) -> None:
        _remove_unused()
        atexit.unregister(_remove_all)  # registers it only once
        atexit.register(_remove_all)
        self.path = Path(parent).absolute() / f"attention-{secrets.token_hex(16)}"
        # Registered before it exists, so that an interrupt cannot leave it behind.
        _folders[self.path] = os.getpid(), weakref.ref(self, _remove_unused)
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise FileError(f"no folder for attention maps can be created in {str(parent)!r}: {error}") from error


# Each folder with the process that created it: a forked process must not remove it.
_folders: dict[Path, tuple[int, weakref.ref[Folder]]] = {}


def _remove_unused(_: object = None) -> None:
    """Remove the folders that nothing refers to, including those whose removal was interrupted."""
    for path, (process, folder) in list(_folders.items()):
        if process == os.getpid() and folder() is None:
            shutil.rmtree(path, ignore_errors=True)
            _folders.pop(path, None)


def _remove_all() -> None:
    for path, (process, _) in list(_folders.items()):
        if process == os.getpid():
            shutil.rmtree(path, ignore_errors=True)
    _folders.clear()


class InFile:
    """A tensor written to a file.

    Args:
        tensor: The tensor.
        folder: The folder to write to.
        name: The file's name.

    Raises:
        FileError: The file cannot be written, for example because the disk is full.
    """

    def __init__(self, tensor: Tensor, folder: Folder, name: str) -> None:
        self._folder = folder  # keeps the folder alive
        self._path = folder.path / name
        self._shape, self._dtype, self._device = tensor.shape, tensor.dtype, tensor.device
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        try:
            raw.tofile(self._path)
        except OSError as error:
            raise FileError(
                f"an attention map of {raw.nbytes:,} bytes cannot be written to {self._path}: {error} Offload to "
                "another folder, or to the CPU."
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> InFile:
        return self  # files are never changed, and are removed with the last map that refers to them

    def __reduce__(self) -> tuple[type[OnCpu], tuple[Tensor, torch.device]]:
        return OnCpu, (self._read(), self._device)  # the file may be gone when the pickle is loaded

    def load(self) -> Tensor:
        """Return the tensor on its original device.

        Raises:
            FileError: The file is missing or damaged.
        """
        return self._read().to(self._device)

    def _read(self) -> Tensor:
        needed = self._shape.numel() * self._dtype.itemsize
        try:
            raw = np.fromfile(self._path, dtype=np.uint8)
        except OSError as error:
            raise FileError(f"an attention map's file can no longer be read: {error}. {_AGAIN}") from error
        if raw.size != needed:
            raise FileError(f"{self._path} has {raw.size:,} bytes; {needed:,} were written. {_AGAIN}")
        return torch.from_numpy(raw).view(self._dtype).reshape(self._shape)


class OffloadedMap(AttentionMap):
    """An attention map whose query, key and log-sums (or weights) are stored on the CPU or in files.

    Each product loads them and releases them afterwards, so that only one layer is in memory at a time.

    Args:
        attention: The map whose tensors are moved.
        place: ``"cpu"`` or a folder.

    Example:
        >>> q = torch.randn(1, 2, 3, 4)
        >>> here = ScoreMap(q, q)
        >>> import tempfile
        >>> there = offloaded(here, tempfile.gettempdir())
        >>> torch.equal(there.dense(), here.dense())
        True
    """

    def __init__(self, attention: ScoreMap | DenseMap, place: str | PathLike[str]) -> None:
        super().__init__(attention.shape, name=attention.name, kind=attention.kind, is_causal=attention.is_causal)
        self.copy_labels(attention)
        self._device, self._dtype = attention.device, attention.dtype
        folder = None if place == "cpu" else Folder(place)
        self._empty = copy.copy(attention)
        self._stored: dict[str, OnCpu | InFile] = {}
        for name in ("query", "key", "log_sums", "weights"):
            tensor = getattr(attention, name, None)
            if tensor is not None:
                self._stored[name] = OnCpu(tensor) if folder is None else InFile(tensor, folder, name)
                setattr(self._empty, name, None)
        self.value, self.output_gradient = attention.value, attention.output_gradient
        self._empty.value = self._empty.output_gradient = None
        self._empty._watch(*getattr(attention, "masks", ()))

    @property
    def device(self) -> torch.device:
        """The device on which the weights are computed."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights; at least float32."""
        return self._dtype

    def loaded(self) -> AttentionMap:
        """Return the map with its tensors in memory."""
        attention: AttentionMap = copy.copy(self._empty)
        for name, stored in self._stored.items():
            setattr(attention, name, stored.load())
        if attention.shape[0] != self.shape[0]:
            attention = attention.first(self.shape[0])
        attention.value, attention.output_gradient = self.value, self.output_gradient
        return attention

    def _check_unwritten(self) -> None:
        self._empty._check_unwritten()

    def reads_itself(self) -> Tensor:
        """Return whether each token may attend to itself, (B, N) of bool."""
        return self.loaded().reads_itself()

    def _first(self, examples: int) -> OffloadedMap:
        part = copy.copy(self)
        part.shape = (examples, *self.shape[1:])
        return part

    def _rows(self, queries: Tensor, heads: list[int]) -> Tensor:
        return self.loaded()._rows(queries, heads)

    def _reduce(self, r: Tensor, heads: list[int], combine: Combine, *, whole_rows: bool) -> Tensor:
        return self.loaded()._reduce(r, heads, combine, whole_rows=whole_rows)


def offloaded(attention: AttentionMap, place: str | PathLike[str]) -> AttentionMap:
    """Return the map with its tensors moved to a place; maps of other kinds (windows) are returned unchanged."""
    return OffloadedMap(attention, place) if isinstance(attention, (ScoreMap, DenseMap)) else attention
