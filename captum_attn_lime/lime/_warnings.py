"""Issues warnings about explanations: at the user's line, and once for many explanations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType

from captum_attn_lime._util.warn import warn
from captum_attn_lime.errors import LimeWarning

_Collected = list[tuple[str, ...]]  # the messages of each explanation

_collecting: ContextVar[_Collected | None] = ContextVar("_collecting", default=None)


class collected_warnings:
    """Context manager that issues each warning about explanations once, at its end, with their number.

    In nested blocks the outermost one collects. After an exception it does not warn.

    Warns:
        LimeWarning: At the end: explanations are less reliable than they look.

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
        collected = _collecting.get() or []
        _collecting.reset(self._token)
        self._token = None
        if kind is None:
            _warn(_counted(collected))


@contextmanager
def suppressed_warnings() -> Iterator[None]:
    """Suppress warnings within a block, whose explanations are pooled into one that warns."""
    token = _collecting.set([])
    try:
        yield
    finally:
        _collecting.reset(token)


def emit(briefs: Sequence[str]) -> None:
    """Warn about one explanation; messages hold no numbers, so that Python shows each once."""
    collected = _collecting.get()
    if collected is not None:
        collected.append(tuple(briefs))
    else:
        _warn(_one(brief) for brief in briefs)


def _one(brief: str) -> str:
    return f"{brief}; see explanation.diagnostics."


def _counted(collected: _Collected) -> list[str]:
    """Return each message once, in order of appearance, with the number of explanations that have it."""
    briefs = dict.fromkeys(brief for messages in collected for brief in messages)
    if len(collected) == 1:
        return [_one(brief) for brief in briefs]
    counts = {brief: sum(brief in messages for messages in collected) for brief in briefs}
    return [f"{count} of {len(collected)} explanations: {_one(brief)}" for brief, count in counts.items()]


def _warn(messages: Iterable[str]) -> None:
    """Warn at the user's line."""
    for message in messages:
        warn(message, LimeWarning)
