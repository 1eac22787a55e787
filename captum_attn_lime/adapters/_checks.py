"""Checks of options that several adapters share."""

from __future__ import annotations

from typing import Any

from captum_attn_lime.errors import InputError


def check_count(name: str, value: Any, of: str) -> None:
    """Raise InputError unless an argument is a positive whole number."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive number of {of}, but is {value!r}.")
