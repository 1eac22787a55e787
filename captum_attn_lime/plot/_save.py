"""`save`: writes a figure to a file atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from captum_attn_lime._util.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save(drawn: Figure | Axes, path: str | os.PathLike[str], **options: Any) -> Path:
    """Save a figure like ``Figure.savefig``, but atomically, and return its path.

    Args:
        drawn: A figure, or axes, whose whole figure is saved.
        path: Where to write; its extension selects the format.
        options: Further arguments of ``savefig``.

    Raises:
        FileError: The folder does not exist, or the file cannot be written.
        ValueError: Matplotlib does not know the format.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(), Path(folder) / "empty.png").read_bytes()[1:4]
        b'PNG'
    """
    from matplotlib import rcParams

    figure = cast("Any", drawn).figure.figure  # the top-level figure, also for axes of a subfigure
    ending = Path(path).suffix[1:]
    if not ending and "format" not in options:
        ending = rcParams["savefig.format"]
        path = Path(path).with_suffix(f".{ending}")  # as savefig does
    return write_whole(path, lambda file: figure.savefig(file, **{"format": ending, **options}))
