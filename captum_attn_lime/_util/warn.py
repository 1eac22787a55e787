"""Warnings that point at the user's line, however deep in the package their cause lies."""

from __future__ import annotations

import sys
import warnings

# The user's code calls this package through Captum, lime or a torch module.
_LIBRARIES = frozenset({"captum_attn_lime", "captum", "lime", "torch", "contextlib", "functools"})


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line that is in none of the libraries."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
