"""`capture`: the context manager that watches a model's attention, and the function mode behind it."""

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
# What is looked at before any softmax has been seen, too.
_WATCHED: frozenset[Any] = frozenset({torch.conv2d, Tensor.__setitem__, *SQUASHES, *BEGINS})

# A thread's stack of function modes has no public door but `with`, which takes off whatever lies on top.
_modes: Any = torch.overrides
_TAKES_OFF = _modes._pop_mode_temporarily.__wrapped__.__code__


@contextmanager
def capture(
    model: Callable[..., Any], *, values: bool = False, offload: str | PathLike[str] | None = None
) -> Iterator[list[AttentionMap]]:
    """Return, inside a ``with`` block, the list that fills with one `AttentionMap` per attention call of the model.

    The model runs its own kernels and gives its own outputs, bit for bit; what is kept of a fused call is its query,
    key and mask. After the block, also after an exception or an interrupt, the model is as it was.

    Captures in several threads, and plain calls of the same model beside them, do not mix: each capture sees the thread
    that it was begun in. Two things belong to the whole process while a capture runs: what torch.compile has compiled
    runs uncompiled, in other threads too (slower, with the same results), and the hooks on the model keep
    nn.TransformerEncoder from its fast path (whose rows of padding are zeros).

    Args:
        model: A module, or a callable that runs one (its modules give the maps their names).
        values: Whether to keep the value tensors too (``attention.value``).
        offload: Where queries and keys (or the weights that the model computed itself) are moved as soon as they are
            captured: ``"cpu"``, the memory of the machine of a model on another device, or a folder, in which they lie
            in files until the maps are forgotten. A product then brings back one layer at a time.

    Yields:
        The maps, in call order.

    Raises:
        InputError: ``offload`` is neither ``"cpu"`` nor a folder.
        NoAttentionError: The block ended and no attention was seen: the model has none, or did not run, or ran in
            another thread.
        UnreadableAttentionError: Attention was seen whose examples, heads, queries and keys cannot be told apart.

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
    """Return, inside a ``with`` block, the `Recorder` that watches the model; what :func:`capture` is made of."""
    if isinstance(model, torch.jit.ScriptFunction):
        _refuse_graph("the function", str(model.inlined_graph))
    modules = find_modules(model)
    told = registered_modules()
    told_ids = {id(module) for module in told}
    is_told = bool(told) and any(id(m) in told_ids for root in modules.values() for m in root.modules())
    can_be_remembered = bool(modules) and not is_told and substitute is None and not values_at
    walks = walks_of(next(iter(modules.values()))) if can_be_remembered else None
    if walks is None or not walks:
        _refuse_scripted(modules)
    # What the user has told of holds also where the model is reached by a way that shows no modules.
    modules |= {f"registered.{i}": module for i, module in enumerate(told)}
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

    session = _Session(recorder, modules, is_remembered=walks is not None)
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
            "the model began to compile code while it was captured, and a capture cannot look into compiled code. "
            "Run the model once before the capture, or switch it to sdpa or eager attention."
        ) from error
    finally:
        session.end()  # what an interrupt of the first time has cut short; done twice it changes nothing


class _Session:
    """What a capture changes, and puts back: hooks, the stack of function modes, the compiler's stance, the grad mode.

    Args:
        recorder: What records.
        modules: The modules that are hooked, with the prefixes of their paths.
        is_remembered: Whether the model's walk may be remembered, or taken again.
    """

    def __init__(self, recorder: Recorder, modules: dict[str, nn.Module], *, is_remembered: bool) -> None:
        self._recorder, self._modules, self._is_remembered = recorder, modules, is_remembered
        self._eagerly, self._watch = RunningEagerly(), _Watch(recorder)
        self._had_grad = torch.is_grad_enabled()

    def begin(self) -> None:
        """Begin to watch."""
        recorder = self._recorder
        recorder.trace.on_change = self._change
        self._eagerly.begin()
        recorder.stack.begin(self._modules, self._start if self._is_remembered else None)
        self._watch.begin()

    def end(self) -> None:
        """Put back all that was changed, at whatever point of `begin` or of the capture; again, it changes nothing."""
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
        _refuse_scripted(self._modules)
        self._recorder.stack.watch_from_here()


def _refuse_scripted(modules: dict[str, nn.Module]) -> None:
    """Raise for TorchScript that computes attention: none of its operations can be seen."""
    for root in modules.values():
        for path, module in root.named_modules():
            if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "graph"):
                _refuse_graph(f"the module {path!r}" if path else "the model", str(module.inlined_graph))


def _refuse_graph(what: str, graph: str) -> None:
    if any(operation in graph for operation in ("softmax", "scaled_dot_product_attention", "transformer_encoder")):
        raise UnreadableAttentionError(
            f"{what} is TorchScript with attention in it, and a capture cannot look into TorchScript. Pass the model "
            "that was scripted or traced."
        )


def check_complete(recorder: Recorder, model: Any) -> None:
    """Raise unless attention was seen, and all that was recognised was read.

    Raises:
        NoAttentionError: There was none.
        UnreadableAttentionError: Scores of self-attention went through a softmax that was not seen to weigh values.
    """
    if recorder.unread:
        names = ", ".join(dict.fromkeys(repr(name) for name in recorder.unread))
        raise UnreadableAttentionError(
            f"self-attention scores go through a softmax or an exponential in {names}, but how the result weighs "
            "values was not seen; layers would be missing. Write the product of weights and values as a matmul, bmm or "
            "einsum, divide exponentials by their sum before that, or tell the weights with register_attention."
        )
    if not recorder.maps:
        raise NoAttentionError(_no_attention_message(recorder, model))


def _no_attention_message(recorder: Recorder, model: Any) -> str:
    name = type(model).__name__ if not hasattr(model, "__qualname__") else model.__qualname__
    stack = recorder.stack
    if stack.has_run_elsewhere and not stack.has_run:
        return (
            f"{name} ran in another thread than the capture, which sees its own thread only. Begin the capture in the "
            "thread that runs the model; instead of a DataParallel over several devices pass the module that it wraps."
        )
    if stack.is_watching and not stack.has_run:
        return f"no attention was seen, since {name} did not run. Call the model inside the with block."
    return (
        f"no attention was seen while {name} ran. Seen are scaled_dot_product_attention, nn.MultiheadAttention and a "
        "softmax whose result weighs values, flex_attention and compiled models included; not seen are kernels of a "
        "model's own, TorchScript and models run in another thread. If the model has attention of such a kind, switch "
        "it to sdpa or eager attention, pass the model that was scripted, or tell where its weights are with "
        "register_attention."
    )


def _push_back(error: BaseException | None) -> None:
    """Let torch put a mode back now that it has taken off for a function, and that an interrupt has kept it from.

    It would else do so when the error is forgotten, after the capture's end.
    """
    trace = None if error is None else error.__traceback__
    while trace is not None:
        manager = trace.tb_frame.f_locals.get("self")
        if isinstance(manager, _GeneratorContextManager) and getattr(manager.gen, "gi_code", None) is _TAKES_OFF:
            manager.gen.close()
        trace = trace.tb_next


class _Watch(TorchFunctionMode):
    """Sends each torch operation of the model past the seams."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._trace = recorder.trace
        self._softmax = SoftmaxWatch(recorder)
        self._is_on = False

    def begin(self) -> None:
        """Put the mode on top of this thread's stack."""
        self._is_on, self._recorder.softmaxes = True, self._softmax
        _modes._push_mode(self)

    def end(self) -> None:
        """Take the mode off the stack, wherever it lies by now; modes above it stay in their order."""
        if self._is_on and self not in _modes._get_current_function_mode_stack():
            _push_back(sys.exc_info()[1])
        self._is_on = False
        self._recorder.softmaxes = None  # each holds the other
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
            # Nearly all operations: no part of any attention. What is done here is done hundreds of times a pass.
            output = recorder.run(func, args, kwargs) if recorder.is_looking else func(*args, **kwargs)
            if self._trace.takes(func, args, kwargs, output):
                return output if recorder.steps is None else self._behind(func, args, output)
            return self._step(func, args, kwargs, output)
        return self._watched_step(func, args, kwargs)

    def _watched_step(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that may be a part of attention that the model computes step by step."""
        recorder = self._recorder
        output = recorder.run(func, args, kwargs)
        written = kwargs.get("out")
        if written is not None:  # the result, and not one of its sources
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
                written.detach().copy_(output.detach())  # the model may go on with what it had written to
            return output  # an attention call's output: nothing is carried over to it but its lineage
        if isinstance(output, Tensor):
            output = recorder.note_token_state(func, args, output)
        recorder.trace.follow(func, args, kwargs, output, recorder.batch)
        return output

    def _step(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Follow what an operation has done that is no part of any attention."""
        recorder = self._recorder
        if not isinstance(output, (Tensor, tuple, list)):
            return output
        recorder.trace.follow(func, args, kwargs, output, recorder.batch)
        if func in _DROPOUTS:
            # A walk that is remembered had none that was active, and is left where one is.
            recorder.is_random |= _is_active(func, args, kwargs)
        return output if recorder.steps is None else self._behind(func, args, output)

    def _behind(self, func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> Any:
        """Return what the model goes on with behind the last attention call, where a token state may become a leaf."""
        if not isinstance(output, Tensor):
            return output
        state = self._recorder.note_token_state(func, args, output)
        if state is not output:
            self._trace.replace(output, state)
        return state


def _note(
    recorder: Recorder, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """Note what readouts, token maps and warnings need to know of an operation."""
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
