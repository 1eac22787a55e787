"""`AttentionAttribution`: all attention methods as one Captum attribution."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
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
)
from captum_attn_lime._util.warn import warn
from captum_attn_lime.adapters._targets import plain_target
from captum_attn_lime.attention import AttentionMap, OneRowMap
from captum_attn_lime.attr._layers import Layers, select_layers
from captum_attn_lime.attr._model import ExplainedModel
from captum_attn_lime.attr._passes import ForwardPass, Request
from captum_attn_lime.attr._query import Query, is_auto, output_weights
from captum_attn_lime.attr._token_map import by_feature, check_token_map, place
from captum_attn_lime.errors import (
    DropoutWarning,
    InputError,
    SelectionError,
    TrainingModeWarning,
)
from captum_attn_lime.methods import LayerMethod, Method, get_method


class AttentionAttribution(Attribution):  # type: ignore[misc]
    """Attention as an attribution: raw attention, rollout, or any function over attention maps.

    The model runs unchanged, with fused attention too. A small gradient finds the output tokens that the prediction
    reads (``query="auto"``), so CLS, last-token and mean pooling need no setting.

    Raw attention and rollout do not depend on the class: ``target`` is checked, but has no effect.

    Args:
        forward_func: The model, or any function of tensors that runs one and returns a tensor (B, ...).
        method: A method with its options, such as ``Rollout(residual=0.3)``; the name of one with its defaults,
            ``"raw"``, ``"rollout"`` or ``"relevance"``; or a function ``(stack, query) -> (B, K)`` over attention maps.
        layers: An index into the self-attention stack (negative from the end), a slice of it, a module that makes one
            attention call or its path (cross-attention too, for raw attention), a pattern of paths for `fnmatch`
            (``"*language*"``; it selects layers of the stack if it matches any), or a sequence of these. By default the
            last layer for raw attention and all layers for rollout.
        offload: Where to store the layers' queries and keys for inputs so long that they do not fit beside the model:
            ``"cpu"``, or a folder for files that are removed afterwards. By default they stay on the device.

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
        self._explained = ExplainedModel(forward_func)
        _ = self._keep  # raises for invalid options; they are read again when used

    def __repr__(self) -> str:
        options = inspect.signature(AttentionAttribution).parameters.values()
        values = {o.name: getattr(self, o.name) for o in options if o.kind is o.KEYWORD_ONLY}
        changed = {o.name for o in options if o.name in values and values[o.name] != o.default}
        shown = [f"{name}={_shown(value)}" for name, value in values.items() if name in {"method", *changed}]
        return f"{type(self).__name__}({', '.join([_shown(self.forward_func), *shown])})"

    @property
    def _method(self) -> Method:
        return get_method(self.method)

    @property
    def _keep(self) -> Keep:
        needs = self._method.needs
        return Keep(values=needs.values, head_fusion=needs.head_fusion, heads=needs.heads, offload=self.offload)

    @property
    def _model(self) -> ExplainedModel:
        """The cached facts about the model; a new object if ``forward_func`` was replaced."""
        if self._explained.forward_func is not self.forward_func:
            self._explained = ExplainedModel(self.forward_func)
        return self._explained

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
        r"""Return the attention of each input cell: the score of its token.

        Args:
            inputs: A tensor or a tuple of tensors, batch first: token ids (B, N), embeddings (B, N, D), images
                (B, C, H, W), or the columns of a table (B, n), several tensors included.
            target: Output indices, as in every Captum method, or class names of an adapter; no effect on raw attention
                and rollout.
            additional_forward_args: Further arguments of ``forward_func``, passed after the inputs.
            feature_mask: Feature ids from 0, one tensor per input. Each cell then has the score of its whole feature,
                the sum over the feature's share of tokens.
            query: The output tokens to explain: ``"auto"`` (those that the prediction reads), an index or one index
                per example, a slice, weights (B, N), or ``"first"``, ``"last"``, ``"mean"`` over real tokens. If the
                output has one row per token, ``"auto"`` is the position in the target (position, class).
            token_map: For each input tensor the token index of each cell (-1 for none), if it cannot be determined.

        Returns:
            Attributions of the inputs' shapes; a tuple if the inputs are one. Scores of ``"raw"`` and ``"rollout"`` are
            shares of attention: not negative, and with the mean over heads they sum to 1 over tokens (including special
            tokens such as CLS). Cells without a token, such as columns that are added after the attention, are NaN,
            which ``torch.nansum`` ignores and ``compare`` shows as "no value".

        Raises:
            TargetError: The output has no such target.
            SelectionError: The model does not have a selected layer, head or query.
            NoAttentionError: No attention was captured.
            ReadoutError: The tokens that the output reads cannot be determined; pass ``query``.
            AttentionKindError: A product of layers over cross-attention, or of stages between which tokens merge.
            TokenMapError: The tokens of the input's cells cannot be determined; pass ``token_map``.

        Warns:
            DropoutWarning: The model's dropout is active.
            TrainingModeWarning: The model's batch norm is in training mode, where examples of a batch affect each
                other.
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
        """Return the result of :meth:`attribute`, and the sum of all tokens' magnitudes, (B,).

        The sum includes tokens without input cells (class tokens of images and tables, prefixes), and attention to
        positions without a token. All arguments are those of :meth:`attribute`.
        """
        tensors, forward_args = check_inputs(inputs), format_forward_args(additional_forward_args)
        with self._model.explaining() as state:
            run, layers = self._run(tensors, forward_args, target, readout=is_auto(query))
            if token_map is None:
                index = self._model.token_map(run, layers[-1])
            else:
                index = check_token_map(token_map, tensors, layers[-1].shape[3])
            weights = output_weights(query, run, layers[-1])
            if run.top is not None and run.top is not layers[-1]:
                layers = self._with_top(layers, run.top)
            scores = self._method(layers, weights.to(device=layers[-1].device, dtype=layers[-1].dtype)).detach()
            cells, total = place(scores, index, tensors), scores.abs().sum(dim=1)
            if self._method.needs.head_fusion == "mean":
                # Scores are shares of the query's weight, minus attention to positions without a token.
                total = torch.maximum(total, weights.sum(dim=1).to(total))
        if run.recorder.is_random:
            warn(
                "the model's dropout is active, so its outputs are random; call model.eval() first.",
                DropoutWarning,
            )
        elif state is not None and state.has_moving_norm:
            warn(
                "the model's batch norm is in training mode, so the examples of a batch affect each other's outputs; "
                "call model.eval() first.",
                TrainingModeWarning,
            )
        if feature_mask is not None:
            cells = by_feature(cells, index, feature_mask)
        return format_output(isinstance(inputs, tuple), cells), total

    def matrix(
        self,
        inputs: TensorOrTuple,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        max_bytes: int = 2**30,
    ) -> Tensor:
        """Return the scores for every output token as a query: a whole matrix, row i for query i.

        The layers' maps are still computed in blocks, but the result and one temporary copy are N x N.

        Args:
            inputs: As for :meth:`attribute`.
            target: As for :meth:`attribute`.
            additional_forward_args: As for :meth:`attribute`.
            max_bytes: Limit on the memory of the matrices.

        Returns:
            ``(B, Q, K)`` over the model's tokens, including special tokens.

        Raises:
            InputError: The matrices would need more than ``max_bytes``.
        """
        tensors, forward_args = check_inputs(inputs), format_forward_args(additional_forward_args)
        with self._model.explaining():
            _, layers = self._run(tensors, forward_args, target, readout=False)
        last = layers[-1]
        batch, _, queries, keys = last.shape
        needed = batch * queries * (queries + 2 * keys) * last.dtype.itemsize
        if needed > max_bytes:
            raise InputError(
                f"the whole matrix of {batch} x {queries} x {keys} scores needs {needed / 2**20:,.0f} MB, more than "
                f"max_bytes allows ({max_bytes / 2**20:,.0f} MB). Raise max_bytes=, pass fewer examples, or compute "
                "single rows with attribute(..., query=...)."
            )
        everything = torch.eye(queries, device=last.device, dtype=last.dtype).expand(batch, -1, -1)
        return self._method(layers, everything).detach()

    def _run(
        self, inputs: tuple[Tensor, ...], forward_args: tuple[Any, ...], target: Target, *, readout: bool
    ) -> tuple[ForwardPass, list[AttentionMap]]:
        """Return a captured pass, and the layers to explain."""
        target = plain_target(target, self.forward_func, inputs, forward_args)
        request = Request(target, readout=readout, gradient=self._method.needs.gradients, keep=self._keep)
        run = self._model.run(inputs, forward_args, request)
        layers = select_layers(self.layers, run, self.forward_func, last_only=self._method.last_layer_only)
        if not self._method.last_layer_only:
            self._model.check_mixing(run, layers)
        return run, layers

    def _with_top(self, layers: list[AttentionMap], top: AttentionMap) -> list[AttentionMap]:
        """Return the layers, followed by the last layer, which was computed only for the token that is read."""
        if not isinstance(self._method, LayerMethod):
            raise SelectionError(
                f"the model computes its last layer {top.name!r} only for the token that it reads, which "
                f"{self._method!r} does not support. Pass query= for the selected layers, or use a method with a step "
                "for each layer (rollout, relevance)."
            )
        return [*layers, OneRowMap(top)]


def _shown(value: Any) -> str:
    """Return a short repr of a value: the name of a module or a callable."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Method) or not callable(value):
        return repr(value)
    return str(getattr(value, "__name__", type(value).__name__))
