"""One progress bar for all long work: shown where it is asked for, silent otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int], object]


@contextmanager
def progress(total: int, show: bool, name: str) -> Iterator[Tick]:
    """Give a function that counts what is done, shown as a tqdm bar if wanted.

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
