"""How a model's forward takes the columns of a table: in one tensor, or numbers and categories apart."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from captum_attn_lime.adapters._state import probing
from captum_attn_lime.adapters._wrappers import parameters_of, wrapped
from captum_attn_lime.errors import ForwardError, InputError

Place = int | str
KINDS = ("numeric", "categorical")

_PATTERNS = {
    "categorical": re.compile(r"(^|_)x?(cat|cats|categ\w*|sparse|discrete|nominal)(_|$)"),
    "numeric": re.compile(r"(^|_)x?(num|nums|numer\w*|numbers?|cont|conts|contin\w*|dense|floats?)(_|$)"),
}
_DICTIONARIES = ("batch", "batch_dict", "x_dict", "inputs_dict", "feature_dict", "features_dict")
_ANYTHING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_LOOKUPS = {F.embedding, torch.embedding, F.embedding_bag, F.one_hot}
_INDEXING = {Tensor.__getitem__, torch.index_select, Tensor.index_select, torch.gather, Tensor.gather}
_ADVICE = (
    "Pass forward_names={'numeric': ..., 'categorical': ...}, each the name of a parameter, its position from 0, or a "
    "key of forward's dictionary."
)


@dataclass(frozen=True)
class TableForward:
    """Where a model's forward takes the numeric columns, and where the categorical ones.

    Attributes:
        numeric: Position or name of the parameter, or key of the dictionary; None if the model has no such place.
        categorical: The same for the categories. Both are None if one tensor holds all columns.
        in_dictionary: Whether the names are keys of one dictionary.
        empty: Whether a missing kind of column is (n, 0) instead of None.
    """

    numeric: Place | None = None
    categorical: Place | None = None
    in_dictionary: bool = False
    empty: bool = False

    @property
    def is_split(self) -> bool:
        """Whether numeric and categorical columns are separate arguments."""
        return self.numeric is not None or self.categorical is not None

    def call(self, model: nn.Module, numeric: Tensor | None, categorical: Tensor | None) -> Any:
        """Run the model on numeric columns (n, numeric) and categorical ones (n, categorical), None if missing."""
        parts: dict[Place, Tensor | None] = {}
        for kind, part in zip(KINDS, (numeric, categorical), strict=True):
            place = getattr(self, kind)
            if place is None and part is not None:
                raise InputError(f"forward_names has no place for the {kind} columns. {_ADVICE}")
            if place is not None:
                other = categorical if kind == "numeric" else numeric
                parts[place] = _empty_columns(other, kind) if part is None and self.empty else part
        if self.in_dictionary:
            return model({key: part for key, part in parts.items() if part is not None})
        positional = [parts[i] for i in sorted(p for p in parts if isinstance(p, int))]
        return model(*positional, **{name: part for name, part in parts.items() if isinstance(name, str)})


ALL_IN_ONE = TableForward()
_ONLY_CATEGORIES = TableForward(categorical=0)


@dataclass(frozen=True)
class ProbeRows:
    """Three rows that probe a model: the second has different categories than the first, the third different numbers.

    Attributes:
        whole: All columns, (3, columns) float.
        numeric: The numeric columns, (3, numeric) float; None for none.
        categorical: The categorical columns, (3, categorical) int64; None for none.
    """

    whole: Tensor
    numeric: Tensor | None
    categorical: Tensor | None

    @property
    def are_of_one_kind(self) -> bool:
        """Whether all columns are numeric, or all are categorical."""
        return self.numeric is None or self.categorical is None


def table_forwards(model: nn.Module, names: Mapping[str, Place] | None = None) -> list[TableForward]:
    """Return the ways in which a model may take its columns by its signature; a single one if that is conclusive.

    Args:
        model: The model; of wrappers with any arguments (compiled, data-parallel, averaged), the wrapped one counts.
        names: The parameter, its position, or the key of the dictionary, for "numeric" and "categorical".

    Raises:
        ForwardError: ``forward`` needs further arguments.
        InputError: ``forward`` has no such parameter.
    """
    parameters = _parameters(unwrapped(model))
    name = type(model).__name__
    if names is not None:
        return [_named(names, parameters, name)]
    plain = [p for p in parameters if p.kind not in _ANYTHING]
    required = [p for p in plain if p.default is p.empty]
    chosen = _by_name(plain, required)
    if len(required) > 2 or (len(chosen) == 2 and any(p not in chosen.values() for p in required)):
        raise ForwardError(
            f"{name}.forward needs {', '.join(p.name for p in required)}, but a TabularAdapter passes rows, or numeric "
            "and categorical columns. Wrap the model in a module that takes those."
        )
    if len(chosen) == 2:
        return [_way(chosen["numeric"], chosen["categorical"], parameters)]
    if len(required) == 2:
        a, b = required
        return [_way(a, b, parameters), _way(b, a, parameters)]
    if not plain:
        return [ALL_IN_ONE, TableForward(0, 1), TableForward(1, 0)]
    if _is_dictionary(plain[0]):
        return [ALL_IN_ONE, TableForward(in_dictionary=True)]
    return [ALL_IN_ONE, _ONLY_CATEGORIES]


def decide(model: nn.Module, ways: Sequence[TableForward], rows: ProbeRows) -> TableForward:
    """Return the one way in which a model takes its columns, found by running it if the signature is not conclusive.

    A way is right if the model runs, and what it looks up (in embeddings, in one-hot codes, by indexing) changes with
    the categories and not with the numbers.

    Args:
        model: The model.
        ways: What the signature allows.
        rows: Rows to run it on.

    Raises:
        ForwardError: The model runs in no way, or in several that cannot be distinguished.
    """
    if len(ways) > 1 and rows.numeric is not None:
        ways = [way for way in ways if way != _ONLY_CATEGORIES]
    if len(ways) == 1 and (not rows.are_of_one_kind or ways[0].in_dictionary or not ways[0].is_split):
        return ways[0]
    model = unwrapped(model)
    failures: list[str] = []
    found: list[tuple[TableForward, bool]] = []
    for empty in (False, True) if rows.are_of_one_kind else (False,):
        for way in ways:
            tried, outcome = _try(replace(way, empty=empty), model, rows)
            if isinstance(outcome, str):
                failures.append(f"{_describe(tried)}: {outcome}")
            elif not outcome.by_numbers:
                found.append((tried, outcome.by_categories))
        if found:
            break
    if len(ways) == 1:  # If it never runs, the model's own error will be more helpful.
        return found[0][0] if found else ways[0]
    if rows.are_of_one_kind and any(way == ALL_IN_ONE for way, _ in found):
        return ALL_IN_ONE
    candidates = [way for way, by_categories in found if by_categories] or [way for way, _ in found]
    if len(candidates) == 1:
        return candidates[0]
    name = type(model).__name__
    if candidates:
        raise ForwardError(
            f"{name}.forward runs {' and '.join(map(_describe, candidates))}; neither its parameters' names nor what "
            f"it looks up show which is right. {_ADVICE}"
        )
    reasons = f" ({'; '.join(dict.fromkeys(failures))})" if failures else ""
    raise ForwardError(f"cannot find out how {name}.forward takes the columns{reasons}. {_ADVICE}")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers whose signature accepts anything.

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    while True:
        inner = wrapped(model)
        if inner is None and all(p.kind in _ANYTHING for p in _parameters(model)):
            inner = _only_child(model)
        if inner is None:
            return model
        model = inner


def _only_child(model: nn.Module) -> nn.Module | None:
    """Return the only child of a module if it has parameters for both kinds, so that arguments surely go to it."""
    children = list(model.children())
    if len(children) != 1:
        return None
    inner = unwrapped(children[0])
    plain = [p for p in _parameters(inner) if p.kind not in _ANYTHING]
    return inner if _by_name(plain, [p for p in plain if p.default is p.empty]) else None


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    return list(parameters_of(model).values())


def _by_name(plain: Sequence[inspect.Parameter], required: Sequence[inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Return the parameters for numeric and categorical columns, if names identify both, or one of two."""
    found = {kind: next((p for p in plain if _is_for(kind, p)), None) for kind in KINDS}
    for kind, other in (KINDS, KINDS[::-1]):
        # The parameter beside the one for categories holds the numbers, whatever its name. The reverse is less certain:
        # "num_steps" may be anything.
        sure = found[other] is not None and (other == "categorical" or found[other] in required)
        if sure and found[kind] is None:
            beside = [p for p in (required if kind == "categorical" else required or plain) if p is not found[other]]
            found[kind] = beside[0] if beside else None
    out = {kind: p for kind, p in found.items() if p is not None}
    return out if len(out) == 2 else {}


