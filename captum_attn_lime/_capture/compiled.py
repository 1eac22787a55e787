"""Runs compiled code uncompiled during a capture, since code compiled by torch.compile cannot be observed."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from captum_attn_lime.errors import UnreadableAttentionError

# The compiler's stance is global to the process, so captures in several threads share one change of it.
_lock = threading.RLock()
_users: set[RunningEagerly] = set()
_before: list[Any] = []  # the stance that the first user found


class RunningEagerly:
    """From :meth:`begin` to :meth:`end`, torch.compile's wrappers call the original functions.

    Nothing is recompiled or discarded: afterwards the compiled code runs as before. flex_attention, which compiles
    itself, also runs uncompiled, and can then be observed. The stance applies to the whole process: meanwhile, compiled
    code in other threads also runs uncompiled, more slowly, with the results of its original functions.
    """

    def begin(self) -> None:
        """Change the stance, unless another capture already has.

        Raises:
            UnreadableAttentionError: This is compiled code.
        """
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled; importing the compiler would take seconds
            _locked(self._join)

    def end(self) -> None:
        """Restore the stance if this is the last user; further calls do nothing."""
        if _before or self in _users:
            _locked(self._leave)

    def _join(self) -> None:
        from torch._dynamo import eval_frame

        if not _before:
            # Stored before the change, since an interrupt may come in between. If an interrupt prevented an earlier
            # capture from restoring it, the stance is still stored here, and this capture restores it.
            _before.append(eval_frame._stance)
        try:
            eval_frame._set_stance(eval_frame.DynamoStance("force_eager"))
        except RuntimeError as error:
            if not _users:
                _before.clear()
            raise UnreadableAttentionError(
                "a capture was begun inside compiled code; begin it outside the function that torch.compile wraps."
            ) from error
        _users.add(self)

    def _leave(self) -> None:
        from torch._dynamo import eval_frame

        _users.discard(self)
        if not _users and _before:
            eval_frame._set_stance(_before[0])
            _before.clear()


def _locked(work: Callable[[], None]) -> None:
    """Call a function under the lock, and release the lock at whichever line an interrupt comes."""
    try:
        try:
            _lock.acquire()
            work()
        finally:
            _release()
    finally:
        _release()


def _release() -> None:
    with contextlib.suppress(RuntimeError):  # this thread does not hold it (any more)
        _lock.release()
