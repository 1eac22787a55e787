"""Running compiled code uncompiled for the time of a capture: what torch.compile wraps cannot be watched."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from captum_attn_lime.errors import UnreadableAttentionError

# The compiler's stance is one for the whole process, so captures in several threads share one change of it.
_lock = threading.RLock()
_users: set[RunningEagerly] = set()
_before: list[Any] = []  # the stance that the first user found


class RunningEagerly:
    """From :meth:`begin` to :meth:`end` torch.compile's wrappers call the functions they were given.

    Nothing is recompiled or forgotten: behind it the compiled code runs as before. flex_attention, which compiles
    itself, runs uncompiled too, and can then be seen. The stance is that of the process: compiled code in other threads
    runs uncompiled meanwhile, slower, with the results of the code it was compiled from.
    """

    def begin(self) -> None:
        """Change the stance, unless another capture has.

        Raises:
            UnreadableAttentionError: This is compiled code.
        """
        if "torch._dynamo" in sys.modules:  # or nothing has been compiled, and importing the compiler takes seconds
            _locked(self._join)

    def end(self) -> None:
        """Put the stance back where this is the last user; doing it again changes nothing."""
        if _before or self in _users:
            _locked(self._leave)

    def _join(self) -> None:
        from torch._dynamo import eval_frame

        if not _before:
            # Before the change, and not what the change returns: an interrupt may come between the two. Where one has
            # kept a capture from putting it back, it is still here, and this capture does.
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
    """Do a work under the lock, and let go of it at whatever line an interrupt comes."""
    try:
        try:
            _lock.acquire()
            work()
        finally:
            _release()
    finally:
        _release()


def _release() -> None:
    with contextlib.suppress(RuntimeError):  # it is not this thread's, or not any more
        _lock.release()
