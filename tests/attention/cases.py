"""Random attention calls with the masks that models pass, their weights by the formula, and the way a product took."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from captum_attn_lime.attention import (
    AttentionMap,
    DenseMap,
    HeadFusedMap,
    ModifiedScoreMap,
    OffloadedMap,
    OneRowMap,
    ScoreMap,
    WindowedMap,
    offloaded,
)
from captum_attn_lime.attention import _blocks as blocks
from captum_attn_lime.attention import _fused as fused
from captum_attn_lime.generation._shared import SharedMap

FUSIONS = {"mean": np.mean, "max": np.max, "min": np.min}
# Masks that differ from row to row need as many keys as queries where they are causal.
SQUARE = ("causal", "causal_float", "left_bool", "left_float", "right_bool", "right_float", "window", "window_float")
KINDS = (
    "keys",  # (B, 1, 1, K) of bool
    "keys_written_out",  # the same as (B, 1, Q, K)
    "keys_min",  # the least finite number of the type where a key is masked
    "keys_10000",
    "keys_inf",
    "key_bias",  # (1, H, 1, K), any numbers
    "one_row",  # (K,)
    "rows",  # (B, 1, Q, K) of bool, rows without any key among them
    "by_query",  # (B, 1, Q, 1): whole rows are masked
    "bias",  # (Q, K)
    "bias_by_head",  # (H, Q, K)
    "bias_by_all",  # (B, H, Q, K)
    *SQUARE,
)


class Case(NamedTuple):
    """A call's arguments, and the sum of its masks."""

    query: Tensor  # (B, H, Q, d)
    key: Tensor  # (B, Hk, K, d)
    masks: tuple[Tensor, ...]
    scale: float | None
    is_causal: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.query.shape[:3], self.key.shape[2])

    def map(self, **options: Any) -> ScoreMap:
        return ScoreMap(self.query, self.key, masks=self.masks, scale=self.scale, is_causal=self.is_causal, **options)

    def merged(self) -> Tensor:
        """Masks and causality as one additive mask, (B, H, Q, K), in the type in which models compute scores."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        full = torch.zeros(self.shape, dtype=dtype)
        for mask in self.masks:
            full = full.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else full + mask.to(dtype)
        if self.is_causal:
            full = full.masked_fill(torch.ones(self.shape[2:], dtype=torch.bool).triu(1), -math.inf)
        return full


def softmax_of(case: Case) -> np.ndarray:
    """softmax(scale · QKᵀ + masks) in numpy float64, (B, H, Q, K); a row without any key is zero."""
    query, key = case.query.double().numpy(), case.key.double().numpy()
    key = key.repeat(query.shape[1] // key.shape[1], axis=1)
    scale = 1 / math.sqrt(query.shape[-1]) if case.scale is None else case.scale
    scores = np.einsum("bhqd,bhkd->bhqk", query, key) * scale + case.merged().double().numpy()
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


def kernel_log_sums(case: Case) -> Tensor:
    """The log-sum-exp of each row as the forward pass of torch's CPU kernel gives it, (B, H, Q) contiguous."""
    key = case.key.repeat_interleave(case.query.shape[1] // case.key.shape[1], dim=1)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    query = case.query.contiguous()
    return kernel(query, key.contiguous(), key.contiguous(), 0.0, False, attn_mask=case.merged(), scale=case.scale)[
        1
    ].contiguous()


def make_mask(kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """A mask as a model would pass it."""
    b, h, q, k = shape
    generator = torch.Generator().manual_seed(seed)
    least = torch.finfo(dtype).min

    def rand(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    def added(allowed: Tensor, low: float) -> Tensor:
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, low)

    keys = rand(b, 1, 1, k) > 0.4
    if seed % 3:
        keys[..., 0] = True  # else an example may have no key at all
    if kind.startswith("keys"):
        low = {"keys_min": least, "keys_10000": -10_000.0, "keys_inf": -math.inf}.get(kind)
        keys = keys.expand(b, 1, q, k).clone() if kind == "keys_written_out" else keys
        return keys if low is None else added(keys, low)
    if kind in ("rows", "one_row", "by_query"):
        return rand(*{"rows": (b, 1, q, k), "one_row": (k,), "by_query": (b, 1, q, 1)}[kind]) > 0.4
    if "bias" in kind:
        size = {"key_bias": (1, h, 1, k), "bias": (q, k), "bias_by_head": (h, q, k), "bias_by_all": (b, h, q, k)}[kind]
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) * 2
    seen = torch.ones(k, k, dtype=torch.bool).tril()
    if kind.startswith("window"):
        seen = seen.triu(-int(rand(1) * k))
        return seen if kind == "window" else added(seen, least)
    if kind.startswith("causal"):
        return added(seen[None, None], least) if kind == "causal_float" else seen
    # As transformers merges padding with causality: rows of left padding may attend to nothing.
    real, place = 1 + (rand(b) * k).long(), torch.arange(k)
    padded = place >= k - real[:, None] if kind.startswith("left") else place < real[:, None]  # (b, k)
    merged = seen & padded[:, None, None]
    return merged if kind.endswith("bool") else added(merged, least)


@st.composite
def cases(draw: Any, kinds: Sequence[str] = KINDS, dtype: torch.dtype = torch.float64, most: int = 2) -> Case:
    """Calls of random shapes with up to ``most`` masks."""
    chosen = draw(st.lists(st.sampled_from(kinds), max_size=most, unique=True))
    b, key_heads, groups, d = (draw(st.integers(1, n)) for n in (3, 2, 3, 9))
    q, k = draw(st.integers(1, 14)), draw(st.integers(1, 12))
    is_causal, scale, seed = draw(st.booleans()), draw(st.sampled_from([None, 0.3, 2.0])), draw(st.integers(0, 2**16))
    if any(kind in SQUARE for kind in chosen):
        q = k
    generator = torch.Generator().manual_seed(seed)
    spread = draw(st.sampled_from([0.0, 1.0, 4.0]))
    query = torch.randn(b, key_heads * groups, q, d, generator=generator, dtype=torch.float64) * spread
    key = torch.randn(b, key_heads, k, d, generator=generator, dtype=torch.float64) * spread
    shape = (b, key_heads * groups, q, k)
    masks = tuple(make_mask(kind, shape, dtype, seed + i) for i, kind in enumerate(chosen))
    return Case(query.to(dtype), key.to(dtype), masks, scale, is_causal)


@st.composite
def vectors(draw: Any, shape: tuple[int, int, int, int]) -> Tensor:
    """Weights of the queries: (B, Q) or (B, R, Q), of one or of both signs, with zeros, of few rows or none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    several = draw(st.sampled_from([None, None, 1, 2, 5, 12]))
    size = (shape[0], shape[2]) if several is None else (shape[0], several, shape[2])
    r = torch.rand(size, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        r = r * 2 - 1
    kept = draw(st.sampled_from([1.0, 0.6, 0.1, 0.0]))
    return r * (torch.rand(size, generator=generator) < kept)


@st.composite
def block_sizes(draw: Any) -> tuple[int, int, int]:
    """Values for BLOCK_BYTES, _MIN_QUERIES and _MIN_KEYS."""
    return draw(st.sampled_from([1, 300, 2**20])), draw(st.sampled_from([1, 3, 64])), draw(st.sampled_from([1, 4, 256]))


@contextmanager
def blocks_of(sizes: tuple[int, int, int] | None) -> Iterator[None]:
    """Set the block sizes."""
    if sizes is None:
        yield
        return
    with patch.multiple(blocks, BLOCK_BYTES=sizes[0], _MIN_QUERIES=sizes[1], _MIN_KEYS=sizes[2]):
        yield


@contextmanager
def ways() -> Iterator[list[str]]:
    """The list that fills with what computed each product: vecmat, matmat, tiles, whole_rows; log_sums where needed."""
    taken: list[str] = []

    def noting(name: str, function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            taken.append(name)
            return function(*args, **kwargs)

        return called

    with (
        patch.object(fused, "vecmat", noting("vecmat", fused.vecmat)),
        patch.object(fused, "matmat", noting("matmat", fused.matmat)),
        patch.object(fused, "row_log_sums", noting("log_sums", fused.row_log_sums)),
        patch.object(blocks, "tiles", noting("tiles", blocks.tiles)),
        patch.object(blocks, "whole_rows", noting("whole_rows", blocks.whole_rows)),
    ):
        yield taken


def product(r: Tensor, matrix: np.ndarray) -> np.ndarray:
    """rᵀA for r (B, Q) or (B, R, Q) and A (B, Q, K)."""
    return np.einsum("b...q,bqk->b...k", r.double().numpy(), matrix)


def error(found: Tensor, expected: np.ndarray) -> float:
    """The greatest difference; infinite where the shapes differ or a number is none."""
    if tuple(found.shape) != expected.shape or not bool(torch.isfinite(found).all()):
        return math.inf
    return float(np.abs(found.double().numpy() - expected).max(initial=0.0))


def _index(seed: int, batch: int, n: int, width: int) -> torch.Tensor:
    """Tokens in random places of random windows, some places empty, some windows wholly; windows of any example."""
    generator = np.random.default_rng(seed)
    windows = []
    for example in range(batch):
        tokens = list(generator.permutation(n) + example * n)
        while tokens:
            taken = [tokens.pop() for _ in range(min(len(tokens), int(generator.integers(1, width + 1))))]
            window = np.full(width, -1)
            window[generator.permutation(width)[: len(taken)]] = taken
            windows.append(window)
    windows.append(np.full(width, -1))
    return torch.tensor(np.stack(windows)[generator.permutation(len(windows))])


def _laid_out(inner: np.ndarray, index: torch.Tensor, batch: int, n: int) -> np.ndarray:
    out = np.zeros((batch, inner.shape[1], n, n))
    for window, tokens in enumerate(index.tolist()):
        for p, query in enumerate(tokens):
            for q, key in enumerate(tokens):
                if query >= 0 and key >= 0:
                    out[query // n, :, query % n, key % n] = inner[window, :, p, q]
    return out


def windows_of(seed: int, batch: int, n: int, width: int, heads: int, fused: bool):
    """A map of windows with places that hold no token, its weights (B, H, N, N), and the token of each place."""
    torch.manual_seed(seed)
    index = _index(seed, batch, n, width)
    windows = len(index)
    if fused:
        query, key = torch.randn(2, windows, heads, width, 4, dtype=torch.float64) * 2
        inner = ScoreMap(query, key, kind="self", name="layer")
    else:
        scores = torch.randn(windows, heads, width, width, dtype=torch.float64) * 2
        inner = DenseMap(scores.softmax(-1), kind="self", name="layer")
    attention = WindowedMap(inner, index, examples=batch)
    return attention, _laid_out(inner.dense().numpy(), index, batch, n), index


# --- one maker for each kind of map ---------------------------------------------------------------------------------


class Made(NamedTuple):
    """A map with values and output gradients, and the same as arrays in float64.

    Attributes:
        attention: The map.
        weights: (B, H, Q, K).
        value: (B, H, K, d), one for each head.
        gradient: (B, H, Q, d).
        options: With what options alone the map can be read, where it does not keep its heads.
    """

    attention: AttentionMap
    weights: np.ndarray
    value: np.ndarray | None
    gradient: np.ndarray | None
    options: dict[str, Any] | None = None


def _with_values(attention: AttentionMap, draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give a map random values and output gradients, and return those of each head."""
    b, heads, q, k = attention.shape
    value_heads = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    attention.value = torch.randn(b, value_heads, k, 5, generator=generator, dtype=torch.float64)
    attention.output_gradient = torch.randn(b, heads, q, 5, generator=generator, dtype=torch.float64)
    return attention.value.numpy().repeat(heads // value_heads, axis=1), attention.output_gradient.numpy()


def _scores(draw: Any) -> Made:
    case = draw(cases())
    attention = case.map(log_sums=kernel_log_sums(case) if draw(st.booleans()) else None)
    return Made(attention, softmax_of(case), *_with_values(attention, draw))


def _dense(draw: Any) -> Made:
    weights = softmax_of(draw(cases()))
    attention = DenseMap(torch.from_numpy(weights))
    return Made(attention, weights, *_with_values(attention, draw))


def _fused_heads(draw: Any) -> Made:
    weights = softmax_of(draw(cases()))
    options = {"head_fusion": draw(st.sampled_from(sorted(FUSIONS))), "heads": draw(st.sampled_from([None, [0]]))}
    return Made(HeadFusedMap(DenseMap(torch.from_numpy(weights)), **options), weights, None, None, options)


def _windowed(draw: Any) -> Made:
    batch, n, width, heads = (draw(st.integers(1, most)) for most in (3, 7, 4, 3))
    attention, weights, _ = windows_of(draw(st.integers(0, 10_000)), batch, n, width, heads, draw(st.booleans()))
    return Made(attention, weights, *_with_values(attention, draw))


def _modified(draw: Any) -> Made:
    case = draw(cases(kinds=("none",), most=0))
    bound = draw(st.integers(0, 3))
    attention = ModifiedScoreMap(
        case.query,
        case.key,
        score_mod=lambda score, b, h, i, j: score + 0.5 * (h + 1) * (i - j),
        mask_mod=lambda b, h, i, j: i + bound >= j,
        scale=case.scale,
    )
    _, heads, q, k = case.shape
    i, j = np.arange(q)[:, None], np.arange(k)
    bias = torch.from_numpy(0.5 * np.arange(1, heads + 1)[:, None, None] * (i - j)[None])
    seen = torch.from_numpy(i + bound >= j)
    weights = softmax_of(case._replace(masks=(bias, seen), is_causal=False))
    return Made(attention, weights, *_with_values(attention, draw))


def _offloaded(draw: Any) -> Made:
    made = draw(st.sampled_from([_scores, _dense]))(draw)
    return made._replace(attention=offloaded(made.attention, "cpu"))


def _shared(draw: Any) -> Made:
    made = draw(st.sampled_from([_scores, _dense, _windowed]))(draw)
    n = draw(st.integers(1, 3))
    arrays = (np.repeat(x[:1], n, axis=0) for x in (made.weights, made.value, made.gradient))
    return Made(SharedMap(made.attention.first(1), n), *arrays)


def _one_row(draw: Any) -> Made:
    made = draw(st.sampled_from([_scores, _dense]))(draw)
    row, gradient = made.weights[:, :, -1:], made.gradient[:, :, -1:]
    inner = DenseMap(torch.from_numpy(row))
    inner.value, inner.output_gradient = made.attention.value, torch.from_numpy(gradient)
    n = row.shape[3]
    return Made(OneRowMap(inner), row.repeat(n, axis=2), made.value, gradient.repeat(n, axis=2))


MAKERS: dict[type[AttentionMap], Any] = {
    DenseMap: _dense,
    HeadFusedMap: _fused_heads,
    ModifiedScoreMap: _modified,
    OffloadedMap: _offloaded,
    OneRowMap: _one_row,
    ScoreMap: _scores,
    SharedMap: _shared,
    WindowedMap: _windowed,
}
