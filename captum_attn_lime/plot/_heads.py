"""Heat maps of attention weights: a single map, or a grid of layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.plot._common import Floats, as_floats, axes_or_new, color_map, largest, limits, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

GAP = 0.12  # between the tiles of the grid, in tiles
LABEL_TOKENS = 10  # with more tokens, the grid labels only special tokens
LABEL_TILES = 6  # likewise with more tiles in a row or column
MAX_SPECIAL = 4  # with more runs of special tokens, the grid has no labels
MAX_LABELS = 60  # maximum number of evenly spaced labels on an axis of a single map
TOKEN_LENGTH = 14  # maximum length of a token label


def attention(
    weights: Any,
    tokens: Sequence[str] | None = None,
    *,
    key_tokens: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    cmap: str | Colormap | None = None,
) -> Axes:
    """Draw one attention map, with a row per query token and a column per key token.

    Args:
        weights: ``(Q, K)``; an array or tensor.
        tokens: The ``Q`` query tokens; also the key tokens unless ``key_tokens`` is given.
        key_tokens: The ``K`` key tokens.
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the map.
        cmap: A Matplotlib colour map.

    Returns:
        The axes, with the weights as its image.

    Raises:
        InputError: The weights are not a matrix, or the tokens do not match its rows and columns.

    Example:
        >>> ax = attention([[0.9, 0.1], [0.5, 0.5]], ["good", "film"])
        >>> [t.get_text() for t in ax.get_yticklabels()]
        ['good', 'film']
    """
    values = as_floats(weights, "weights", 2)
    n_queries, n_keys = values.shape
    if not values.size:
        raise InputError(f"weights has shape {values.shape}; there is nothing to draw.")
    queries = _names(tokens, n_queries, "tokens", "query")
    keys = _names(key_tokens if key_tokens is not None else tokens, n_keys, "key_tokens", "key")
    ax = axes_or_new(ax, min(2.6 + 0.26 * n_keys, 12), min(2.0 + 0.26 * n_queries, 11))
    low, high = limits(values)
    image = ax.imshow(values, cmap=color_map(values, cmap), vmin=low, vmax=high)
    if keys is not None:
        _label(ax.xaxis, keys)
        ax.tick_params(axis="x", rotation=90)
    if queries is not None:
        _label(ax.yaxis, queries)
    ax.set_xlabel("key (is read)")
    ax.set_ylabel("query (reads)")
    _frameless(ax)
    if title is not None:
        ax.set_title(title, fontsize=11, fontweight="bold", parse_math=False)
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="attention weight").outline.set_visible(False)
    return ax


def heads(
    weights: Any,
    *,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    layer_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    shared_scale: bool = True,
    cmap: str | Colormap | None = None,
) -> Axes:
    """Draw the attention of every head as a grid of small maps, with a row per layer and a column per head.

    Args:
        weights: ``(L, H, Q, K)``, or a sequence of ``(H, Q, K)``, one per layer, which may differ in shape.
        tokens: The query tokens; also the key tokens unless ``key_tokens`` is given. With many tokens or maps, only
            special tokens in brackets, like [CLS] or <s>, are labelled, since they may carry most of the weight.
        key_tokens: The key tokens.
        layer_names: One name per layer; defaults to ``layer 0``, ``layer 1``, ...
        ax: Axes to draw on; by default those of a new figure.
        title: Title above the grid.
        shared_scale: Whether all maps share one colour scale; otherwise each map is scaled by its largest weight, which
            also shows the pattern of flat heads.
        cmap: A Matplotlib colour map.

    Returns:
        The axes, with one image per head, row by row.

    Raises:
        InputError: The weights have another shape, or the names do not match the layers or tokens.

    Example:
        >>> import numpy as np
        >>> len(heads(np.full((2, 4, 5, 5), 0.2)).images)
        8
    """
    layers = _layers(weights)
    n_columns = max(len(layer) for layer in layers)
    names = list(layer_names) if layer_names is not None else [f"layer {i}" for i in range(len(layers))]
    if len(names) != len(layers):
        raise InputError(f"there are {len(layers)} layers but {len(names)} layer_names; pass one name per layer.")
    _check_tokens(layers, tokens, key_tokens)
    tile = float(np.clip(11 / max(n_columns, len(layers)), 0.55, 1.5))
    ax = axes_or_new(ax, 1.9 + tile * n_columns, 1.0 + tile * len(layers))
    top = max(largest(layer) for layer in layers)
    for row, layer in enumerate(layers):
        for column, values in enumerate(layer):
            left, upper = column * (1 + GAP), row * (1 + GAP)
            image = ax.imshow(
                values,
                cmap=color_map(values, cmap),
                vmin=0.0,
                vmax=top if shared_scale else largest(values),
                extent=(left, left + 1, upper + 1, upper),
            )
    ax.set_xlim(-0.02, n_columns * (1 + GAP) - GAP + 0.02)
    ax.set_ylim(len(layers) * (1 + GAP) - GAP + 0.02, -0.02)
    _label_grid(ax, names, n_columns)
    _label_tiles(ax, layers, n_columns, tokens, key_tokens if key_tokens is not None else tokens)
    _frameless(ax)
    if title is not None:
        ax.set_title(title, fontsize=11, fontweight="bold", pad=12, parse_math=False)
    if shared_scale:
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=30, label="attention weight")
        bar.outline.set_visible(False)
    else:
        ax.set_xlabel(f"{ax.get_xlabel()} (each map is scaled by its largest weight)")
    return ax


def _layers(weights: Any) -> list[Floats]:
    """Return one (H, Q, K) array per layer, checked."""
    if hasattr(weights, "ndim") and weights.ndim != 4:
        raise InputError(
            f"weights has shape {tuple(weights.shape)}, but (L, H, Q, K), or a list of (H, Q, K), is needed. For one "
            "map (Q, K) use plot.attention."
        )
    layers = [as_floats(layer, f"weights[{i}]", 3) for i, layer in enumerate(weights)]
    if not layers or any(not layer.size for layer in layers):
        raise InputError("weights contains no attention maps; there is nothing to draw.")
    return layers


def _names(tokens: Sequence[str] | None, n: int, name: str, role: str) -> list[str] | None:
    if tokens is None:
        return None
    if len(tokens) != n:
        raise InputError(f"there are {len(tokens)} {name} but {n} {role} positions; pass one token per position.")
    return [shorten(token, TOKEN_LENGTH) for token in tokens]


def _check_tokens(layers: Sequence[Floats], tokens: Sequence[str] | None, keys: Sequence[str] | None) -> None:
    for layer in layers:
        _names(tokens, layer.shape[1], "tokens", "query")
        _names(keys if keys is not None else tokens, layer.shape[2], "key_tokens", "key")


def _label(axis: Any, names: Sequence[str]) -> None:
    """Label every position, or every n-th if labels would overlap."""
    step = -(-len(names) // MAX_LABELS)
    places = range(0, len(names), step)
    axis.set_ticks(list(places), [names[i] for i in places], fontsize=9, parse_math=False)


def _label_grid(ax: Axes, names: Sequence[str], n_columns: int) -> None:
    """Label the layers on the left and the heads on top."""
    size = 9 if max(len(names), n_columns) <= 12 else 7
    middles = [i * (1 + GAP) + 0.5 for i in range(max(len(names), n_columns))]
    ax.set_yticks(middles[: len(names)], [shorten(n, 40) for n in names], fontsize=size, parse_math=False)
    ax.set_xticks(middles[:n_columns], [str(i) for i in range(n_columns)], fontsize=size)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("head", fontsize=size)


def _label_tiles(
    ax: Axes, layers: Sequence[Floats], n_columns: int, queries: Sequence[str] | None, keys: Sequence[str] | None
) -> None:
    """Label the tokens below the bottom row and left of the first column; only special ones if there are many."""
    if queries is None or keys is None:
        return
    many = max(len(layers), n_columns) > LABEL_TILES or max(len(queries), len(keys)) > LABEL_TOKENS
    bottom = len(layers) * (1 + GAP) - GAP
    for column in range(n_columns):
        for i in _special(keys) if many else range(len(keys)):
            ax.text(column * (1 + GAP) + (i + 0.5) / len(keys), bottom + 0.05, shorten(keys[i], TOKEN_LENGTH),
                    rotation=90, ha="center", va="top", fontsize=7, parse_math=False)  # fmt: skip
    longest = 0
    for row in range(len(layers)):
        for i in _special(queries) if many else range(len(queries)):
            label = shorten(queries[i], TOKEN_LENGTH)
            longest = max(longest, len(label))
            ax.text(-0.05, row * (1 + GAP) + (i + 0.5) / len(queries), label,
                    ha="right", va="center", fontsize=7, parse_math=False)  # fmt: skip
    ax.tick_params(axis="y", pad=6 + 4.2 * longest)


def _special(tokens: Sequence[str]) -> list[int]:
    """Return the first position of each run of a special token, if its label fits; none if there are many runs."""
    special = [len(token) > 2 and token[0] + token[-1] in ("[]", "<>") for token in tokens]
    runs = [i for i, found in enumerate(special) if found and (i == 0 or tokens[i - 1] != tokens[i])]
    shown: list[int] = []
    for i in runs:
        if not shown or (i - shown[-1]) * LABEL_TOKENS >= len(tokens):
            shown.append(i)
    return shown if len(runs) <= MAX_SPECIAL else []


def _frameless(ax: Axes) -> None:
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
