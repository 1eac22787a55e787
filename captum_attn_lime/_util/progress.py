"""The progress bar of all long computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int], object]


@contextmanager
def progress(total: int, show: bool, name: str) -> Iterator[Tick]:
    """Yield a function that advances a tqdm bar by a number of steps, or does nothing unless ``show`` is set.

    Example:
        >>> with progress(3, False, "texts") as tick:
        ...     tick(2)
    """
    if not show:
        yield lambda n: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=name) as bar:
        yield bar.update
