"""Captures in several threads, and plain calls of the same model beside them, do not disturb each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from captum_attn_lime import AttentionAttribution, LimeText, TextAdapter, WordTokenizer, capture, register_attention
from captum_attn_lime.errors import NoAttentionError, UnreadableAttentionError
from tests.families import EncoderClassifier, HandWritten

TEXTS = ["a dull film", "a fine film indeed", "no film at all", "the best of films"]


@pytest.fixture
def one_thread_each():
    """torch with one thread for each call, so that numbers are the same however many calls there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _at_once(works, times):
    """Run works in a thread each, several times over, and return each one's results."""
    barrier = threading.Barrier(len(works))

    def repeat(work):
        barrier.wait()
        return [work() for _ in range(times)]

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(repeat, work) for work in works]]


def _captured(model, ids):
    with torch.no_grad(), capture(model) as maps:
        model(ids)
    return torch.stack([attention.dense() for attention in maps])


@pytest.mark.parametrize("make", [EncoderClassifier, HandWritten])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_captures_and_plain_calls_at_once_give_what_each_gives_alone(make, is_compiled, one_thread_each):
    torch.manual_seed(0)
    model = make().eval()
    called = torch.compile(model, backend="eager") if is_compiled else model
    batches = [torch.randint(3, 40, (2, n)) for n in (4, 6, 7)]

    def plain():
        with torch.no_grad():
            return called(batches[0])

    works = [
        plain,
        lambda: _captured(called, batches[0]),
        lambda: _captured(called, batches[1]),
        lambda: AttentionAttribution(called).attribute(batches[2]),
    ]
    expected = [work() for work in works]
    for found, wanted in zip(_at_once(works, 12), expected, strict=True):
        for result in found:
            assert torch.allclose(result, wanted, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if is_compiled:
        assert torch._dynamo.eval_frame._stance.stance == "default"


def test_lime_beside_captures(one_thread_each):
    torch.manual_seed(0)
    tokenizer = WordTokenizer.fit(TEXTS)
    adapter = TextAdapter(EncoderClassifier().eval(), tokenizer, class_names=["a", "b", "c"])
    encoding = adapter.encode(TEXTS[1])
    lime = LimeText(adapter)

    def explained():
        return lime.explain(TEXTS[1], 1, num_samples=60, seed=0).as_list(1)

    def attention():
        attribution = AttentionAttribution(adapter)
        return attribution.attribute(encoding.inputs, additional_forward_args=encoding.forward_args)

    def plain():
        return torch.from_numpy(np.asarray(adapter.predict_proba(TEXTS)))

    expected = [explained(), attention(), plain()]
    found = _at_once([explained, attention, plain], 4)
    for words in found[0]:
        assert dict(words) == pytest.approx(dict(expected[0]), abs=1e-6)
    for results, wanted in zip(found[1:], expected[1:], strict=True):
        assert all(torch.allclose(result, wanted, atol=1e-6) for result in results)


def test_registrations_in_other_threads_do_not_disturb_a_capture():
    model, stop = EncoderClassifier().eval(), threading.Event()
    ids = torch.tensor([[2, 5, 3]])
    expected = _captured(model, ids)

    def register():
        while not stop.is_set():
            handles = [register_attention(torch.nn.Identity(), lambda *_: torch.ones(1, 1, 1, 1)) for _ in range(20)]
            for handle in handles:
                handle.remove()

    thread = threading.Thread(target=register)
    thread.start()
    try:
        for _ in range(20):
            assert torch.equal(_captured(model, ids), expected)
    finally:
        stop.set()
        thread.join()


IDS = torch.tensor([[2, 5, 3]])


def test_a_model_that_did_not_run_is_said_to_have_not():
    model = EncoderClassifier().eval()
    for watched in (model, lambda x: model(x)):
        with pytest.raises(NoAttentionError, match=r"did not run\. Call the model inside"), capture(watched):
            pass
    with pytest.raises(NoAttentionError, match="did not run"), capture(model):
        IDS + 1
    linear = torch.nn.Linear(2, 2)
    with pytest.raises(NoAttentionError, match="while Linear ran"), capture(linear):
        linear(torch.zeros(1, 2))
    with capture(model) as maps:
        model.encoder(torch.zeros(1, 3, 32))  # a part of it did
    assert maps


def test_a_model_that_ran_in_another_thread_is_said_to_have():
    model = EncoderClassifier().eval()
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(NoAttentionError, match="ran in a different thread"),
        capture(model),
    ):
        pool.submit(model, IDS).result()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_functions_and_models_are_refused_with_what_to_do():
    x = torch.zeros(1, 3, 8)
    function = torch.jit.trace(lambda x: (x @ x.mT).softmax(-1) @ x, x)
    model = torch.jit.trace(EncoderClassifier().eval(), IDS, check_trace=False)
    for scripted, given, name in ((function, x, "the function"), (model, IDS, "the model")):
        with (
            pytest.raises(UnreadableAttentionError, match=f"{name} is TorchScript.* Pass the model"),
            capture(scripted),
        ):
            scripted(given)
        with pytest.raises(UnreadableAttentionError, match="TorchScript"):
            AttentionAttribution(scripted).attribute(given)
