"""How a model's forward takes the columns of a table: in one tensor, or numbers and categories apart, in some order."""

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

from captum_attn_lime.adapters._trial import trial
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
_ASK = (
    "Pass forward_names={'numeric': ..., 'categorical': ...}, each the name of a parameter, its position from 0, or a "
    "key of the dictionary that forward takes."
)


@dataclass(frozen=True)
class TableForward:
    """Where a model's forward takes the numeric columns, and where the categorical ones.

    Attributes:
        numeric: Position or name of the parameter, or key of the dictionary; None where the model has no such place.
        categorical: The same of the categories. Both are None where one tensor holds all columns.
        in_dictionary: Whether the names are keys of one dictionary.
        empty: Whether a kind of column that there is not goes in as (n, 0), and not as None.
    """

    numeric: Place | None = None
    categorical: Place | None = None
    in_dictionary: bool = False
    empty: bool = False

    @property
    def takes_two(self) -> bool:
        """Whether numeric and categorical columns go in apart."""
        return self.numeric is not None or self.categorical is not None

    def call(self, model: nn.Module, numeric: Tensor | None, categorical: Tensor | None) -> Any:
        """Run the model on numeric columns (n, numeric) and categorical ones (n, categorical), None for none."""
        parts: dict[Place, Tensor | None] = {}
        for kind, part in zip(KINDS, (numeric, categorical), strict=True):
            place = getattr(self, kind)
            if place is None and part is not None:
                raise InputError(f"forward_names says nothing of the {kind} columns, and there are some. {_ASK}")
            if place is not None:
                other = categorical if kind == "numeric" else numeric
                parts[place] = _nothing(other, kind) if part is None and self.empty else part
        if self.in_dictionary:
            return model({key: part for key, part in parts.items() if part is not None})
        positional = [parts[i] for i in sorted(p for p in parts if isinstance(p, int))]
        return model(*positional, **{name: part for name, part in parts.items() if isinstance(name, str)})


ALL_IN_ONE = TableForward()
_ONLY_CATEGORIES = TableForward(categorical=0)


@dataclass(frozen=True)
class TrialRows:
    """Three rows to try a model on: the second has other categories than the first, the third other numbers.

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
    """Return the ways in which a model may take its columns, by its signature; a single one where that says it.

    Args:
        model: The model; wrappers of any arguments (compiled, data-parallel, averaged) take what the wrapped one does.
        names: For "numeric" and "categorical" the parameter, its position, or the key of the dictionary.

    Raises:
        ForwardError: ``forward`` needs further arguments.
        InputError: ``names`` names something that forward does not take.
    """
    parameters = _parameters(innermost(model))
    name = type(model).__name__
    if names is not None:
        return [_named(names, parameters, name)]
    plain = [p for p in parameters if p.kind not in _ANYTHING]
    required = [p for p in plain if p.default is p.empty]
    chosen = _by_name(plain, required)
    if len(required) > 2 or (len(chosen) == 2 and any(p not in chosen.values() for p in required)):
        raise ForwardError(
            f"{name}.forward needs {', '.join(p.name for p in required)}; a TabularAdapter gives rows, or numeric and "
            "categorical columns. Wrap the model in a module that takes those."
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


def decide(model: nn.Module, ways: Sequence[TableForward], rows: TrialRows) -> TableForward:
    """Return the one way in which a model takes its columns, found by running it where the signature does not say it.

    A way is right if the model runs, and looks up (in embeddings, in one-hot codes, by indexing) what changes with the
    categories and not with the numbers.

    Args:
        model: The model.
        ways: What the signature allows.
        rows: Rows to try it on.

    Raises:
        ForwardError: The model runs in no way, or in several that cannot be told apart.
    """
    if len(ways) > 1 and rows.numeric is not None:
        ways = [way for way in ways if way != _ONLY_CATEGORIES]
    if len(ways) == 1 and (not rows.are_of_one_kind or ways[0].in_dictionary or not ways[0].takes_two):
        return ways[0]
    model = innermost(model)
    failures: list[str] = []
    found: list[tuple[TableForward, bool]] = []
    for empty in (False, True) if rows.are_of_one_kind else (False,):
        for way in ways:
            tried, outcome = _tried(replace(way, empty=empty), model, rows)
            if isinstance(outcome, str):
                failures.append(f"{_in_words(tried)}: {outcome}")
            elif not outcome.by_numbers:
                found.append((tried, outcome.by_categories))
        if found:
            break
    if len(ways) == 1:  # Where it does not run either way, the model's own error says more.
        return found[0][0] if found else ways[0]
    if rows.are_of_one_kind and any(way == ALL_IN_ONE for way, _ in found):
        return ALL_IN_ONE
    telling = [way for way, by_categories in found if by_categories] or [way for way, _ in found]
    if len(telling) == 1:
        return telling[0]
    name = type(model).__name__
    if telling:
        raise ForwardError(
            f"{name}.forward runs {' and '.join(map(_in_words, telling))}, and neither its parameters' names nor what "
            f"it looks up tell which is meant. {_ASK}"
        )
    said = f" ({'; '.join(dict.fromkeys(failures))})" if failures else ""
    raise ForwardError(f"it is not known how {name}.forward takes the columns{said}. {_ASK}")


def innermost(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers whose own signature takes anything.

    Example:
        >>> innermost(nn.DataParallel(nn.Linear(2, 1)))
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
    """Return the one module in another if it surely is what that passes its arguments on to: it names both kinds."""
    children = list(model.children())
    if len(children) != 1:
        return None
    inner = innermost(children[0])
    plain = [p for p in _parameters(inner) if p.kind not in _ANYTHING]
    return inner if _by_name(plain, [p for p in plain if p.default is p.empty]) else None


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    return list(parameters_of(model).values())


def _by_name(plain: Sequence[inspect.Parameter], required: Sequence[inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Return the parameters for numeric and for categorical columns, where names tell both or one of two."""
    found = {kind: next((p for p in plain if _is_for(kind, p)), None) for kind in KINDS}
    for kind, other in (KINDS, KINDS[::-1]):
        # The parameter beside the one for categories holds the numbers, whatever it is called. One for numbers alone
        # says less: "num_steps" may be anything.
        sure = found[other] is not None and (other == "categorical" or found[other] in required)
        if sure and found[kind] is None:
            beside = [p for p in (required if kind == "categorical" else required or plain) if p is not found[other]]
            found[kind] = beside[0] if beside else None
    out = {kind: p for kind, p in found.items() if p is not None}
    return out if len(out) == 2 else {}


