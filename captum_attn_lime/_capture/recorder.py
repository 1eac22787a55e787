"""`Recorder`: what one capture has seen so far, and the one attention output it may cut out as a gradient leaf."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from captum_attn_lime._capture.keeping import Keep
from captum_attn_lime._capture.names import ModuleStack
from captum_attn_lime._capture.provenance import Compared, Provenance
from captum_attn_lime._capture.registered import Registration, registration, told_map
from captum_attn_lime._capture.walk import Asked, Trace, Walks
from captum_attn_lime._capture.weak import TensorTable
from captum_attn_lime._capture.windows import TokenPlaces
from captum_attn_lime.attention import AttentionKind, AttentionMap

if TYPE_CHECKING:
    from captum_attn_lime._capture.seams.softmax import SoftmaxWatch

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
RowView = Callable[[Tensor], Tensor]  # an attention output in the model's own layout -> (B, H, Q, d)


class PatchConvolution(NamedTuple):
    """A convolution that was applied to a 4-D tensor: what maps pixels to patches."""

    input_shape: tuple[int, ...]
    grid: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Any


class Recorder:
    """Collects the attention maps of a forward pass.

    Args:
        leaf_at: Index of the attention call whose output is to become a gradient leaf. Everything before it then runs
            without a graph and everything after it with one, whatever the caller's grad mode and the model's own
            ``no_grad`` blocks say, so that a backward pass goes through the end of the model only.
        graph_at: Index of an earlier call whose output begins the graph instead, so that the outputs of all calls from
            there on (``outputs``) have gradients.
        state_at: Which step of the model behind call ``leaf_at`` gives the token state that is to be the leaf in place
            of the call's own output; the graph then begins there.
        values_at: Indices of the calls whose value tensors, (B, H, K, ...), are kept: they show what tokens are
            made of.
        substitute: Takes a call's index, its output in the model's own layout and the way from that to (B, H, Q, d),
            and returns what the model is to go on with.
        batch: Number of examples; by default dimension 0 of the first tensor that enters a module.
        keep: What is kept of each call.
        walks: What is remembered of the model's earlier captures.
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
        # Whatever the seams ask of them goes through the trace.
        self.provenance = cast("Provenance", Asked(self.trace, provenance))
        self.places = cast("TokenPlaces", Asked(self.trace, places))
        self.awaited: dict[int, tuple[str, Compared]] = {}  # softmaxes of self-attention that have not met values
        self.read: set[tuple[int, int]] = set()  # the queries and keys of fused calls
        self.convolutions: list[PatchConvolution] = []
        self.values: dict[int, Tensor] = {}
        self.is_random = False  # dropout was at work
        self.is_ambiguous = False  # batch and heads have one size, and their order was assumed
        self.outputs: dict[int, tuple[Tensor, RowView]] = {}  # of the calls in the graph, where graph_at was given
        self.leaf: Tensor | None = None
        self.leaf_rows: RowView | None = None
        self.squash_input: Tensor | None = None
        self.steps: list[Callable[..., Any]] | None = None  # the operations behind call leaf_at
        self.token_states: list[Tensor] = []  # behind the leaf, in order: (B, Q, D) or (Q, B, D)
        self.pool: tuple[AttentionMap, Tensor] | None = None  # attention pooling behind the leaf, and its output
        self.softmaxes: SoftmaxWatch | None = None  # what follows softmax results, while the model is watched
        self._weighted: TensorTable[bool] = TensorTable()
        self.is_probing = False  # a gradient is being taken that must not pass through the pooling
        self._keep = keep
        self._leaf_at = leaf_at
        self._graph_at = graph_at
        self._state_at = state_at
        self._step_of: TensorTable[int] = TensorTable()  # the step that made a token state
        self._has_graph = False
        self._is_for_graph = self.wants_graph
        self.leaf_tokens = (0, 0)  # the batch and query sizes of call leaf_at
        self._values_at = values_at
        self._substitute = substitute
        self._registered: list[nn.Module] = []  # modules being run whose attention the user has told
        self.stack.on_enter, self.stack.on_leave = self._entered, self._left

    @property
    def unread(self) -> list[str]:
        """The modules with self-attention scores whose softmax has not met values.

        A softmax over the scores of queries and keys that a fused call has also had is the same attention once more, to
        be looked at.
        """
        return [name for name, compared in self.awaited.values() if not compared & self.read]

    @property
    def is_looking(self) -> bool:
        """Whether operations need `run`: for a graph, or because they are counted."""
        return self._is_for_graph or self.steps is not None

    @property
    def module_name(self) -> str:
        """The path of the module that is running, or an empty string."""
        name: str = self.trace.ask("module", lambda: self.stack.current)
        return name

    @property
    def batch(self) -> int | None:
        """The batch size, where a module was entered with a tensor."""
        return self.stack.batch

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation of the model, with or without a graph as the leaf demands."""
        if self.steps is not None:
            self.steps.append(func)
        if not self._is_for_graph or func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        with torch.set_grad_enabled(self._has_graph and kwargs.get("out") is None):  # out= takes no graph
            return func(*args, **kwargs)

    @property
    def wants_graph(self) -> bool:
        """Whether a part of the model runs with a graph, whatever the grad mode around it."""
        return self._leaf_at is not None or self._graph_at is not None

    def add(
        self, attention: AttentionMap, output: Tensor, rows: RowView, value: Tensor, query: Tensor, source: Tensor
    ) -> Tensor:
        """Record a call and return the output the model is to go on with.

        Args:
            attention: The captured map.
            output: The call's output in the model's own layout.
            rows: Brings ``output`` (or its gradient) to (B, H, Q, d).
            value: The value tensor, (B, Hk, K, ...).
            query: What the query tokens are told by: the query, or the weights.
            source: What the key tokens are told by: the key or the value, as the model had it.
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
            self.token_states.clear()  # only what follows the last call leads to the model's output alone
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
        """Return the calls that the query tokens, and the key tokens, had passed through before."""
        return self.trace.provenance.lineage(query), self.trace.provenance.lineage(source)

    def _attended(self, output: Tensor, query: Tensor, call: int) -> None:
        """Note that an output is that of an attention call."""
        self.trace.places.lose(output)
        self.trace.provenance.attended(output, query, call)

    def _cut(self, output: Tensor) -> Tensor:
        """Return the output of a pooling behind the leaf such that what reaches the leaf by other ways can be told.

        Where the graph ends at the leaf the output becomes a leaf of its own. Where gradients are to pass, they are
        stopped only while the readout is looked for.
        """
        if self._graph_at is None:
            return output.detach().requires_grad_()
        if output.requires_grad:
            output.register_hook(lambda gradient: torch.zeros_like(gradient) if self.is_probing else gradient)  # type: ignore[no-untyped-call]
        with torch.set_grad_enabled(True):
            return output.clone()

    def _into_graph(self, call: int, output: Tensor, rows: RowView) -> Tensor:
        """Return the output with which the model goes on, whose gradient will be asked for."""
        if not self._has_graph:
            self._has_graph = True
            output = output.detach().requires_grad_()
            # For what does not pass through `run`: the rest of a body run in one piece, a model's autograd functions.
            # Whoever asked for the graph has gradients off around the whole pass, which ends this again.
            torch.set_grad_enabled(True)
        if self._graph_at is not None:
            self.outputs[call] = (output, rows)
        if call == self._leaf_at:
            self.leaf, self.leaf_rows = output, rows
        # A copy, since models may write into their attention's output.
        with torch.set_grad_enabled(True):
            return output.clone()

    def _entered(self, module: nn.Module) -> None:
        if registration(module) is not None:
            self.trace.unfit()  # what a user tells may change from run to run
            self._registered.append(module)

    def _left(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, others_ran: bool
    ) -> Any:
        """Take what a user told of a module, or link an opaque module's output to its input.

        Returns:
            The output that takes the place of the module's own; None to leave it.
        """
        if module in self._registered:
            # What it called may have ended in an exception that it caught itself.
            del self._registered[self._registered.index(module) :]
            said = registration(module)
            if said is None or self._registered or output is None:
                return None
            return self._told(said, module, args, kwargs, output)
        if not others_ran and not self.trace.is_replayed and isinstance(output, Tensor):
            came = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            with torch._C.DisableTorchFunction():  # what is looked at here is no step of the model
                if came is not None and came is not output and came.is_floating_point():
                    self.provenance.bridge(came, output)
        return None

    def _told(
        self, said: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        tokens = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() >= 2]
        self._registered.append(module)  # what the user's function computes is none of the model's attention
        try:
            attention, first, rows = told_map(said, self.module_name, module, args, kwargs, output)
        finally:
            self._registered.pop()
        query = tokens[0] if tokens else first
        # Of cross-attention the keys come behind the queries, also where there are as many of them.
        others = tokens[1:] if said.kind == "cross" else tokens
        source = next((x for x in others if x.shape[1] == attention.shape[3]), query)
        value = source.flatten(2).unsqueeze(1) if source.dim() > 2 else source[:, None, :, None]
        with torch.set_grad_enabled(self._has_graph or not self.wants_graph):
            had_graph = self._has_graph
            result = self.add(attention, first, rows, value, query, source)
            self.maps[-1].value = None  # how the weights act on values was not told
        if self._has_graph and not had_graph:
            torch.set_grad_enabled(True)  # as `add` has done, which the block has undone
        if not isinstance(output, (tuple, list)):
            return result
        parts = [result, *output[1:]]
        return type(output)._make(parts) if hasattr(output, "_make") else type(output)(parts)

    @property
    def is_told(self) -> bool:
        """Whether a module runs whose attention the user has told, so that nothing in it is to be looked at."""
        return bool(self._registered)

    def _pools_the_leaf(self, attention: AttentionMap) -> bool:
        """Return whether a call behind the leaf reads all the leaf's tokens with one query, as pooling does."""
        alone = self.leaf is not None and self.pool is None
        return alone and attention.kind != "self" and attention.shape[2:] == (1, self.leaf_tokens[1])

    def note_squash(self, scores: Tensor) -> None:
        """Remember the input of the latest softmax or sigmoid behind the leaf; it may be the model's last step."""
        if self.leaf is not None and scores.requires_grad:
            self.squash_input = scores

    def step_of(self, state: Tensor) -> int | None:
        """Return which step behind call ``leaf_at`` made a token state; None where it was written in place since."""
        return self._step_of.get(state)

    def note_token_state(self, func: Callable[..., Any], args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Remember a tensor behind the leaf that still has one row per token; return what the model goes on with.

        What comes of a product with one factor per token is left out: it may be the weighting of a pooling, behind
        which all rows look alike. The weight of a norm ends that: such a product was a normalisation.
        """
        if self._state_at is not None and self.steps is not None and len(self.steps) == self._state_at:
            return self._begin_at(output)
        if self.leaf is None or output.dim() not in (3, 4) or not output.requires_grad:
            return output
        if func is torch.roll:
            self.token_states.clear()  # windows were shifted back: before, the rows stood in another order
        if output.shape[-1] == 1 or not _has_rows(output, *self.leaf_tokens):
            return output
        if self.steps is not None and output not in self._step_of:
            self._step_of[output] = len(self.steps)
        if _writes(func):
            self._step_of.pop(output)
        # Written in place, an earlier state is no longer what it was.
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
        """Make a token state the leaf, where it still is one; return what the model goes on with."""
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
    """Return whether a factor has one value per token, broadcast over the features or repeated for each."""
    tokens = output.shape[1:-1]  # (N,), or (rows, columns) of a grid
    if factor.shape[-1 - len(tokens) : -1] != tokens or factor.dim() > output.dim() or tokens.numel() == 1:
        return False
    return factor.shape[-1] == 1 or bool((factor == factor[..., :1]).all())


def kind_of(same_source: bool | None, *, pooled: bool = False) -> AttentionKind:
    """Return the kind of a call from what its projections showed."""
    if same_source is None:
        return "pool" if pooled else "unknown"
    return "self" if same_source else "cross"
