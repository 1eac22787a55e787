"""Remembering a model's walk: what was found out about its tensors, to be used again when it takes the same steps.

Following what is known of every tensor costs about twenty microseconds a step, more than a small model's own work. So
the steps of a capture are remembered, with all that was asked about tensors on the way and what was answered. In the
next capture each step is only compared with the remembered one: the same operation, applied to the same earlier
results and the same further arguments, with results of the same shapes. As long as that holds the answers are the
same. At the first difference what was known of the tensors that are still alive is put back, and following goes on from
there: a model that takes another way is never explained by what held on the old one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from captum_attn_lime._capture.names import ModuleStack
from captum_attn_lime._capture.operations import WRITES
from captum_attn_lime._capture.provenance import Known, Provenance
from captum_attn_lime._capture.windows import TokenPlaces
from captum_attn_lime.attention import AttentionMap

# Walks kept for each model, and the greatest number of steps of one.
_KEPT, _LONGEST = 8, 20_000


Func = Callable[..., Any]
_PLAIN = frozenset({bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, complex})


class _Number(int):
    """The number of a tensor in the order in which a walk came upon them."""


class _Many(tuple[Any, ...]):
    """The forms of several arguments in a tuple or list, tensors among them."""


_NOBODY = _Number(-1)


class _Event(NamedTuple):
    """A step of a walk, or a question asked on it.

    Attributes:
        what: The operation, or the question's name.
        args: The forms of its arguments: tensors as numbers.
        kwargs: Those of its arguments by name.
        results: The form of its results.
        answer: The answer to a question.
    """

    what: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: Any
    answer: Any


class Walk:
    """The steps of one capture.

    Attributes:
        batch: Number of examples.
        events: Steps and questions, in order.
        looks: Shape, strides and kind of each tensor, by its number.
        parameters: The numbers of parameters, from -2 down, by their identity; they stay the same ones.
        learnt: For each event, what was known behind it of the tensors it touched, by number: two tables' entries.
    """

    def __init__(self) -> None:
        self.batch: int | None = None
        self.events: list[_Event] = []
        self.looks: list[Any] = []
        self.parameters: dict[int, tuple[_Number, weakref.ref[Tensor]]] = {}
        self.learnt: list[list[tuple[int, Known | None, Any]]] = []
        self.tables: tuple[int, dict[Any, Any], dict[Any, Any]] = (0, {}, {})


class Walks:
    """The walks of one model, by how it was entered; a few of them, the latest used last.

    Several threads may share them without a lock, which an interrupt could leave locked: each step is one of the
    dictionary's own, and a walk that another thread is just moving to the end is, at worst, followed once more.
    """

    def __init__(self) -> None:
        self._by_entry: dict[Any, Walk] = {}

    def __len__(self) -> int:
        return len(self._by_entry)

    def find(self, entry: Any) -> Walk | None:
        """Return the walk of an entry."""
        walk = self._by_entry.get(entry)
        if walk is not None:
            self.keep(entry, walk)
        return walk

    def keep(self, entry: Any, walk: Walk) -> None:
        """Remember a walk, and forget the one that was not used for longest."""
        self._by_entry.pop(entry, None)
        self._by_entry[entry] = walk
        for old in list(self._by_entry)[:-_KEPT]:
            self.forget(old)

    def forget(self, entry: Any) -> None:
        """Forget a walk that the model has not taken again."""
        self._by_entry.pop(entry, None)


_WALKS: WeakKeyDictionary[nn.Module, Walks] = WeakKeyDictionary()


def walks_of(root: nn.Module) -> Walks:
    """Return the walks that are remembered of a model."""
    return _WALKS.setdefault(root, Walks())


class Trace:
    """What is known of the tensors of a capture: followed step by step, or remembered from the last time.

    Args:
        provenance: Where tensors come from.
        places: Where tokens are.
        stack: The modules being run.
        walks: The walks that are remembered; None to follow every step.
        mode: What the capture does beside watching; walks of another mode are other walks.
    """

    def __init__(
        self,
        provenance: Provenance,
        places: TokenPlaces,
        stack: ModuleStack,
        walks: Walks | None,
        mode: Any,
    ) -> None:
        self.provenance, self.places, self._stack = provenance, places, stack
        self._walks, self._mode = walks, mode
        self.on_change: Callable[[], None] | None = None
        self.way: list[Func] = []  # the operations of the model, in order, but for attention itself
        self._entry: Any = None
        self._walk: Walk | None = None
        self._is_replayed = False
        self._at = 0  # the next event of a replayed walk
        self._numbers: dict[int, tuple[_Number, weakref.ref[Tensor]]] = {}
        self._count = 0
        self._is_odd = False
        self._was_asked = False  # something happened before a module was entered, which no walk tells of

    @property
    def is_replayed(self) -> bool:
        """Whether a remembered walk is being taken again."""
        return self._is_replayed

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None) -> None:
        """Look whether a model that is entered with these arguments has been before; else begin to remember."""
        if self._walks is None or self._entry is not None or self._was_asked:
            return
        with torch._C.DisableTorchFunction():
            looks = tuple(_look(x) for x in _tensors((*args, *kwargs.values())))
        self._entry = (self._mode, looks, batch)
        found = self._walks.find(self._entry)
        self._is_replayed = found is not None
        self._walk = Walk() if found is None else found
        self._walk.batch = batch
        self._numbers = dict(self._walk.parameters)

    def end(self, *, is_complete: bool) -> None:
        """Keep a walk that was taken to its end."""
        walk, self._walk = self._walk, None
        if walk is None or self._walks is None or self._is_replayed or not is_complete:
            return
        if 0 < len(walk.events) < _LONGEST:
            walk.tables = self.provenance.tables()
            self._walks.keep(self._entry, walk)

    def unfit(self) -> None:
        """Give up remembering: this walk does what cannot be told by its steps."""
        if self._is_replayed:
            self._leave()
        self._walk = None

    def follow(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, batch: int | None
    ) -> None:
        """Carry what is known of an operation's arguments over to its results."""
        if self.takes(func, args, kwargs, out):
            return
        self.way.append(func)
        if self._is_replayed:
            self._leave()
        self._begin_outside()
        self.provenance.follow(func, args, kwargs, out, batch)
        self.places.follow(func, args, kwargs, out, batch)
        if self._walk is not None:
            if func in WRITES:
                self.unfit()
            else:
                self._note(func, args, kwargs, out, None)

    def ask(self, question: str, function: Callable[..., Any], *args: Any) -> Any:
        """Return the answer to a question about tensors; one that makes something known of them has none."""
        if self._is_replayed:
            if self._is_next(question, args):
                answer = self._walk.events[self._at].answer if self._walk is not None else None
                self._at += 1
                return answer
            self._leave()
        self._begin_outside()
        answer = function(*args)
        if self._walk is not None:
            self._note(question, args, {}, None, answer)
        return answer

    def _begin_outside(self) -> None:
        """Follow every step where the first one comes before a module was entered: no walk tells of those."""
        if self._was_asked:
            return
        self._was_asked = True
        if self._walks is not None and self._entry is None:
            self._walks = None
            if self.on_change is not None:
                self.on_change()

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let a tensor that takes another one's place be known for what that was."""

        def copy(old: Tensor, new: Tensor) -> None:
            self.provenance.restore(new, self.provenance.entry(old))
            self.places.restore(new, self.places.entry(old))

        self.ask("replace", copy, old, new)

    def takes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
        """Return whether a step is the next one of the replayed walk, and take it; written for speed."""
        walk = self._walk
        if not self._is_replayed or walk is None or self._at >= len(walk.events):
            return False
        what, forms, named, results, _ = walk.events[self._at]
        if (what is not func and what != func) or len(forms) != len(args) or len(named) != len(kwargs):
            return False
        numbers = self._numbers
        for form, value in zip(forms, args, strict=True):
            if form is value:
                continue
            if type(form) is _Number:
                found = numbers.get(id(value))
                if found is not None and found[0] == form and found[1]() is value:
                    continue
            if not self._fits(form, value):
                return False
        for name, form in named:
            if name not in kwargs or not self._fits(form, kwargs[name]):
                return False
        if not self._gives(results, out):
            return False
        self._at += 1
        self.way.append(func)
        return True

    def _gives(self, results: Any, out: Any) -> bool:
        """Return whether a step's result is the remembered one: a tensor that is new, or known already."""
        if type(results) is not _Number or not isinstance(out, Tensor):
            return self._fits(results, out)
        found = self._numbers.get(id(out))
        if found is not None and found[1]() is out:
            return found[0] == results
        if self._walk is None or results != self._count or self._walk.looks[results][0] != out.shape:
            return False
        self._numbers[id(out)] = (results, weakref.ref(out))
        self._count += 1
        return True

    def _is_next(self, question: str, args: tuple[Any, ...]) -> bool:
        """Return whether a question is what comes next on the walk."""
        walk = self._walk
        if walk is None or self._at >= len(walk.events):
            return False
        event = walk.events[self._at]
        if event.what != question or len(event.args) != len(args):
            return False
        numbers = self._numbers
        for form, value in zip(event.args, args, strict=True):
            if form is value:
                continue
            found = numbers.get(id(value))  # nearly always: the very tensor that was made on this walk
            if (found is None or found[0] is not form or found[1]() is not value) and not self._fits(form, value):
                return False
        return True

    def _fits(self, form: Any, value: Any) -> bool:
        """Return whether a value has a form: equal, and where it holds tensors, the same ones."""
        if type(form) is _Number:
            return isinstance(value, Tensor) and self._number(value) == form
        if isinstance(value, (tuple, list)):
            if type(form) not in (_Many, tuple) or len(form) != len(value):
                return False
            for part, given in zip(form, value, strict=True):
                if part is not given and not self._fits(part, given):
                    return False
            return True
        return form is value or (type(form) is type(value) and bool(form == value))

    def _number(self, tensor: Tensor) -> _Number:
        """Return a tensor's number; one that does not look like that of the replayed walk gets none of its."""
        key = id(tensor)
        found = self._numbers.get(key)
        if found is not None and found[1]() is tensor:
            return found[0]
        walk = self._walk
        if type(tensor) is nn.Parameter:
            if walk is None or self._is_replayed:
                return _NOBODY  # another parameter than those of the walk
            self._numbers[key] = walk.parameters[key] = (_Number(-2 - len(walk.parameters)), weakref.ref(tensor))
            return self._numbers[key][0]
        number = _Number(self._count)
        self._count += 1
        self._numbers[key] = (number, weakref.ref(tensor))
        if walk is not None:
            if not self._is_replayed:
                walk.looks.append(_look(tensor))
            elif number >= len(walk.looks) or walk.looks[number] != _look(tensor):
                return _NOBODY
        return number

    def _form(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._number(value)
        if isinstance(value, (tuple, list)):
            return _Many(self._form(part) for part in value)
        if not _is_plain(value):
            self._is_odd = True
        return value

    def _note(self, what: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any, answer: Any) -> None:
        walk = self._walk
        if walk is None:
            return
        forms = tuple(self._form(value) for value in args)
        named = tuple((name, self._form(value)) for name, value in kwargs.items())
        event = _Event(what, forms, named, self._form(results), answer)
        if self._is_odd or len(walk.events) >= _LONGEST:
            self._walk = None  # arguments that cannot be compared
            return
        walk.events.append(event)
        touched = {id(t): t for t in _tensors((*args, *kwargs.values(), results))}.values()
        walk.learnt.append([(self._number(t), *self._known(t)) for t in touched])

    def bridged(self, tensor: Tensor) -> None:
        """Note what has become known of a tensor between two steps."""
        if self._walk is not None and not self._is_replayed and self._walk.learnt:
            self._walk.learnt[-1].append((self._number(tensor), *self._known(tensor)))

    def _known(self, tensor: Tensor) -> tuple[Known | None, Any]:
        return self.provenance.entry(tensor), self.places.entry(tensor)

    def _leave(self) -> None:
        """Put back what is known of the tensors that are alive, and follow every step from here on."""
        walk, self._walk, self._is_replayed = self._walk, None, False
        if walk is None:
            return
        if self._walks is not None:
            self._walks.forget(self._entry)
        self.provenance.restore_tables(walk.tables)
        alive: dict[int, Tensor | None] = {number: ref() for number, ref in self._numbers.values()}
        for learnt in walk.learnt[: self._at]:
            for number, known, place in learnt:
                tensor = alive.get(number)
                if tensor is not None:
                    self.provenance.restore(tensor, known)
                    self.places.restore(tensor, place)
        if self.on_change is not None:
            self.on_change()


class Asked:
    """Provenance or places as the seams see them: what they ask goes through the trace.

    Args:
        trace: The capture's trace.
        real: What answers, where nothing is remembered.
    """

    def __init__(self, trace: Trace, real: Provenance | TokenPlaces) -> None:
        self._trace, self._real = trace, real

    def __getattr__(self, name: str) -> Any:
        return partial(self._trace.ask, name, getattr(self._real, name))

    def bridge(self, given: Tensor, result: Tensor) -> None:
        """Pass on what a module that could not be watched was given; no step, so it is not compared."""
        if not self._trace.is_replayed and isinstance(self._real, Provenance):
            self._real.bridge(given, result)
            self._trace.bridged(result)

    def on_grid(
        self, attention: AttentionMap, rows: Any, value: Tensor, carriers: Sequence[Tensor], batch: int | None
    ) -> tuple[AttentionMap, Any, Tensor]:
        """Return a call laid on the grid of tokens, see `TokenPlaces.on_grid`; windows are not remembered."""
        real, kind, found = self._real, attention.kind, [(attention, rows, value)]

        def lay(*_: Any) -> None:
            if isinstance(real, TokenPlaces):
                found[0] = real.on_grid(attention, rows, value, carriers, batch)
            if found[0][0] is not attention or attention.kind != kind:
                self._trace.unfit()

        self._trace.ask("on_grid", lay, value, tuple(carriers), kind)
        return found[0]


def _look(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), type(tensor), tensor.dtype


def _is_plain(value: Any) -> bool:
    """Return whether a value can be kept and compared: a number, a name, a type of torch, or a slice of numbers."""
    if isinstance(value, slice):
        return all(x is None or isinstance(x, int) for x in (value.start, value.stop, value.step))
    return value is None or value is Ellipsis or type(value) in _PLAIN


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
