"""`ExplainedModel`: the cached facts about one forward function, valid until the model changes."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_attn_lime._util.captum import select_target
from captum_attn_lime._util.random import RandomState, without_drawing
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._inputs import Kind, kind_of, shortened, with_extra_example, without_inference_mode
from captum_attn_lime.attr._model_state import ModelState
from captum_attn_lime.attr._passes import ForwardPass, Request, positions_of, run_captured
from captum_attn_lime.attr._probing import ValueProbe, mixed_layers
from captum_attn_lime.attr._readout import QUERY_ADVICE, ShortCut
from captum_attn_lime.attr._token_map import TokenMap
from captum_attn_lime.attr._tokens import carrier_of, find_token_map, plain_token_map
from captum_attn_lime.errors import ReadoutError, TokenMapError

# Inputs with more tokens than this are long; facts that hold for every length are determined on part of their tokens.
_LONG, _BEGINNING = 1024, 128
# Size of the cache of facts, which drops the least recently used.
_CACHE_SIZE = 256
_READOUT = Request()


class ExplainedModel:
    """Captured passes of a forward function, and cached facts about it.

    The facts are the calls to explain, a short cut to the readout, the token map, and the layers whose tokens were
    mixed by something other than attention. Each is determined by running the model, and holds for inputs of the same
    kind with which the model runs the same operations. The cache is cleared when anything about the model changes;
    copies and unpickled objects start empty. For a function without visible modules and tensors nothing is cached
    between blocks, since changes could not be detected.

    Args:
        forward_func: The model, or any function of tensors that runs one.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> model = ExplainedModel(lambda x: encoder(x)[:, 0])
        >>> with model.explaining():
        ...     run = model.run((torch.randn(2, 5, 8),))
        ...     model.check_mixing(run, run.maps)
        ...     model.token_map(run, run.last)
        TokenMap((5, 1): tokens 0 to 4)
        >>> run.readout[0].tolist(), [m.mixed for m in run.maps]
        ([1.0, 0.0, 0.0, 0.0, 0.0], [False, False])
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func
        self._state: ModelState | None = None
        self._facts: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()
        # Facts determined for one state must not be stored for another, which another thread may have set.
        self._open = threading.local()

    def __reduce__(self) -> tuple[type[ExplainedModel], tuple[Callable[..., Any]]]:
        return ExplainedModel, (self.forward_func,)

    # --- facts ----------------------------------------------------------------------------------------------------

    @contextmanager
    def explaining(self) -> Iterator[ModelState | None]:
        """Cache facts about the model in a block, and leave the model unchanged; yield the model's state.

        Inside another such block this has no effect, and yields None.
        """
        if getattr(self._open, "facts", None) is not None:
            yield None
            return
        state = ModelState(self.forward_func)
        with self._lock:
            if state.is_opaque or state != self._state:
                self._facts = OrderedDict()
            self._state, self._open.facts = state, self._facts
        try:
            with state.left_as_found():
                yield state
        finally:
            self._open.facts = None

    def _known(self, key: Any) -> Any:
        """Return a fact; None if it is unknown."""
        facts = getattr(self._open, "facts", None)
        if facts is None or key is None:
            return None
        with self._lock:
            if key in facts:
                facts.move_to_end(key)
            return facts.get(key)

    def _learn(self, key: Any, fact: Any) -> None:
        """Store a fact, unless the key is None."""
        facts = getattr(self._open, "facts", None)
        if facts is None or key is None:
            return
        with self._lock:
            facts[key] = fact
            facts.move_to_end(key)
            while len(facts) > _CACHE_SIZE:
                facts.popitem(last=False)

    # --- passes ---------------------------------------------------------------------------------------------------

    def run(
        self, inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...] = (), request: Request = _READOUT
    ) -> ForwardPass:
        """Run the model once, or twice if the calls to explain are unknown or have changed.

        The state of random generators is that after one run.

        Args:
            inputs: The input tensors.
            forward_args: Further positional arguments.
            request: What the pass must compute.

        Raises:
            NoAttentionError: No attention was captured.
            ReadoutError: The readout is requested but cannot be determined.
            TargetError: The output has no such target.
        """
        # The caller may be in inference_mode, whose tensors cannot be saved for a backward pass.
        with torch.inference_mode(False), self.explaining():
            inputs, forward_args = without_inference_mode(inputs), without_inference_mode(forward_args)
            short = shortened(inputs, forward_args, longer_than=_LONG, to=_BEGINNING)
            kind = kind_of(inputs, forward_args) if short is None else kind_of(*short, is_long=True)
            if short is not None and kind is not None and request.readout and self._known(("ends", kind)) is None:
                # If the target has a position, any position works.
                first = None if positions_of(request.target, len(inputs[0])) is None else (0,)
                with _trial():
                    self._run(*short, Request(first), kind)
            done = self._run(inputs, forward_args, request, kind)
            select_target(done.output, request.target)
            return replace(done, kind=kind, beginning=short)

    def _run(
        self, inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], request: Request, kind: Kind | None
    ) -> ForwardPass:
        random = RandomState()
        done = self._run_as_known(inputs, forward_args, request, kind, random)
        if not done.recorder.is_ambiguous:
            return done
        # There are as many heads as examples: an extra example makes their dimensions distinct.
        batch, target = len(inputs[0]), request.target
        more, further = (tuple(with_extra_example(x, batch) for x in group) for group in (inputs, forward_args))
        target = [*target, *target[:1]] if isinstance(target, list) else with_extra_example(target, batch)
        random.restore()
        done = self._run_as_known(more, further, replace(request, target=target), kind, random).first(batch)
        return replace(done, inputs=inputs, forward_args=forward_args)

    def _run_as_known(
        self,
        inputs: tuple[Tensor, ...],
        forward_args: tuple[Any, ...],
        request: Request,
        kind: Kind | None,
        random: RandomState,
    ) -> ForwardPass:
        run = partial(run_captured, self.forward_func, inputs, forward_args)
        if not request.readout and not request.gradient:
            return run(request)
        ends_key, short_key = (None, None) if kind is None else (("ends", kind), ("short cut", kind))
        ends = self._known(ends_key)
        if ends is None:
            ends = run(replace(request, readout=False, gradient=False)).ends
            random.restore()
        short_cut = self._known(short_key)  # False if there is none
        if short_cut and request.readout and not request.gradient:
            with contextlib.suppress(ReadoutError):
                done = run(request, ends, short_cut)
                if _reproduces(short_cut, done, ends):
                    return done
            self._learn(short_key, False)  # the operations after the last call change from run to run
            random.restore()
        for _ in range(2):
            done = run(request, ends)
            expected, ends = ends, done.ends
            self._learn(ends_key, ends)
            if ends == expected:
                if done.found is not None and self._known(short_key) is None:
                    self._learn(short_key, done.found.short_cut or False)
                return done
            random.restore()
        raise ReadoutError(f"the model's attention calls change from one forward pass to the next. {QUERY_ADVICE}")

    # --- tokens ---------------------------------------------------------------------------------------------------

    def check_mixing(self, run: ForwardPass, layers: Sequence[AttentionMap]) -> None:
        """Set ``mixed`` on the layers whose tokens were mixed by something other than attention.

        A result for some number of tokens holds for fewer too. For more tokens the test runs again, since a convolution
        over distant tokens mixes only long inputs.

        Args:
            run: A pass of the model.
            layers: Its layers, all of one stack.
        """
        calls = frozenset(m.index for m in layers if m.index is not None)
        n_tokens, key = layers[0].shape[2], _key("mixed", run, calls)
        if self._known(key) is None and len(calls) > 1:
            self._try_beginning(run, lambda part: self.check_mixing(part, _maps_of(part, calls)))
        tried, mixed = self._known(key) or (-1, frozenset())
        if not _covers(run.kind, tried, n_tokens) or (mixed and tried != n_tokens):
            mixed = mixed_layers(self.forward_func, run.inputs, run.forward_args, calls)
            self._learn(key, (n_tokens, mixed))
        for attention in layers:
            attention.mixed = attention.index in mixed

    def token_map(self, run: ForwardPass, layer: AttentionMap) -> TokenMap:
        """Return the token map of a pass's inputs for a layer's keys.

        Args:
            run: A pass of the model.
            layer: One of its layers.

        Raises:
            TokenMapError: The cells of the tokens cannot be determined with certainty.
        """
        n_tokens = layer.shape[3]
        # The values of the first layer over the same tokens show the cells of each token. The tokens that
        # cross-attention reads are those of another stack.
        before = layer.reads if layer.kind == "cross" else layer.follows
        stack = {m.index: m.shape[2] == n_tokens for m in run.maps if m.index is not None and m.index in before}
        first = min((index for index, same in stack.items() if same), default=layer.index)
        of_kind = _key("carrier", run, first)
        of_shape = _key("token map", run, first, tuple(x.shape[1:] for x in run.inputs), n_tokens)
        if self._known(of_kind) is None and self._known(of_shape) is None:
            self._try_beginning(run, lambda part: self.token_map(part, *_maps_of(part, {layer.index})))
        # One-to-one maps of ids and embeddings hold for every length.
        tried, carrier = self._known(of_kind) or (-1, None)
        if carrier is not None and _covers(run.kind, tried, n_tokens):
            plain = plain_token_map(run.inputs, n_tokens, carrier)
            if plain is not None:
                return plain
        found: TokenMap | None = self._known(of_shape)
        if found is None:
            # Attention before a merge of tokens would mix their cells, so its outputs are zeroed.
            silent = {index for index, same in stack.items() if not same and index < (first or 0)}
            probe = ValueProbe(self.forward_func, run.forward_args, len(run.inputs[0]), first or 0, silent)
            try:
                found = find_token_map(run.inputs, n_tokens, run.recorder.convolutions, probe, is_first_call=not first)
            except TokenMapError as error:
                if not run.recorder.is_random:
                    raise
                raise TokenMapError(f"{error} The model's dropout is active: call model.eval() first.") from error
            carrier = carrier_of(found, run.inputs, n_tokens)
            if carrier is None:
                self._learn(of_shape, found)
            else:
                self._learn(of_kind, (n_tokens, carrier))
        return found

    def _try_beginning(self, run: ForwardPass, learn: Callable[[ForwardPass], object]) -> None:
        """Determine facts on the beginning of a long input, which would need several passes over the whole."""
        if run.beginning is not None and run.kind is not None:
            with _trial():
                part = self._run(*run.beginning, Request(readout=False), run.kind)
                learn(replace(part, kind=run.kind))


