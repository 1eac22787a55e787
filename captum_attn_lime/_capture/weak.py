"""`TensorTable`: a table keyed by tensor objects that does not keep them alive."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Generic, TypeVar, overload

from torch import Tensor

V = TypeVar("V")
D = TypeVar("D")


class TensorTable(Generic[V]):
    """A mapping from tensor objects, compared by identity, to values.

    Every operation of a captured model queries several such tables, so a lookup is a single dict access. An entry is
    removed with its tensor, before another tensor can get the same address.

    Example:
        >>> import torch
        >>> table, x = TensorTable[int](), torch.zeros(1)
        >>> table[x] = 5
        >>> table.get(x), x in table, len(table)
        (5, True, 1)
        >>> del x
        >>> len(table)
        0
    """

    __slots__ = ("__weakref__", "_refs", "_values")

    def __init__(self) -> None:
        self._values: dict[int, V] = {}
        self._refs: dict[int, weakref.ref[Tensor]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._values

    def __getitem__(self, tensor: Tensor) -> V:
        return self._values[id(tensor)]

    def __setitem__(self, tensor: Tensor, value: V) -> None:
        key = id(tensor)
        if key not in self._values:
            # values.pop(key, ref) runs without a line of Python. An interrupt in one would be swallowed, and leave the
            # entry to the next tensor at this address.
            self._refs[key] = weakref.ref(tensor, partial(self._values.pop, key))
        self._values[key] = value

    @overload
    def get(self, tensor: Tensor) -> V | None: ...

    @overload
    def get(self, tensor: Tensor, default: D) -> V | D: ...

    def get(self, tensor: Tensor, default: D | None = None) -> V | D | None:
        """Return the value for a tensor, or the default."""
        return self._values.get(id(tensor), default)

    def pop(self, tensor: Tensor, default: D | None = None) -> V | D | None:
        """Remove a tensor; return its value, or the default."""
        self._refs.pop(id(tensor), None)
        return self._values.pop(id(tensor), default)
