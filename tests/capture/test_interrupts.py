"""Whatever ends a capture, at whatever line, nothing of it stays: hooks, modes, stance, grad mode, files."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import captum_attn_lime
from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime._capture import compiled, record
from tests.families import EncoderClassifier

# An interrupt in a generator or a finalizer that Python is just closing is swallowed by Python, with this warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IDS = torch.tensor([[2, 5, 3, 4]])
_PACKAGE = str(Path(captum_attn_lime.__file__).parent)
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip


@pytest.fixture
def model():
    torch._dynamo.reset()  # the compiler is there, so that its stance is changed
    torch.manual_seed(0)
    return EncoderClassifier().eval()


def _left_by(model, folder=None):
    """Return what a capture has left behind."""
    left = [f"{name} of {path!r}" for path, m in model.named_modules() for name in _HOOKS if getattr(m, name)]
    left += [f"the mode {mode}" for mode in _get_current_function_mode_stack()]
    stance = torch._dynamo.eval_frame._stance.stance
    left += [f"the stance {stance}"] * (stance != "default")
    left += ["a user of the stance"] * bool(compiled._users or compiled._before)
    left += ["no grad mode"] * (not torch.is_grad_enabled())
    left += ["no fast path"] * (not torch.backends.mha.get_fastpath_enabled())
    left += ["training mode"] * any(m.training for m in model.modules())
    return left + ([] if folder is None else [str(x) for x in folder.iterdir()])


class _InterruptAt:
    """Raise KeyboardInterrupt at the n-th line, or begin of a function, of the package; count them."""

    def __init__(self, n: int | None = None) -> None:
        self.n, self.count = n, 0

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if event in ("call", "line"):
            self.count += 1
            if self.count - 1 == self.n:
                raise KeyboardInterrupt
        return self


def _interrupted(run, n):
    """Run with an interrupt at the n-th event; return whether there was one, and the number of events."""
    tracer, before = _InterruptAt(n), sys.gettrace()
    gc.disable()  # or the events of finalizers make the count differ
    try:
        sys.settrace(tracer)
        run()
    except KeyboardInterrupt:
        return True, tracer.count
    finally:
        sys.settrace(before)
        gc.enable()
    return False, tracer.count


# How many of the places are tried: every sixth with each run of the tests, and all.
quick_and_slow = pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])


def _captures(model, folder):
    def with_files():
        with torch.no_grad(), capture(model, offload=folder):
            model(IDS)

    other = EncoderClassifier().eval()

    def nested():
        with capture(model):
            model(IDS)
            with capture(other):
                other(IDS)

    def with_a_graph():
        with torch.no_grad(), record(model, leaf_at=0, graph_at=0, batch=1):
            model(IDS)

    def attribute():
        AttentionAttribution(model).attribute(IDS)

    return {f.__name__: f for f in (with_files, nested, with_a_graph, attribute)}


@quick_and_slow
@pytest.mark.parametrize("name", ["with_files", "nested", "with_a_graph", "attribute"])
def test_an_interrupt_at_any_line_leaves_nothing(model, name, every, tmp_path):
    run = _captures(model, tmp_path)[name]
    run()
    expected = AttentionAttribution(model).attribute(IDS)
    _, total = _interrupted(run, None)
    assert total > 300
    assert _left_by(model, tmp_path) == []
    # Every line of the beginning and the end, where things are changed, and a sample of those between.
    ends = [*range(90), *range(total - 110, total)]
    for n in sorted({*ends, *range(90, total - 110, max(1, total // 40))})[::every]:
        _interrupted(run, n)
        # A tracer, other than a signal, can interrupt `with torch.no_grad():` before it has called the end of that.
        torch.set_grad_enabled(True)
        assert _left_by(model) == [], f"at event {n} of {total}"
        assert len(list(tmp_path.iterdir())) <= 1  # interrupted while it was removed: the next capture does it
    run()
    with_files = _captures(model, tmp_path)["with_files"]
    with_files()
    assert _left_by(model, tmp_path) == []
    assert torch.equal(AttentionAttribution(model).attribute(IDS), expected)


class _FailAt(TorchFunctionMode):
    """Raise at the n-th function of torch; count them.

    Not where torch.no_grad sets the grad mode back by one, which it does not survive by itself.
    """

    def __init__(self, n: int | None, error: type[BaseException]) -> None:
        super().__init__()
        self.n, self.error, self.count = n, error, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is not torch._C._set_grad_enabled
        if self.count - 1 == self.n and func is not torch._C._set_grad_enabled:
            raise self.error  # a new one each time, which holds no earlier frames
        return func(*args, **(kwargs or {}))


@quick_and_slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["with_files", "nested", "attribute"])
def test_an_exception_at_any_function_leaves_nothing(model, name, error, every, tmp_path):
    run = _captures(model, tmp_path)[name]
    expected = AttentionAttribution(model).attribute(IDS)
    counting = _FailAt(None, error)
    with counting:
        run()
    assert counting.count > 30
    ends = [*range(40), *range(counting.count - 20, counting.count)]
    for n in sorted({*ends, *range(40, counting.count - 20, counting.count // 30)})[::every]:
        with contextlib.suppress(error), _FailAt(n, error):  # what is only tried out may fail without an error
            run()
        assert _left_by(model, tmp_path) == [], f"at function {n} of {counting.count}"
    assert torch.equal(AttentionAttribution(model).attribute(IDS), expected)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
def test_signals_at_random_times_leave_no_more_than_with_torch_alone(model, tmp_path):
    def torch_alone():
        with torch.no_grad():
            model(IDS)

    def interrupt(*_):
        raise KeyboardInterrupt

    with_files = _captures(model, tmp_path)["with_files"]
    left, before = {torch_alone: 0, with_files: 0}, signal.signal(signal.SIGALRM, interrupt)
    try:
        for part in torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist():
            for run in left:
                start = time.perf_counter()
                run()
                duration = time.perf_counter() - start
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, max(1e-5, part * duration))
                    run()
                    time.sleep(duration)  # if it was quicker than before
                signal.setitimer(signal.ITIMER_REAL, 0)
                left[run] += bool(_left_by(model))
                torch.set_grad_enabled(True)  # as torch.no_grad may leave it, of which with_files has one too
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert left[with_files] <= left[torch_alone] + 1
    with_files()
    assert _left_by(model, tmp_path) == []


def test_a_mode_that_is_still_there_stays_in_its_place(model):
    mine, other = _FailAt(None, KeyError), _FailAt(None, KeyError)
    with mine:
        with capture(model):
            model(IDS)
            torch.overrides._push_mode(other)  # and nobody takes it off
        assert _get_current_function_mode_stack() == [mine, other]
        torch.overrides._pop_mode()


def test_a_mode_that_torch_had_taken_off_when_the_interrupt_came(model, monkeypatch):
    class Interrupted(contextlib._GeneratorContextManager):
        def __exit__(self, *error):
            raise KeyboardInterrupt  # as a signal may at the first line of any __exit__ in Python

    taking_off = torch.overrides._pop_mode_temporarily.__wrapped__
    monkeypatch.setattr(torch.overrides, "_pop_mode_temporarily", lambda: Interrupted(taking_off, (), {}))
    try:
        with capture(model):
            model(IDS)
    except KeyboardInterrupt as error:
        kept = error  # with the frames, and so with the mode that is off
    assert _left_by(model) == []
    del kept
    assert _left_by(model) == []


def test_a_stance_that_an_interrupt_has_kept_is_put_back_by_the_next_capture(model):
    kept = torch._dynamo.eval_frame._stance
    compiled._before.append(kept)
    torch.compiler.set_stance("force_eager")
    with capture(model):
        model(IDS)
    assert torch._dynamo.eval_frame._stance is kept
    with torch.compiler.set_stance("eager_on_recompile"):
        with capture(model):
            model(IDS)
        assert torch._dynamo.eval_frame._stance.stance == "eager_on_recompile"
