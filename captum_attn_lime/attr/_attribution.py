"""`AttentionAttribution`: the attention family as one Captum attribution."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_attn_lime._capture import Keep
from captum_attn_lime._util.captum import (
    Target,
    TensorOrTuple,
    check_inputs,
    format_forward_args,
    format_output,
    log_usage,
    select_target,
)
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._targets import plain_target
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr._facts import ModelFacts, shortened
from captum_attn_lime.attr._layers import Layers, select_layers
from captum_attn_lime.attr._memory import Kind, Memory, kind_of
from captum_attn_lime.attr._model_state import ModelState
from captum_attn_lime.attr._passes import ForwardPass, ForwardRunner, Wanted, positions_of, sum_explained
from captum_attn_lime.attr._query import Query, query_weights
from captum_attn_lime.attr._tokens import TokenMap, by_feature, check_token_map, place
from captum_attn_lime.errors import (
    DropoutWarning,
    InputError,
    SelectionError,
    TokenMapError,
    TrainingModeWarning,
)
from captum_attn_lime.methods import LayerMethod, Method, get_method

# Inputs of more tokens than this are called long, and tried out on a beginning of so many.
_LONG, _BEGINNING = 1024, 128


class AttentionAttribution(Attribution):  # type: ignore[misc]
    """Attention as an attribution: raw attention, rollout, or any function over attention maps.

    The model runs as it is, on fused attention too, and is left as it was. Which output tokens the prediction reads is
    found by a small gradient (``query="auto"``), so CLS, last-token and mean pooling need no setting.

    Raw attention and rollout do not depend on the class: ``target`` is accepted and checked, and changes nothing.

    Args:
        forward_func: The model, or any function of tensors that runs one and returns a tensor (B, ...).
        method: A method with its options, such as ``Rollout(residual=0.3)``; a name for one with its defaults,
            ``"raw"``, ``"rollout"`` or ``"relevance"``; or a function ``(stack, query) -> (B, K)`` over attention maps.
        layers: Which layers: an index into the self-attention stack (negative ones from the end), a slice of it, the
            module of any attention call or its path (cross-attention too, for raw attention), or a sequence of these.
            By default the last layer for raw attention and all layers for rollout.
        offload: Where the layers' queries and keys wait until they are needed, for inputs so long that they do not fit
            beside the model: ``"cpu"``, or a folder for files that are removed afterwards. By default they stay where
            they are.

    Reference:
        Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> attention = AttentionAttribution(lambda x: encoder(x)[:, 0], method="rollout")
        >>> scores = attention.attribute(torch.randn(2, 5, 8))
        >>> scores.shape, bool(scores[:, :, 0].sum(dim=1).allclose(torch.ones(2)))
        (torch.Size([2, 5, 8]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        method: str | Callable[..., Tensor] | Method = "rollout",
        layers: Layers = None,
        offload: str | PathLike[str] | None = None,
    ) -> None:
        if not callable(forward_func):
            raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")
        super().__init__(forward_func)
        self.method = method
        self.layers = layers
        self.offload = offload
        self._memory = Memory()
        self._runner, self.facts = ForwardRunner(self._memory), ModelFacts(self._memory)
        # Options are read when they are used; what can be known to be wrong now is said now.
        _ = self._keep

    @property
    def _method(self) -> Method:
        return get_method(self.method)

    @property
    def _keep(self) -> Keep:
        needs = self._method.needs
        return Keep(values=needs.values, head_fusion=needs.head_fusion, heads=needs.heads, offload=self.offload)

    def explaining(self) -> AbstractContextManager[ModelState | None]:
        """Return the block in which facts about the model are found out and remembered, and it is left as it was."""
        return self._memory.opened(self.forward_func)

    @property
    def uses_target(self) -> bool:
        """Whether the scores depend on the class."""
        return self._method.uses_target

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        *,
        query: Query = "auto",
        token_map: Tensor | Sequence[Tensor] | None = None,
    ) -> TensorOrTuple:
        r"""Return each input cell's attention: the score of the token it belongs to.

        Args:
            inputs: A tensor or a tuple of tensors, batch first: token ids (B, N), embeddings (B, N, D), images
                (B, C, H, W), or the columns of a table (B, n), several tensors included.
            target: Output indices, as in every Captum method, or class names of an adapter; checked, and without effect
                on raw and rollout.
            additional_forward_args: Further arguments of ``forward_func``, passed after the inputs.
            feature_mask: Feature ids from 0, one tensor per input. Each cell then carries its whole feature's score,
                the sum over the feature's share of tokens.
            query: The output tokens to explain: ``"auto"`` (those that the prediction reads), an index or one index
                per example, a slice, weights (B, N), or ``"first"``, ``"last"``, ``"mean"`` over real tokens. Where the
                output has one row per token, ``"auto"`` is the position that the target (position, class) names.
            token_map: For each input tensor the token index of each cell (-1 for none), where it cannot be found.

        Returns:
            Attributions of the inputs' shapes; a tuple where the inputs were one. Scores of ``"raw"`` and
            ``"rollout"`` are shares of attention: not negative, and with the mean over heads they sum to 1 over tokens
            (special tokens such as CLS included). Cells that belong to no token, such as columns that join behind the
            attention, have no value: NaN, which ``torch.nansum`` leaves out and ``compare`` shows as such.

        Raises:
            TargetError: The output has no such target.
            SelectionError: A layer, head or query the model does not have.
            NoAttentionError: The model showed no attention.
            ReadoutError: Which tokens the output reads cannot be known; pass ``query``.
            AttentionKindError: A product of layers over cross-attention, or of stages between which tokens merge.
            TokenMapError: Tokens cannot be placed on the input's cells; pass ``token_map``.

        Warns:
            DropoutWarning: The model's dropout is active.
            TrainingModeWarning: Its batch norm is in training mode, where examples of a batch change each other.
        """
        return self.attribute_with_total(
            inputs, target, additional_forward_args, feature_mask, query=query, token_map=token_map
        )[0]

    def attribute_with_total(
        self,
        inputs: TensorOrTuple,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        *,
        query: Query = "auto",
        token_map: Tensor | Sequence[Tensor] | None = None,
    ) -> tuple[TensorOrTuple, Tensor]:
        """Return what :meth:`attribute` returns, and the sum of all tokens' magnitudes, (B,).

        Tokens that no input cell belongs to (class tokens of pictures and tables, prefixes) are part of the sum, and so
        is attention to places that hold no token.

        Args:
            inputs: This and the others as for :meth:`attribute`.
            target: Output indices.
            additional_forward_args: Further arguments of ``forward_func``.
            feature_mask: Feature ids.
            query: The output tokens to explain.
            token_map: The token index of each cell.
        """
        tensors, forward_args = check_inputs(inputs), format_forward_args(additional_forward_args)
        with self.explaining() as state:
            target = plain_target(target, self.forward_func, tensors, forward_args)
            done, cells, index, total = self._explain(tensors, target, forward_args, query, token_map)
        if done.recorder.is_random:
            warnings.warn(
                "the model's dropout is active, so its outputs and states are random; call model.eval() first.",
                DropoutWarning,
                stacklevel=4,
            )
        elif state is not None and state.has_moving_norm:
            warnings.warn(
                "the model's batch norm is in training mode, so the examples of a batch change each other's outputs; "
                "call model.eval() first.",
                TrainingModeWarning,
                stacklevel=4,
            )
        if feature_mask is not None:
            cells = by_feature(cells, index, feature_mask)
        return format_output(isinstance(inputs, tuple), cells), total

    def _explain(
        self,
        tensors: tuple[Tensor, ...],
        target: Target,
        forward_args: tuple[Any, ...],
        query: Query,
        token_map: Tensor | Sequence[Tensor] | None,
    ) -> tuple[ForwardPass, tuple[Tensor, ...], TokenMap, Tensor]:
        """Return the pass that was explained, the cells' scores, the token of each cell, and all tokens' total."""
        auto = isinstance(query, str) and query == "auto"
        short = shortened(tensors, forward_args, longer_than=_LONG, to=_BEGINNING)
        kind = kind_of(tensors, forward_args) if short is None else kind_of(*short, is_long=True)
        if short is not None:
            # Where the target names a position, any will do.
            first = None if positions_of(target, len(tensors[0])) is None else (0,)
            self._try_beginning(short, first, kind, find=auto)
        done = self.run(tensors, target, forward_args, find=auto, explain=True, kind=kind)
        select_target(done.output, target)
        maps = self._select_layers(done)
        if token_map is None:
            try:
                index = self.facts.token_map(self.forward_func, tensors, forward_args, done, maps[-1])
            except TokenMapError as error:
                if not done.recorder.is_random:
                    raise
                raise TokenMapError(f"{error} The model's dropout is active: call model.eval() first.") from error
        else:
            index = check_token_map(token_map, tensors, maps[-1].shape[3])
        if not self._method.last_layer_only:
            self.facts.mark_mixed(self.forward_func, tensors, forward_args, done, maps)
        if maps[-1] is done.top:
            weights: Tensor | None = torch.ones(maps[-1].shape[0], 1)
        else:
            # The layer whose tokens a query counts.
            asked = maps[-1] if maps[-1].kind in ("self", "windowed") else done.maps[-1]
            weights = self._readout(done) if auto else query_weights(query, asked)
        scores = self._scores(maps, weights, done, own_query=not auto)
        total = scores.abs().sum(dim=1)
        if self._method.needs.head_fusion == "mean" and weights is not None:
            # Shares of the query's weight, less what went to places without a token.
            total = torch.maximum(total, weights.sum(dim=1).to(total))
        return done, place(scores, index, tensors), index, total

    def matrix(
        self,
        inputs: TensorOrTuple,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        max_bytes: int = 2**30,
    ) -> Tensor:
        """Return the scores of every output token as a query: a whole matrix, row i for query i.

        The layers' maps are still computed in blocks, but the result is N x N, and twice so while it is made.

        Args:
            inputs: As for :meth:`attribute`.
            target: As for :meth:`attribute`.
            additional_forward_args: As for :meth:`attribute`.
            max_bytes: Memory that the matrices may take.

        Returns:
            ``(B, Q, K)`` over the model's tokens, special tokens included.

        Raises:
            InputError: The matrices would take more than ``max_bytes``.
        """
        tensors, forward_args = check_inputs(inputs), format_forward_args(additional_forward_args)
        with self.explaining():
            target = plain_target(target, self.forward_func, tensors, forward_args)
            done = self.run(tensors, target, forward_args, find=False, explain=True)
            select_target(done.output, target)
            maps = self._select_layers(done)
            last = maps[-1]
            batch, _, queries, keys = last.shape
            needed = batch * queries * (queries + 2 * keys) * last.dtype.itemsize
            if needed > max_bytes:
                raise InputError(
                    f"the whole matrix of {batch} x {queries} x {keys} scores takes {needed / 2**20:,.0f} MB while it "
                    f"is made, more than max_bytes allows ({max_bytes / 2**20:,.0f} MB). Raise max_bytes=, pass fewer "
                    "examples, or ask attribute() for the rows you need by query=."
                )
            if not self._method.last_layer_only:
                self.facts.mark_mixed(self.forward_func, tensors, forward_args, done, maps)
        everything = torch.eye(queries, device=last.device, dtype=last.dtype).expand(batch, -1, -1)
        return self._method(maps, everything).detach()

    def _try_beginning(
        self, short: tuple[tuple[Tensor, ...], tuple[Any, ...]], target: Target, kind: Kind | None, *, find: bool
    ) -> None:
        """Find out on the beginning of a long input what would take several passes over the whole."""
        key = None if kind is None else ("tried", kind, self._method.last_layer_only, repr(self.layers))
        if self._memory.get(key):
            return
        self._memory.put(key, True)
        # Whatever does not work on a part says nothing of the whole, which comes next.
        with contextlib.suppress(Exception), without_drawing():
            done = self.run(short[0], target, short[1], find=find, kind=kind)
            maps = self._select_layers(done)
            self.facts.token_map(self.forward_func, *short, done, maps[-1])
            if not self._method.last_layer_only:
                self.facts.mark_mixed(self.forward_func, *short, done, maps)

    def run(
        self,
        inputs: tuple[Tensor, ...],
        target: Target,
        forward_args: tuple[Any, ...],
        *,
        find: bool,
        explain: bool = False,
        kind: Kind | None = None,
    ) -> ForwardPass:
        """Return one captured forward pass.

        Args:
            inputs: The input tensors.
            target: What is explained of the output.
            forward_args: Further arguments of the model.
            find: Whether the tokens that the prediction reads are wanted.
            explain: Whether the method is to be applied to the maps: they then have what it needs, and no more.
            kind: The kind of the input, where it is known already.
        """
        gradients = explain and self._method.needs.gradients
        wanted = Wanted(
            readout=find,
            positions=positions_of(target, len(inputs[0])) if find else None,
            gradient_of=(lambda output: sum_explained(output, target)) if gradients else None,
            keep=self._keep if explain else Keep(offload=self.offload),
        )
        return self._runner.run(self.forward_func, inputs, forward_args, wanted, kind)

    def _readout(self, done: ForwardPass) -> Tensor | None:
        """Return the weights of the last layer's tokens, a last layer of one query and its residual included."""
        method, top, readout = self._method, done.top, done.readout
        if top is None or readout is None:
            return readout
        if not isinstance(method, LayerMethod):
            raise SelectionError(
                f"the model computes its last layer {top.name!r} for the token that it reads only, and {method!r} does "
                "not say how to go through such a layer to the others. Pass query= for the layers you chose, or use a "
                "method with a step for each layer (rollout, relevance)."
            )
        return method.step(top, readout.new_ones(len(readout), 1), readout)

    def _scores(
        self, maps: list[AttentionMap], weights: Tensor | None, done: ForwardPass, *, own_query: bool
    ) -> Tensor:
        n_queries, last = maps[-1].shape[2], done.maps[-1]
        of_same_tokens = (
            maps[-1] is done.top
            or maps[-1].index == last.index
            or maps[-1].index in last.follows
            or last.index in maps[-1].follows
        )
        if not own_query and not of_same_tokens:
            raise SelectionError(
                f"layer {maps[-1].name!r} is over other tokens than {last.name!r}, whose tokens the prediction reads; "
                "pass query= for the layers you chose."
            )
        if weights is None or weights.shape[1] != n_queries:
            raise SelectionError(
                f"layer {maps[-1].name!r} has {n_queries} output tokens but the readout is over those of "
                f"{done.maps[-1].name!r} ({done.maps[-1].shape[2]}); pass query= for the layers you chose."
            )
        return self._method(maps, weights.to(device=maps[-1].device, dtype=maps[-1].dtype)).detach()

    def _select_layers(self, done: ForwardPass) -> list[AttentionMap]:
        last_only = self._method.last_layer_only
        return select_layers(self.layers, done, self.forward_func, last_only=last_only)