@contextmanager
def _trial() -> Iterator[None]:
    """Run a block on a part of an input, ignoring exceptions, since the whole input is tried next."""
    with torch.inference_mode(False), contextlib.suppress(Exception), without_drawing():
        yield


def _reproduces(short_cut: ShortCut, done: ForwardPass, ends: tuple[int, int]) -> bool:
    """Return whether a pass with a short cut ran the same operations as the pass that found the short cut."""
    is_same = done.ends == ends and tuple(done.recorder.steps or ()) == short_cut.steps
    return is_same and done.found is not None and (short_cut.is_pooled or not done.found.is_pooled)


def _key(fact: str, run: ForwardPass, *more: Any) -> Any:
    """Return the cache key of a fact found on a pass; None if the pass cannot be compared with others.

    A fact holds for a kind of input and a sequence of operations. The sequence is left out for parts of long inputs,
    which may run different operations than the whole, perhaps because they have no padding.
    """
    return None if run.kind is None else (fact, run.kind, None if run.kind.is_long else run.operations, *more)


def _covers(kind: Kind | None, tried: int, n_tokens: int) -> bool:
    """Return whether a fact found with some number of tokens holds for the current number."""
    return tried >= 0 if kind is not None and kind.is_long else tried >= n_tokens


def _maps_of(run: ForwardPass, calls: Collection[int | None]) -> list[AttentionMap]:
    return [m for m in run.calls if m.index in calls]
