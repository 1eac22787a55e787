"""Slow oracles of the metrics, written from their definitions without numpy or scipy."""

from __future__ import annotations

from itertools import combinations, permutations
from math import sqrt
from typing import Any


def tau_b(a: list[float], b: list[float]) -> float | None:
    """Kendall's tau-b by counting every pair; None where a vector is constant."""
    concordant = discordant = tied_a = tied_b = 0
    n0 = len(a) * (len(a) - 1) // 2
    for i, j in combinations(range(len(a)), 2):
        up_a, up_b = a[i] - a[j], b[i] - b[j]
        tied_a += up_a == 0
        tied_b += up_b == 0
        concordant += up_a * up_b > 0
        discordant += up_a * up_b < 0
    under = (n0 - tied_a) * (n0 - tied_b)
    return (concordant - discordant) / sqrt(under) if under else None


def average_ranks(x: list[float]) -> list[float]:
    """The rank of each value from 1, equal values sharing the mean of their places."""
    return [1 + sum(v < u for v in x) + (sum(v == u for v in x) - 1) / 2 for u in x]


def spearman_rho(a: list[float], b: list[float]) -> float | None:
    """Pearson's correlation of the average ranks; None where a vector is constant."""
    x, y = average_ranks(a), average_ranks(b)
    mean = (len(x) + 1) / 2
    xx, yy = sum((u - mean) ** 2 for u in x), sum((v - mean) ** 2 for v in y)
    if not xx or not yy:
        return None
    return sum((u - mean) * (v - mean) for u, v in zip(x, y, strict=True)) / sqrt(xx * yy)


def top_k(x: list[float], k: int) -> set[int]:
    """The features that at most k features reach, themselves included."""
    return {i for i, u in enumerate(x) if sum(v >= u for v in x) <= k}


def jaccard(a: list[float], b: list[float], k: int) -> float | None:
    """Shared over joint size of the two top-k sets; None where there is no top."""
    s, t = top_k(a, k), top_k(b, k)
    return len(s & t) / len(s | t) if len(a) > k and s and t else None


def mean_jaccard_over_orders(n: int, k: int) -> float:
    """The mean overlap with one fixed ranking over all n! rankings."""
    fixed = set(range(k))
    overlaps = [len(fixed & set(p[:k])) / len(fixed | set(p[:k])) for p in permutations(range(n))]
    return sum(overlaps) / len(overlaps)


def agreement(table: Any, k: int = 5) -> dict[tuple[str, str], list[float | None]]:
    """The three measures of the magnitudes of each pair of columns, over the rows where both have a value."""
    found = {}
    for first, second in combinations(table.columns, 2):
        rows = [(abs(a), abs(b)) for a, b in zip(table[first], table[second], strict=True) if a == a and b == b]
        a, b = [x for x, _ in rows], [y for _, y in rows]
        found[first, second] = [tau_b(a, b), spearman_rho(a, b), jaccard(a, b, k)]
    return found


def global_view(scores: list[list[float]], names: list[list[str]]) -> dict[str, list[float | None]]:
    """The mean, the deviation (n - 1) and the number of each name's magnitudes, and the mean share behind the names."""
    magnitudes: dict[str, list[float]] = {}
    shares = []
    for values, own in zip(scores, names, strict=True):
        known = [(name, value) for name, value in zip(own, values, strict=False) if value == value]
        for name in {name for name, _ in known}:
            magnitudes.setdefault(name, []).append(abs(sum(value for other, value in known if other == name)))
        every = sum(abs(value) for value in values if value == value)
        behind = sum(abs(value) for value in values[len(own) :])
        shares.append(behind / every if every else 0.0)
    found: dict[str, list[float | None]] = {"outside": [sum(shares) / len(shares)]}
    for name, seen in magnitudes.items():
        n, mean = len(seen), sum(seen) / len(seen)
        spread = sqrt(sum((x - mean) ** 2 for x in seen) / (n - 1)) if n > 1 else None
        found[name] = [mean, spread, n]
    return found