def _is_for(kind: str, parameter: inspect.Parameter) -> bool:
    """Return whether a parameter takes this kind of column: its name says so, and its default is not a switch's."""
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
    """Return the way of two parameters: by position where they are the first two, else by name."""
    places = parameters.index(numbers), parameters.index(categories)
    by_name = any(p.kind is p.KEYWORD_ONLY for p in (numbers, categories)) or sorted(places) != [0, 1]
    return TableForward(numbers.name, categories.name) if by_name else TableForward(*places)


def _named(names: Mapping[str, Place], parameters: Sequence[inspect.Parameter], model: str) -> TableForward:
    """Return the way that the user names, checked against the signature."""
    unknown = [kind for kind in names if kind not in KINDS]
    places = list(names.values())
    if unknown or not names or len(set(places)) != len(places):
        raise InputError(f"forward_names is {dict(names)!r}; it gives each of 'numeric' and 'categorical' a place.")
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
    """Whether what a model looked up changed with the categories, and with the numbers."""

    by_categories: bool
    by_numbers: bool


def _tried(way: TableForward, model: nn.Module, rows: TrialRows) -> tuple[TableForward, _Outcome | str]:
    """Return the way, with the keys that the model asked for, and what came of a run, or why there was none."""
    asked = _Asked(rows)
    lookups = _Lookups()
    try:
        with trial(model) as own, lookups:
            if way.in_dictionary:
                own(asked)
            elif way.takes_two:
                way.call(own, rows.numeric, rows.categorical)
            else:
                own(rows.whole)
    except Exception as error:
        return way, f"{type(error).__name__} {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
    if way.in_dictionary:
        keys = asked.keys_by_kind
        way = replace(way, numeric=keys.get("numeric"), categorical=keys.get("categorical"))
        lacks = [kind for kind in KINDS if getattr(rows, kind) is not None and getattr(way, kind) is None]
        if lacks:
            return way, f"it does not ask for the {lacks[0]} columns"
    return way, lookups.outcome()


class _Asked(dict[str, Any]):
    """The dictionary that a model is tried on: it tells the kind of column by the key that the model asks for."""

    def __init__(self, rows: TrialRows) -> None:
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
    """Records what three rows look up, by embeddings, one-hot codes and indexing."""

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


def _in_words(way: TableForward) -> str:
    """Return how a way passes the columns, for messages."""
    if way.in_dictionary:
        return "with a dictionary"
    if not way.takes_two:
        return "with all columns in one tensor"
    names = [kind for kind in ("numeric", "categorical") if getattr(way, kind) is not None]
    return f"with ({', '.join(sorted(names, key=lambda kind: str(getattr(way, kind))))})"


def _nothing(other: Tensor | None, kind: str) -> Tensor:
    """Return the empty columns of a kind, (n, 0), beside those of the other kind."""
    assert other is not None  # a row has columns
    return other.new_empty((len(other), 0), dtype=torch.int64 if kind == "categorical" else torch.get_default_dtype())
