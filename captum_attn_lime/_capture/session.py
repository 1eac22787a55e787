"""`capture`: the context manager that records a model's attention, and its function mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator
from contextlib import _GeneratorContextManager, contextmanager
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_attn_lime._capture.compiled import RunningEagerly
from captum_attn_lime._capture.keeping import Keep
from captum_attn_lime._capture.names import find_modules
from captum_attn_lime._capture.recorder import KEEP_SCORES, PatchConvolution, Recorder, RowView
from captum_attn_lime._capture.registered import registered_modules
from captum_attn_lime._capture.seams import SEAMS
from captum_attn_lime._capture.seams.softmax import BEGINS, SQUASHES, SoftmaxWatch
from captum_attn_lime._capture.walk import walks_of
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.errors import NoAttentionError, UnreadableAttentionError

_DROPOUTS = frozenset({F.dropout, torch.dropout, F.alpha_dropout, F.feature_alpha_dropout})
# Operations to process even before the first softmax.
_WATCHED: frozenset[Any] = frozenset({torch.conv2d, Tensor.__setitem__, *SQUASHES, *BEGINS})

# The only public access to a thread's stack of function modes is `with`, which pops whatever is on top.
_modes: Any = torch.overrides
_POPS_MODE = _modes._pop_mode_temporarily.__wrapped__.__code__


@contextmanager
def capture(
    model: Callable[..., Any], *, values: bool = False, offload: str | PathLike[str] | None = None
) -> Iterator[list[AttentionMap]]:
    """Record one `AttentionMap` per attention call of the model inside a ``with`` block.

    The model runs its usual kernels, and its outputs are bitwise the same; the map of a fused call stores query, key
    and mask. The model is left unchanged, also after an exception or an interrupt.

    Captures in several threads, and other calls of the same model, do not interfere: a capture records only the thread
    in which it began. During a capture two things affect the whole process: compiled code (torch.compile) runs
    uncompiled in all threads (slower, with the same results), and the hooks on the model disable the fast path of
    nn.TransformerEncoder (whose rows of padding are zeros).

    Args:
        model: A module, or a callable that runs one; the paths of its modules name the maps.
        values: Whether to store the value tensors too (``attention.value``).
        offload: Where to move queries and keys (or the weights that the model computed itself) during the capture:
            ``"cpu"``, for a model on another device, or a folder for files that exist as long as the maps. A product
            then loads one layer at a time.

    Yields:
        The list of the maps, in call order.

    Raises:
        InputError: ``offload`` is neither ``"cpu"`` nor a folder.
        NoAttentionError: No attention was captured in the block: the model has none, or did not run, or ran in another
            thread.
        UnreadableAttentionError: The dimensions of an attention call (examples, heads, queries, keys) cannot be
            identified.

    Example:
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.zeros(1, 3, 8)
        >>> with capture(layer) as maps:
        ...     _ = layer(x, x, x)
        >>> maps
        [ScoreMap('', (B, H, Q, K)=(1, 2, 3, 3), self)]
    """
    with record(model, keep=Keep(values=values, offload=offload)) as recorder:
        yield recorder.maps
    check_complete(recorder, model)


@contextmanager
def record(
    model: Callable[..., Any],
    *,
    leaf_at: int | None = None,
    graph_at: int | None = None,
    state_at: int | None = None,
    values_at: Container[int] = (),
    substitute: Callable[[int, Tensor, RowView], Tensor] | None = None,
    batch: int | None = None,
    keep: Keep = KEEP_SCORES,
) -> Iterator[Recorder]:
    """Yield the `Recorder` of a capture; :func:`capture` yields its maps."""
    if isinstance(model, torch.jit.ScriptFunction):
        _check_graph("the function", str(model.inlined_graph))
    modules = find_modules(model)
    registered = registered_modules()
    ids = {id(module) for module in registered}
    has_registered = bool(ids) and any(id(m) in ids for root in modules.values() for m in root.modules())
    can_be_replayed = bool(modules) and not has_registered and substitute is None and not values_at
    walks = walks_of(next(iter(modules.values()))) if can_be_replayed else None
    if walks is None or not walks:
        _check_not_scripted(modules)
    # Registered modules are also recorded if they cannot be found from the model.
    modules |= {f"registered.{i}": module for i, module in enumerate(registered)}
    recorder = Recorder(
        leaf_at=leaf_at,
        graph_at=graph_at,
        state_at=state_at,
        values_at=values_at,
        substitute=substitute,
        batch=batch,
        keep=keep,
        walks=walks,
    )

    session = _Session(recorder, modules, is_replayable=walks is not None)
    try:
        try:
            session.begin()
            yield recorder
            recorder.trace.end(is_complete=not recorder.is_random)
        finally:
            session.end()
    except Exception as error:
        if not type(error).__module__.startswith("torch._dynamo"):
            raise
        raise UnreadableAttentionError(
            "the model started to compile code during the capture, and compiled code cannot be captured. Run the model "
            "once before the capture, or switch it to sdpa or eager attention."
        ) from error
    finally:
        session.end()  # in case an interrupt cut the first call short; a second call has no effect


class _Session:
    """The changes of a capture, and their restoration: hooks, function modes, the compiler's stance, the grad mode.

    Args:
        recorder: The recorder of the capture.
        modules: The modules to hook, by the prefixes of their paths.
        is_replayable: Whether the model's operations may be stored and replayed.
    """

    def __init__(self, recorder: Recorder, modules: dict[str, nn.Module], *, is_replayable: bool) -> None:
        self._recorder, self._modules, self._is_replayable = recorder, modules, is_replayable
        self._eagerly, self._watch = RunningEagerly(), _Watch(recorder)
        self._had_grad = torch.is_grad_enabled()

    def begin(self) -> None:
        """Start the capture."""
        recorder = self._recorder
        recorder.trace.on_change = self._change
        self._eagerly.begin()
        recorder.stack.begin(self._modules, self._start if self._is_replayable else None)
        self._watch.begin()

    def end(self) -> None:
        """Restore everything, from any point of `begin` or of the capture; a second call has no effect."""
        self._watch.end()
        self._recorder.stack.end()
        self._eagerly.end()
        self._recorder.trace.on_change = None
        if self._recorder.wants_graph:
            torch.set_grad_enabled(self._had_grad)

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder = self._recorder
        recorder.trace.begin(args, kwargs, recorder.stack.batch)
        if not recorder.trace.is_replayed:
            recorder.stack.watch_all()

    def _change(self) -> None:
        _check_not_scripted(self._modules)
        self._recorder.stack.watch_from_here()


def _check_not_scripted(modules: dict[str, nn.Module]) -> None:
    """Raise for TorchScript modules with attention, whose operations cannot be captured."""
    for root in modules.values():
        for path, module in root.named_modules():
            if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "graph"):
                _check_graph(f"the module {path!r}" if path else "the model", str(module.inlined_graph))


def _check_graph(what: str, graph: str) -> None:
    if any(operation in graph for operation in ("softmax", "scaled_dot_product_attention", "transformer_encoder")):
        raise UnreadableAttentionError(
            f"{what} is TorchScript with attention, and TorchScript cannot be captured. Pass the model that was "
            "scripted or traced."
        )


def check_complete(recorder: Recorder, model: Any) -> None:
    """Check that attention was captured, and that no recognised attention is missing.

    Raises:
        NoAttentionError: There is no attention.
        UnreadableAttentionError: A softmax of self-attention scores was not multiplied with values.
    """
    if recorder.unread:
        names = ", ".join(dict.fromkeys(repr(name) for name in recorder.unread))
        raise UnreadableAttentionError(
            f"self-attention scores go through a softmax or an exponential in {names}, but no product of the result "
            "with values was found; layers would be missing. Write this product as a matmul, bmm or einsum, divide "
            "exponentials by their sum before it, or register the weights with register_attention."
        )
    if not recorder.maps:
        raise NoAttentionError(_no_attention_message(recorder, model))


def _no_attention_message(recorder: Recorder, model: Any) -> str:
    name = type(model).__name__ if not hasattr(model, "__qualname__") else model.__qualname__
    stack = recorder.stack
    if stack.has_run_elsewhere and not stack.has_run:
        return (
            f"{name} ran in a different thread from the capture, which records only its thread. Begin the capture in "
            "the thread that runs the model; instead of a DataParallel over several devices, pass the wrapped module."
        )
    if stack.is_watching and not stack.has_run:
        return f"no attention was captured, since {name} did not run. Call the model inside the with block."
    return (
        f"no attention was captured while {name} ran. Captured are scaled_dot_product_attention, "
        "nn.MultiheadAttention, flex_attention, and a softmax whose result is multiplied with values, compiled models "
        "included; not custom kernels, TorchScript or models that run in another thread. If the model has such "
        "attention, switch it to sdpa or eager attention, pass the model that was scripted, or register its weights "
        "with register_attention."
    )


def _push_back(error: BaseException | None) -> None:
    """Make torch restore a mode that it popped for a function call which an interrupt cut short.

    Otherwise torch restores it when the error is freed, after the end of the capture.
    """
    trace = None if error is None else error.__traceback__
    while trace is not None:
        manager = trace.tb_frame.f_locals.get("self")
        if isinstance(manager, _GeneratorContextManager) and getattr(manager.gen, "gi_code", None) is _POPS_MODE:
            manager.gen.close()
        trace = trace.tb_next


class _Watch(TorchFunctionMode):
    """Passes each torch operation of the model to the seams."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._trace = recorder.trace
        self._softmax = SoftmaxWatch(recorder)
        self._is_on = False

    def begin(self) -> None:
        """Push the mode onto this thread's stack."""
        self._is_on, self._recorder.on_softmax = True, self._softmax.begin
        _modes._push_mode(self)

    def end(self) -> None:
        """Remove the mode from the stack at any position; modes above it keep their order."""
        if self._is_on and self not in _modes._get_current_function_mode_stack():
            _push_back(sys.exc_info()[1])
        self._is_on = False
        self._recorder.on_softmax = None  # breaks the reference cycle
        if self not in _modes._get_current_function_mode_stack():
            return
        above: list[TorchFunctionMode] = []
        try:
            while (mode := _modes._pop_mode()) is not self:
                above.append(mode)
        finally:
            for mode in reversed(above):
                _modes._push_mode(mode)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self._recorder
        if not self._is_on:
            return func(*args, **kwargs)
        if recorder.runs_registered:
            return recorder.run(func, args, kwargs)
        seam = SEAMS.get(func)
        if seam is not None:
            return seam(recorder, func, args, kwargs)
        if self._softmax.is_idle and func not in _WATCHED and "out" not in kwargs:
            # Nearly all operations, hundreds in each pass, are not part of attention: keep this path short.
            output = recorder.run(func, args, kwargs) if recorder.is_looking else func(*args, **kwargs)
            if self._trace.takes(func, args, kwargs, output):
                return output if recorder.steps is None else self._behind(func, args, output)
            return self._step(func, args, kwargs, output)
        return self._watched_step(func, args, kwargs)

    def _watched_step(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that may be part of attention that the model computes step by step."""
        recorder = self._recorder
        output = recorder.run(func, args, kwargs)
        written = kwargs.get("out")
        if written is not None:  # the result, not an operand
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        if func is Tensor.__setitem__:
            recorder.trace.follow(func, args, kwargs, args[0], recorder.batch)
        if not isinstance(output, (Tensor, tuple, list)):
            return output
        _note(recorder, func, args, kwargs, output)
        calls = len(recorder.maps)
        output = self._softmax.see(func, args, kwargs, output)
        if len(recorder.maps) > calls:
            if isinstance(written, Tensor) and output is not written:
                written.detach().copy_(output.detach())  # the model may continue with out=
            return output  # an attention call's output inherits nothing but its lineage
        if isinstance(output, Tensor):
            output = recorder.note_token_state(func, args, output)
        recorder.trace.follow(func, args, kwargs, output, recorder.batch)
        return output

    def _step(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Track an operation that is not part of attention."""
        recorder = self._recorder
        if not isinstance(output, (Tensor, tuple, list)):
            return output
        recorder.trace.follow(func, args, kwargs, output, recorder.batch)
        if func in _DROPOUTS:
            # A stored walk has no active dropout; an active one ends its replay.
            recorder.is_random |= _is_active(func, args, kwargs)
        return output if recorder.steps is None else self._behind(func, args, output)

    def _behind(self, func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with which the model continues after the last attention call, perhaps a leaf."""
        if not isinstance(output, Tensor):
            return output
        state = self._recorder.note_token_state(func, args, output)
        if state is not output:
            self._trace.replace(output, state)
        return state


def _note(
    recorder: Recorder, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """Record what readouts, token maps and warnings need from an operation."""
    if func in _DROPOUTS:
        recorder.is_random |= _is_active(func, args, kwargs)
    elif func in SQUASHES:
        recorder.note_squash(args[0] if args else kwargs["input"])
    elif func is torch.conv2d and isinstance(output, Tensor):
        _note_convolution(recorder, args, kwargs, output)


def _is_active(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a dropout drops anything."""
    names = ("input", "p", "train" if func is torch.dropout else "training")
    given = {"p": 0.5, "training": True, "train": True, **dict(zip(names, args, strict=False)), **kwargs}
    return bool(given[names[2]]) and float(given["p"]) > 0


def _note_convolution(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    given = {
        **dict(zip(("input", "weight", "bias", "stride", "padding", "dilation"), args, strict=False)),
        **kwargs,
    }
    image, weight = given["input"], given["weight"]
    if image.dim() == 4:
        recorder.convolutions.append(
            PatchConvolution(
                tuple(image.shape),
                (output.shape[2], output.shape[3]),
                (weight.shape[2], weight.shape[3]),
                _pair(given.get("stride", 1)),
                given.get("padding", 0),
            )
        )


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