def _is_for(kind: str, parameter: inspect.Parameter) -> bool:
    """Return whether a parameter takes this kind of column, by its name; one with a default is an option."""
    no_switch = parameter.default is None or parameter.default is parameter.empty
    return no_switch and _names(kind, parameter.name)


def _names(kind: str, name: str) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return not words.startswith("return_") and "mask" not in words and _PATTERNS[kind].search(words) is not None


def _is_dictionary(parameter: inspect.Parameter) -> bool:
    return parameter.name in _DICTIONARIES or re.search(r"dict|mapping", str(parameter.annotation).lower()) is not None


def _way(
    numbers: inspect.Parameter, categories: inspect.Parameter, parameters: Sequence[inspect.Parameter]
) -> TableForward:
    """Return the way of two parameters: by position if they are the first two, else by name."""
    places = parameters.index(numbers), parameters.index(categories)
    by_name = any(p.kind is p.KEYWORD_ONLY for p in (numbers, categories)) or sorted(places) != [0, 1]
    return TableForward(numbers.name, categories.name) if by_name else TableForward(*places)


def _named(names: Mapping[str, Place], parameters: Sequence[inspect.Parameter], model: str) -> TableForward:
    """Return the way that the user chose, checked against the signature."""
    unknown = [kind for kind in names if kind not in KINDS]
    places = list(names.values())
    if unknown or not names or len(set(places)) != len(places):
        raise InputError(
            f"forward_names must give 'numeric' and 'categorical' different places, but is {dict(names)!r}."
        )
    plain = [p.name for p in parameters if p.kind not in _ANYTHING]
    takes = {p.kind for p in parameters}
    if all(isinstance(place, int) for place in places):
        if sorted(places) != list(range(len(places))):
            raise InputError(f"forward_names gives the positions {places}, but positions run from 0 on.")
        if inspect.Parameter.VAR_POSITIONAL not in takes and len(places) > len(plain):
            raise InputError(f"forward_names gives {len(places)} positions, but {model}.forward takes {plain}.")
        return TableForward(names.get("numeric"), names.get("categorical"))
    if not all(isinstance(place, str) for place in places):
        raise InputError(f"forward_names is {dict(names)!r}; give names or positions, not both.")
    known = all(place in plain for place in places) or inspect.Parameter.VAR_KEYWORD in takes
    if not known and len(plain) != 1:
        raise InputError(f"forward_names gives {places}, but {model}.forward takes {', '.join(plain)}.")
    return TableForward(names.get("numeric"), names.get("categorical"), in_dictionary=not known)


