"""`Recorder`: the state of one capture, and the attention output that it may turn into a gradient leaf."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from captum_attn_lime._capture.keeping import Keep
from captum_attn_lime._capture.names import ModuleStack
from captum_attn_lime._capture.provenance import Compared, Provenance
from captum_attn_lime._capture.registered import Registration, registered_map, registration_of
from captum_attn_lime._capture.walk import Asked, Trace, Walks
from captum_attn_lime._capture.weak import TensorTable
from captum_attn_lime._capture.windows import TokenPlaces
from captum_attn_lime.attention import AttentionKind, AttentionMap

MULTIPLIES: frozenset[Callable[..., Any]] = frozenset(
    {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply}
)
SCALINGS: frozenset[Callable[..., Any]] = MULTIPLIES | {
    Tensor.mul_,
    Tensor.__imul__,
    torch.div,
    Tensor.div,
    Tensor.div_,
    Tensor.__truediv__,
    Tensor.__itruediv__,
    torch.true_divide,
}
KEEP_SCORES = Keep()
RowView = Callable[[Tensor], Tensor]  # an attention output in the model's layout -> (B, H, Q, d)


class PatchConvolution(NamedTuple):
    """A convolution that was applied to a 4-D tensor, and maps pixels to patches."""

    input_shape: tuple[int, ...]
    grid: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Any


class Recorder:
    """Collects the attention maps of a forward pass.

    Args:
        leaf_at: Index of the attention call whose output becomes a gradient leaf. Everything before it then runs
            without a graph and everything after it with one, regardless of the caller's grad mode and of ``no_grad``
            blocks in the model, so that a backward pass covers only the end of the model.
        graph_at: Index of an earlier call at whose output the graph begins instead, so that the outputs of all calls
            from there on (``outputs``) have gradients.
        state_at: Index of the operation after call ``leaf_at`` whose token state becomes the leaf instead of the call's
            output; the graph then begins there.
        values_at: Indices of the calls whose value tensors, (B, H, K, ...), are kept; they show what tokens are
            made of.
        substitute: Function of a call's index, its output in the model's layout, and the function from that to
            (B, H, Q, d); returns the output with which the model continues.
        batch: Number of examples; by default the size of dimension 0 of the first tensor passed to a module.
        keep: What to keep of each call.
        walks: Records of the model's earlier captures.
    """

    def __init__(
        self,
        *,
        leaf_at: int | None = None,
        graph_at: int | None = None,
        state_at: int | None = None,
        values_at: Container[int] = (),
        substitute: Callable[[int, Tensor, RowView], Tensor] | None = None,
        batch: int | None = None,
        keep: Keep = KEEP_SCORES,
        walks: Walks | None = None,
    ) -> None:
        self.maps: list[AttentionMap] = []
        self.stack = ModuleStack(batch)
        provenance, places = Provenance(), TokenPlaces()
        mode = (leaf_at, graph_at, state_at)
        self.trace = Trace(provenance, places, self.stack, walks, mode)
        # All queries of the seams go through the trace.
        self.provenance = cast("Provenance", Asked(self.trace, provenance))
        self.places = cast("TokenPlaces", Asked(self.trace, places))
        self.awaited: dict[int, tuple[str, Compared]] = {}  # softmaxes of self-attention that have not met values
        self.read: set[tuple[int, int]] = set()  # the queries and keys of fused calls
        self.convolutions: list[PatchConvolution] = []
        self.values: dict[int, Tensor] = {}
        self.is_random = False  # whether dropout was active
        self.is_ambiguous = False  # whether batch and heads have the same size, and their order was assumed
        self.outputs: dict[int, tuple[Tensor, RowView]] = {}  # of the calls in the graph, if graph_at was given
        self.leaf: Tensor | None = None
        self.leaf_rows: RowView | None = None
        self.squash_input: Tensor | None = None
        self.steps: list[Callable[..., Any]] | None = None  # the operations after call leaf_at
        self.token_states: list[Tensor] = []  # after the leaf, in order: (B, Q, D) or (Q, B, D)
        self.pool: tuple[AttentionMap, Tensor] | None = None  # attention pooling after the leaf, and its output
        self.on_softmax: Callable[[tuple[Any, ...], dict[str, Any], Tensor], None] | None = None  # during the capture
        self._weighted: TensorTable[bool] = TensorTable()
        self.is_probing = False  # whether the gradient being computed must not pass through the pooling
        self._keep = keep
        self._leaf_at = leaf_at
        self._graph_at = graph_at
        self._state_at = state_at
        self._step_of: TensorTable[int] = TensorTable()  # the index of the operation that made a token state
        self._has_graph = False
        self._is_for_graph = self.wants_graph
        self.leaf_tokens = (0, 0)  # the batch and query sizes of call leaf_at
        self._values_at = values_at
        self._substitute = substitute
        self._registered: list[nn.Module] = []  # running modules with registered attention
        self.stack.on_enter, self.stack.on_leave = self._entered, self._left

    @property
    def unread(self) -> list[str]:
        """The modules with self-attention scores whose softmax was not multiplied with values.

        If a fused call used the same queries and keys, the softmax computes that attention again for display, and does
        not count.
        """
        return [name for name, compared in self.awaited.values() if not compared & self.read]

    @property
    def is_looking(self) -> bool:
        """Whether operations must go through `run`: to build a graph, or to be counted."""
        return self._is_for_graph or self.steps is not None

    @property
    def module_name(self) -> str:
        """The path of the running module, or an empty string."""
        name: str = self.trace.ask("module", lambda: self.stack.current)
        return name

    @property
    def batch(self) -> int | None:
        """The batch size; None until a tensor is passed to a module."""
        return self.stack.batch

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation of the model, with or without a graph depending on the leaf."""
        if self.steps is not None:
            self.steps.append(func)
        if not self._is_for_graph or func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        with torch.set_grad_enabled(self._has_graph and kwargs.get("out") is None):  # out= takes no graph
            return func(*args, **kwargs)

    @property
    def wants_graph(self) -> bool:
        """Whether a part of the model runs with a graph, regardless of the surrounding grad mode."""
        return self._leaf_at is not None or self._graph_at is not None

    def add(
        self, attention: AttentionMap, output: Tensor, rows: RowView, value: Tensor, query: Tensor, source: Tensor
    ) -> Tensor:
        """Record a call, and return the output with which the model continues.

        Args:
            attention: The captured map.
            output: The call's output in the model's layout.
            rows: Converts ``output`` (or its gradient) to (B, H, Q, d).
            value: The value tensor, (B, Hk, K, ...).
            query: The tensor that identifies the query tokens: the query, or the weights.
            source: The tensor that identifies the key tokens: the model's key or value.
        """
        attention, rows, value = self.places.on_grid(attention, rows, value, (source, value, query), self.batch)
        if len(self.maps) in self._values_at:
            self.values[len(self.maps)] = value.detach()
        if attention.shape[0] == attention.shape[1] == self.batch and attention.shape[0] > 1:
            self.is_ambiguous = True
        call = len(self.maps)
        if self._pools_the_leaf(attention):
            output = self._cut(output)
            self.pool = (attention, output)
        else:
            self.token_states.clear()  # only states after the last call affect nothing but the model's output
        attention.index = call
        attention.follows, attention.reads = self.trace.ask("ways", self._ways, query, source)
        self.maps.append(self._keep.of(attention, value))
        if self._substitute is not None:
            output = self._substitute(call, output, rows)
        begins = call in (self._graph_at, None if self._state_at is not None else self._leaf_at)
        if call == self._leaf_at:
            self.steps, self.leaf_tokens = [], (attention.shape[0], attention.shape[2])
        if output.is_floating_point() and (begins or (self._has_graph and self.outputs)):
            output = self._into_graph(call, output, rows)
        self.trace.ask("attended", self._attended, output, query, call)
        return output

    def _ways(self, query: Tensor, source: Tensor) -> tuple[frozenset[int], frozenset[int]]:
        """Return the earlier calls that the query tokens and the key tokens depend on."""
        return self.trace.provenance.lineage(query), self.trace.provenance.lineage(source)

    def _attended(self, output: Tensor, query: Tensor, call: int) -> None:
        """Record that a tensor is the output of an attention call."""
        self.trace.places.lose(output)
        self.trace.provenance.attended(output, query, call)

    def _cut(self, output: Tensor) -> Tensor:
        """Return the output of a pooling after the leaf, cut from the graph so that other paths to the leaf show.

        If the graph begins at the leaf, the output becomes another leaf. If gradients must pass, they are blocked only
        while the readout is determined.
        """
        if self._graph_at is None:
            return output.detach().requires_grad_()
        if output.requires_grad:
            output.register_hook(lambda gradient: torch.zeros_like(gradient) if self.is_probing else gradient)  # type: ignore[no-untyped-call]
        with torch.set_grad_enabled(True):
            return output.clone()

    def _into_graph(self, call: int, output: Tensor, rows: RowView) -> Tensor:
        """Return the output with which the model continues, and whose gradient will be computed."""
        if not self._has_graph:
            self._has_graph = True
            output = output.detach().requires_grad_()
            # For operations that bypass `run`: the rest of a module that runs in one piece, and autograd functions. The
            # caller disables gradients around the whole pass, which undoes this.
            torch.set_grad_enabled(True)
        if self._graph_at is not None:
            self.outputs[call] = (output, rows)
        if call == self._leaf_at:
            self.leaf, self.leaf_rows = output, rows
        # A copy, since models may write into their attention's output.
        with torch.set_grad_enabled(True):
            return output.clone()

    def _entered(self, module: nn.Module) -> None:
        if registration_of(module) is not None:
            self.trace.unfit()  # registered weights may change from run to run
            self._registered.append(module)

    def _left(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, others_ran: bool
    ) -> Any:
        """Record a module's registered attention, or link an opaque module's output to its input.

        Returns:
            The output that replaces the module's; None to keep it.
        """
        if module in self._registered:
            # A module inside it may have raised an exception that it caught.
            del self._registered[self._registered.index(module) :]
            registration = registration_of(module)
            if registration is None or self._registered or output is None:
                return None
            return self._add_registered(registration, module, args, kwargs, output)
        if not others_ran and not self.trace.is_replayed and isinstance(output, Tensor):
            came = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            with torch._C.DisableTorchFunction():  # these are not operations of the model
                if came is not None and came is not output and came.is_floating_point():
                    self.provenance.bridge(came, output)
        return None

    def _add_registered(
        self, registration: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        tokens = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() >= 2]
        self._registered.append(module)  # so that the user's function is not taken for the model's attention
        try:
            attention, first, rows = registered_map(registration, self.module_name, module, args, kwargs, output)
        finally:
            self._registered.pop()
        query = tokens[0] if tokens else first
        # In cross-attention the keys follow the queries, even if there are equally many.
        others = tokens[1:] if registration.kind == "cross" else tokens
        source = next((x for x in others if x.shape[1] == attention.shape[3]), query)
        value = source.flatten(2).unsqueeze(1) if source.dim() > 2 else source[:, None, :, None]
        with torch.set_grad_enabled(self._has_graph or not self.wants_graph):
            had_graph = self._has_graph
            result = self.add(attention, first, rows, value, query, source)
            self.maps[-1].value = None  # how the weights act on values is not registered
        if self._has_graph and not had_graph:
            torch.set_grad_enabled(True)  # `add` did this, but the block undid it
        if not isinstance(output, (tuple, list)):
            return result
        parts = [result, *output[1:]]
        return type(output)._make(parts) if hasattr(output, "_make") else type(output)(parts)

    @property
    def runs_registered(self) -> bool:
        """Whether a module with registered attention is running, whose operations must be ignored."""
        return bool(self._registered)

    def _pools_the_leaf(self, attention: AttentionMap) -> bool:
        """Return whether a call after the leaf attends to all the leaf's tokens with one query, like pooling."""
        alone = self.leaf is not None and self.pool is None
        return alone and attention.kind != "self" and attention.shape[2:] == (1, self.leaf_tokens[1])

    def note_squash(self, scores: Tensor) -> None:
        """Record the input of the latest softmax or sigmoid after the leaf; it may be the model's last operation."""
        if self.leaf is not None and scores.requires_grad:
            self.squash_input = scores

    def step_of(self, state: Tensor) -> int | None:
        """Return the index of the operation after call ``leaf_at`` that made a token state; None if overwritten."""
        return self._step_of.get(state)

    def note_token_state(self, func: Callable[..., Any], args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Record a tensor after the leaf that still has one row per token; return what the model continues with.

        Products with one factor per token, and what follows them, are excluded: they may be the weighting of a pooling,
        after which all rows look alike. A multiplication with the weight of a norm shows that the product was a
        normalisation.
        """
        if self._state_at is not None and self.steps is not None and len(self.steps) == self._state_at:
            return self._begin_at(output)
        if self.leaf is None or output.dim() not in (3, 4) or not output.requires_grad:
            return output
        if func is torch.roll:
            self.token_states.clear()  # windows were shifted back: the rows were in another order before
        if output.shape[-1] == 1 or not _has_rows(output, *self.leaf_tokens):
            return output
        if self.steps is not None and output not in self._step_of:
            self._step_of[output] = len(self.steps)
        if _writes(func):
            self._step_of.pop(output)
        # An earlier state that was written in place is no longer valid.
        self.token_states = [state for state in self.token_states if state is not output]
        factors = [a for a in args if isinstance(a, Tensor)]
        is_norm = func in MULTIPLIES and any(
            isinstance(a, nn.Parameter) and a.shape[-1:] == output.shape[-1:] for a in factors
        )
        inherited = any(a in self._weighted for a in factors) and not is_norm
        if inherited or (func in SCALINGS and any(_one_per_token(a, output) for a in factors)):
            self._weighted[output] = True
        else:
            self.token_states.append(output)
        return output

    def _begin_at(self, output: Tensor) -> Tensor:
        """Make a tensor the leaf if it is a token state; return what the model continues with."""
        if self._has_graph or tuple(output.shape[:2]) != self.leaf_tokens or not output.is_floating_point():
            return output
        self._has_graph = True
        self.leaf = output.detach().requires_grad_()
        self.leaf_rows = _as_one_head
        self.token_states.append(self.leaf)
        torch.set_grad_enabled(True)  # as in `_into_graph`
        return self.leaf.clone()


def _as_one_head(gradient: Tensor) -> Tensor:
    """Return (B, N, ...) as (B, 1, N, D)."""
    return gradient.flatten(2).unsqueeze(1)


def _writes(func: Callable[..., Any]) -> bool:
    """Return whether an operation writes into its first argument."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _has_rows(output: Tensor, batch: int, tokens: int) -> bool:
    """Return whether a tensor has one row per token: (B, N, D), (N, B, D), or (B, rows, columns, D) of a grid."""
    if output.dim() == 4:
        rows, columns = output.shape[1:3]
        return output.shape[0] == batch and rows * columns == tokens and 1 not in (rows, columns)
    return tuple(output.shape[:2]) in ((batch, tokens), (tokens, batch))


def _one_per_token(factor: Tensor, output: Tensor) -> bool:
    """Return whether a factor has one value per token, broadcast or repeated over the features."""
    tokens = output.shape[1:-1]  # (N,), or (rows, columns) of a grid
    if factor.shape[-1 - len(tokens) : -1] != tokens or factor.dim() > output.dim() or tokens.numel() == 1:
        return False
    return factor.shape[-1] == 1 or bool((factor == factor[..., :1]).all())


def kind_of(same_source: bool | None, *, pooled: bool = False) -> AttentionKind:
    """Return the kind of a call whose queries and keys have the same source, or another, or unknown ones."""
    if same_source is None:
        return "pool" if pooled else "unknown"
    return "self" if same_source else "cross"
