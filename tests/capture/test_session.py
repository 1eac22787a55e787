"""What a capture keeps and what it leaves: nesting, threads, memory, names, failures."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from torch import nn

from captum_attn_lime import capture
from captum_attn_lime._capture.names import find_modules
from captum_attn_lime.errors import NoAttentionError
from tests.families import EncoderClassifier, bert, build


def test_names_and_order():
    family = build(bert)
    with torch.no_grad(), capture(family.model) as maps:
        family.forward(family.inputs, *family.args)
    assert [m.name for m in maps] == [f"bert.encoder.layer.{i}.attention.self" for i in range(3)]


def test_nested_captures_do_not_mix():
    a, b = (nn.MultiheadAttention(8, 2, batch_first=True).eval() for _ in range(2))
    x = torch.randn(1, 3, 8)
    with capture(a) as outer:
        a(x, x, x)
        with capture(b) as inner:
            b(x, x, x)
    assert len(inner) == 1
    assert 1 <= len(outer) <= 2
    assert (outer[0].dense() - a(x, x, x, average_attn_weights=False)[1]).abs().max() < 1e-6
    assert (inner[0].dense() - b(x, x, x, average_attn_weights=False)[1]).abs().max() < 1e-6


def test_two_threads_over_one_module_do_not_mix():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    inputs, found, barrier = [torch.randn(1, 3, 8) for _ in range(2)], {}, threading.Barrier(2)

    def work(i):
        with torch.no_grad(), capture(layer) as maps:
            barrier.wait()
            for _ in range(5):
                layer(inputs[i], inputs[i], inputs[i])
            barrier.wait()
        found[i] = maps

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(inputs):
        expected = layer(x, x, x, average_attn_weights=False)[1]
        assert len(found[i]) == 5
        assert all((m.dense() - expected).abs().max() < 1e-6 for m in found[i])
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_what_is_kept_grows_with_the_tokens_not_with_their_square():
    family = build(bert)
    kept = {}
    for n in (64, 128, 256):
        ids = torch.randint(3, 70, (1, n))
        with torch.no_grad(), capture(family.model) as maps:
            family.forward(ids, torch.ones(1, n, dtype=torch.long))
        tensors = [t for m in maps for t in (m.query, m.key)]
        # All layers share one mask; it is counted once.
        masks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for m in maps for t in m.masks}
        kept[n] = sum(t.untyped_storage().nbytes() for t in tensors)
        assert sum(masks.values()) <= 4 * n * n
    assert kept[128] == 2 * kept[64]
    assert kept[256] == 2 * kept[128]


def test_no_attention_is_an_error_not_an_empty_list():
    model = nn.Linear(2, 2)
    with pytest.raises(NoAttentionError, match="Linear"), capture(model):
        model(torch.zeros(1, 2))


def test_an_exception_of_the_model_comes_through_as_it_is():
    model = EncoderClassifier().eval()
    with pytest.raises(IndexError), capture(model):
        model(torch.tensor([[10_000]]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_modules_behind_a_callable_are_found():
    model = nn.Linear(2, 2)

    class Holder:
        def __init__(self):
            self.net = model

        def __call__(self, x):
            return self.net(x)

    assert find_modules(model.forward) == {"": model}
    assert find_modules(functools.partial(lambda x, m: m(x), m=model)) == {"": model}
    assert find_modules(Holder().__call__) == {"": model}
    assert find_modules(Holder()) == {"": model}
    assert find_modules(lambda x: model(x)) == {"": model}