class _Outcome(NamedTuple):
    """Whether a model's lookups changed with the categories, and with the numbers."""

    by_categories: bool
    by_numbers: bool


def _try(way: TableForward, model: nn.Module, rows: ProbeRows) -> tuple[TableForward, _Outcome | str]:
    """Run a model in a way; return the way with the dictionary keys that it read, and the outcome or the error."""
    batch = _ProbeDictionary(rows)
    lookups = _Lookups()
    try:
        with probing(model) as probed, lookups:
            if way.in_dictionary:
                probed(batch)
            elif way.is_split:
                way.call(probed, rows.numeric, rows.categorical)
            else:
                probed(rows.whole)
    except Exception as error:
        return way, f"{type(error).__name__} {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
    if way.in_dictionary:
        keys = batch.keys_by_kind
        way = replace(way, numeric=keys.get("numeric"), categorical=keys.get("categorical"))
        lacks = [kind for kind in KINDS if getattr(rows, kind) is not None and getattr(way, kind) is None]
        if lacks:
            return way, f"it does not read the {lacks[0]} columns"
    return way, lookups.outcome()


class _ProbeDictionary(dict[str, Any]):
    """A dictionary that infers the kind of column from the key that the model reads."""

    def __init__(self, rows: ProbeRows) -> None:
        super().__init__()
        self._rows = rows
        self.keys_by_kind: dict[str, str] = {}

    def __missing__(self, key: str) -> Tensor:
        kinds = [kind for kind in KINDS if _names(kind, str(key))]
        if not kinds and self._rows.are_of_one_kind:
            kinds = [kind for kind in KINDS if getattr(self._rows, kind) is not None]
        found = getattr(self._rows, kinds[0]) if len(kinds) == 1 else None
        if found is None:
            raise KeyError(key)
        self.keys_by_kind[kinds[0]] = key
        return cast("Tensor", found)

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


class _Lookups(TorchFunctionMode):
    """Records the indices that three rows look up, in embeddings, one-hot codes and indexing."""

    def __init__(self) -> None:
        super().__init__()
        self._indices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKUPS or func in _INDEXING:
            given = [*(args[1:] if func in _INDEXING else args), *kwargs.values()]
            flat = [x for part in given for x in (part if isinstance(part, (tuple, list)) else (part,))]
            self._indices += [x.detach() for x in flat if isinstance(x, Tensor) and not x.is_floating_point()]
        return func(*args, **kwargs)

    def outcome(self) -> _Outcome:
        rows = [x.reshape(3, -1) for x in self._indices if x.numel() and x.numel() % 3 == 0]
        return _Outcome(*(any(not torch.equal(x[0], x[k]) for x in rows) for k in (1, 2)))


def _describe(way: TableForward) -> str:
    """Return how a way passes the columns, for error messages."""
    if way.in_dictionary:
        return "with a dictionary"
    if not way.is_split:
        return "with all columns in one tensor"
    names = [kind for kind in ("numeric", "categorical") if getattr(way, kind) is not None]
    return f"with ({', '.join(sorted(names, key=lambda kind: str(getattr(way, kind))))})"


def _empty_columns(other: Tensor | None, kind: str) -> Tensor:
    """Return empty columns of a kind, (n, 0), on the device of the other kind."""
    assert other is not None  # rows have columns
    return other.new_empty((len(other), 0), dtype=torch.int64 if kind == "categorical" else torch.get_default_dtype())
