"""Diagnostics and word mappings grow as lime itself does: memory by tracemalloc, work by counts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from captum_attn_lime._explained import Explained
from captum_attn_lime.lime import _explanations as explanations
from captum_attn_lime.lime._diagnostics import diagnose
from captum_attn_lime.lime._fits import Fit, FitData


@pytest.mark.parametrize(("n", "d"), [(1500, 300), (1000, 1000), (300, 2500)])
def test_diagnostics_take_two_copies_of_the_samples(n, d):
    r = np.random.RandomState(0)
    x = r.randint(0, 2, (n, d)).astype(float)
    y, kernel = x[:, :5].sum(axis=1) + r.normal(size=n), r.uniform(0.1, 1, n)
    model = Ridge().fit(x, y, sample_weight=kernel)
    result = (model.intercept_, list(enumerate(model.coef_)), 0.9, model.predict(x[:1]))
    fit = Fit(FitData(x, y, kernel, (0,), 1, None), result, Explained(1, "logit"))
    diagnose(fit)  # imports
    tracemalloc.start()
    try:
        found = diagnose(fit)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    lesser = min(n, d) ** 2 * 8
    assert peak <= 2 * x.nbytes + 2 * lesser + 8 * 200 * d * 8 + 2**20
    assert np.isfinite(list(found.standard_errors.values())).all()
    assert found.n_distinct == n


class Span(tuple):
    """Counts how often it is looked at."""

    looks = 0

    def __getitem__(self, k):
        Span.looks += 1
        return super().__getitem__(k)


def test_overlaps_look_at_each_span_a_few_times():
    for n in (100, 2000):
        spans = [Span((6 * k, 6 * k + 5)) for k in range(n)]
        Span.looks = 0
        found = list(explanations._overlaps([(6 * k, 6 * k + 5) for k in range(n)], spans))
        assert found == [{k: 5} for k in range(n)]
        assert Span.looks <= 6 * n


def test_overlaps_of_any_spans_are_those_of_all_pairs():
    r = np.random.RandomState(0)
    for _ in range(50):
        cuts = np.sort(r.choice(60, 12, replace=False)).tolist()
        units = list(zip(cuts[::2], cuts[1::2], strict=True))
        spans = [None if r.rand() < 0.2 else (int(a), int(a + r.randint(0, 15))) for a in r.randint(0, 60, 25)]
        slow = []
        for start, end in units:
            shared = {k: min(end, s[1]) - max(start, s[0]) for k, s in enumerate(spans) if s is not None}
            slow.append({k: n for k, n in shared.items() if n > 0 and spans[k][1] > spans[k][0]})
        assert list(explanations._overlaps(units, spans)) == slow
