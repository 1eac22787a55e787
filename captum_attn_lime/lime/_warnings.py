"""How warnings about explanations reach the user: each at the user's line, and once for many explanations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType

from captum_attn_lime._util.warn import warn
from captum_attn_lime.errors import LimeWarning

_Collected = list[tuple[str, ...]]  # by explanation what there is to warn of

_collecting: ContextVar[_Collected | None] = ContextVar("_collecting", default=None)


class collected_warnings:
    """A block whose explanations warn once at its end, each warning with the number of explanations that it is about.

    Within another such block the outer one collects. After an exception nothing is said.

    Warns:
        LimeWarning: At the end: explanations say less than they seem to.

    Example::

        with collected_warnings():
            explanations = [lime.explain(text) for text in texts]
    """

    def __init__(self) -> None:
        self._token: Token[_Collected | None] | None = None

    def __enter__(self) -> None:
        if _collecting.get() is None:
            self._token = _collecting.set([])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is None:
            return
        found = _collecting.get() or []
        _collecting.reset(self._token)
        self._token = None
        if kind is None:
            _warn(_counted(found))


@contextmanager
def suppressed_warnings() -> Iterator[None]:
    """Run a block whose explanations warn of nothing: another one will be made of them, and warns."""
    token = _collecting.set([])
    try:
        yield
    finally:
        _collecting.reset(token)


def emit(briefs: Sequence[str]) -> None:
    """Warn of one explanation. The words hold no numbers, so that Python shows each once over many explanations."""
    collected = _collecting.get()
    if collected is not None:
        collected.append(tuple(briefs))
    else:
        _warn(_one(brief) for brief in briefs)


def _one(brief: str) -> str:
    return f"{brief}; see explanation.diagnostics."


def _counted(found: _Collected) -> list[str]:
    """Return each warning once, with the number of explanations that have it, in the order in which they came up."""
    briefs = dict.fromkeys(brief for own in found for brief in own)
    if len(found) == 1:
        return [_one(brief) for brief in briefs]
    total = len(found)
    return [f"{sum(brief in own for own in found)} of {total} explanations: {_one(brief)}" for brief in briefs]


def _warn(messages: Iterable[str]) -> None:
    """Warn at the user's line."""
    for message in messages:
        warn(message, LimeWarning)
