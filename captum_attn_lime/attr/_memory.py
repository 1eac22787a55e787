"""`Memory`: what was found out about a model, kept until the model changes, and the kinds of input it holds for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime.attr._model_state import ModelState

# Facts that are kept; of more, the one that was not used for longest is forgotten.
_KEPT = 256


class Memory:
    """Facts about the model behind one forward function, forgotten as soon as anything about it has changed.

    A copy, or what comes out of a pickle, begins empty. Of a function that shows no module and no tensor nothing is
    remembered from one block to the next, for its changes would not be seen.

    Example:
        >>> layer, memory = torch.nn.Linear(2, 2), Memory()
        >>> with memory.opened(layer):
        ...     memory.put("size", 2)
        >>> with memory.opened(layer):
        ...     memory.get("size")
        2
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> with memory.opened(layer):
        ...     memory.get("size")
    """

    def __init__(self) -> None:
        self._state: ModelState | None = None
        self._facts: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()
        # What a call found out under one state must not be kept under the next, which another thread may have seen.
        self._open = threading.local()

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()

    @contextmanager
    def opened(self, forward_func: Callable[..., Any]) -> Iterator[ModelState | None]:
        """Run a block that finds out about a forward function's model, and leave the model as it was.

        Inside another such block nothing more is done, and there is no state to yield.
        """
        if self._now is not None:
            yield None
            return
        state = ModelState(forward_func)
        with self._lock:
            if state.is_opaque or state != self._state:
                self._facts = OrderedDict()
            self._state, self._open.facts = state, self._facts
        try:
            with state.left_as_found():
                yield state
        finally:
            self._open.facts = None

    @property
    def _now(self) -> OrderedDict[Any, Any] | None:
        return getattr(self._open, "facts", None)

    def get(self, key: Any) -> Any:
        """Return a fact, or None."""
        facts = self._now
        if facts is None or key is None:
            return None
        with self._lock:
            if key in facts:
                facts.move_to_end(key)
            return facts.get(key)

    def put(self, key: Any, fact: Any) -> None:
        """Remember a fact; one without a key is not remembered."""
        facts = self._now
        if facts is None or key is None:
            return
        with self._lock:
            facts[key] = fact
            facts.move_to_end(key)
            while len(facts) > _KEPT:
                facts.popitem(last=False)


class Kind(NamedTuple):
    """What an input is apart from its values and its length: what is found out on one holds for others of its kind.

    Attributes:
        inputs: Dimensions, type and device of each input, and whether the first example is one value everywhere.
        args: What each further argument is, see :func:`kind_of`.
        autocast: Whether autocast is on.
        is_long: Whether facts are those of a part of the input.
    """

    inputs: tuple[Any, ...]
    args: tuple[Any, ...]
    autocast: bool
    is_long: bool = False


def kind_of(inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], *, is_long: bool = False) -> Kind | None:
    """Return the kind of an input; None where a further argument is an object of which nothing can be said.

    A further argument may switch parts of a model on, so its values count: of masks, whether they are even, or have
    padding before or behind; of all else, every value of the first example.

    Example:
        >>> ids = torch.zeros(2, 5, dtype=torch.int64)
        >>> ones, padded = torch.ones(2, 5), torch.tensor([[1.0, 1, 1, 0, 0]] * 2)
        >>> kind_of((ids,), (ones,)) == kind_of((ids[:, :4],), (ones[:, :4],))
        True
        >>> kind_of((ids,), (ones,)) == kind_of((ids,), (padded,))
        False
    """
    sizes = {size for x in inputs for size in x.shape[1:]}
    batch = len(inputs[0])
    with torch.no_grad():
        args = tuple(_argument(x, sizes, batch) for x in forward_args)
        if None in args:
            return None
        # What is the same everywhere may hide what a model makes of it.
        of_inputs = tuple((x.dim(), x.dtype, str(x.device), _runs(x[:1]) is not None) for x in inputs)
    autocast = torch.is_autocast_enabled(inputs[0].device.type)
    return Kind(of_inputs, args, autocast, is_long)


def _argument(x: Any, sizes: set[int], batch: int) -> Any:
    """Return what an argument is as something that can be compared; None where that cannot be said."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_meta:
            return None
        row = x[:1] if x.dim() and len(x) == batch else x
        shape = tuple("input's" if size in sizes else size for size in x.shape[1:])
        runs = _runs(row)
        return ("tensor", shape, x.dtype, str(x.device), _content(row) if runs is None else runs)
    if x is None or isinstance(x, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        return (type(x), x)
    if isinstance(x, np.generic):
        return (type(x), x.item())
    if isinstance(x, Mapping):
        x = [part for item in x.items() for part in item]
    if isinstance(x, (list, tuple)):
        parts = tuple(_argument(part, sizes, batch) for part in x)
        return None if None in parts else (type(x), parts)
    return None


def _runs(row: Tensor) -> tuple[Any, ...] | None:
    """Return the values of a row that is even, or even to a place and even from there: a mask; None for others.

    A run of one cell is told from a longer one: nothing mixes one token.
    """
    cells = row.reshape(-1)
    if len(cells) < 2:
        return None
    changes = (cells[1:] != cells[:-1]).nonzero().flatten().tolist()
    if not changes:
        return (cells[0].item(),)
    if len(changes) > 1:
        return None
    first, rest = changes[0] + 1, len(cells) - changes[0] - 1
    return (cells[0].item(), min(first, 2), cells[-1].item(), min(rest, 2))


def _content(row: Tensor) -> Any:
    """Return something that differs where the values do."""
    raw = row.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return raw if len(raw) <= 1024 else (len(raw), hash(raw))
