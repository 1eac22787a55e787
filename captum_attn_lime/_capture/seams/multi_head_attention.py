"""The seam of `torch.nn.MultiheadAttention` and all that is built on it.

`multi_head_attention_forward` is one overridable function, inside which a function mode is off. Its code therefore runs
with the names of its attention functions bound to recording replacements, so the results are those of the same code.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attn_lime._capture.recorder import Recorder
from captum_attn_lime._capture.seams.sdpa import attend, record_scores
from captum_attn_lime.attention import AttentionKind, ScoreMap

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def multi_head_attention_forward(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the function's code with its attention recorded."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    call = _Call(recorder, bound.arguments)
    names = {
        **func.__globals__,
        "has_torch_function": lambda _: False,
        "scaled_dot_product_attention": call.fused,
        "torch": _Torch(call),
    }
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    result = recorder.run(body, args, kwargs)
    if recorder.maps:
        # The projection after the attention is part of the body, which the function mode does not see.
        recorder.provenance.attended(result[0], bound.arguments["query"], len(recorder.maps) - 1)
        recorder.places.lose(result[0])
    return result


class _Torch:
    """Replacement for the torch module in the body, which records the two products of attention."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def baddbmm(self, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return scores with a mask added."""
        self._call.see_scores(query, key, mask)
        return torch.baddbmm(mask, query, key)

    def bmm(self, first: Tensor, second: Tensor) -> Tensor:
        """Return scores the first time, weights times values the second time."""
        if self._call.scores_seen:
            return self._call.attended(first, second)
        self._call.see_scores(first, second, None)
        return torch.bmm(first, second)


class _Call:
    """One call of multi_head_attention_forward: its arguments, and the recording replacements for what it calls."""

    def __init__(self, recorder: Recorder, arguments: dict[str, Any]) -> None:
        self._recorder = recorder
        self._given = arguments
        query, key = arguments["query"], arguments["key"]
        self._batch = query.shape[1] if query.dim() == 3 else 1
        self._heads = int(arguments["num_heads"])
        self._scores: tuple[Tensor, Tensor, tuple[Tensor, ...]] | None = None
        recorder.is_random |= bool(arguments["training"] and arguments["dropout_p"])
        same = recorder.provenance.same_source(query, key)
        self._kind: AttentionKind
        if query is key or same:
            self._kind = "self"
        else:
            is_pool = query.shape[0] == 1 and recorder.provenance.is_learned(query)
            other_tokens = same is False or key.shape[0] != query.shape[0]
            self._kind = "pool" if is_pool else "cross" if other_tokens else "unknown"

    @property
    def scores_seen(self) -> bool:
        """Whether the body has computed its scores explicitly, as it does when it returns the weights."""
        return self._scores is not None

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        """Replace scaled_dot_product_attention."""
        args = (query, key, value, attn_mask, dropout_p, is_causal)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given: dict[str, Any] = dict(zip(names, args, strict=True))
        function = F.scaled_dot_product_attention
        output, given["log_sums"] = attend(self._recorder, function, args, {}, given)
        given["dropout_p"] = 0.0  # recorded already
        given["tokens"], given["sources"] = self._given["query"], self._given["key"]
        masks = self._separate_masks(key.shape[2])
        return record_scores(self._recorder, output, given, self._kind, masks)

    def see_scores(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Store the (already scaled) query (B * H, Q, d), the key (B * H, d, K) and the masks."""
        masks = self._separate_masks(key.shape[-1])
        if masks is None:
            masks = () if mask is None else (self._unfold(mask) if len(mask) > 1 else mask.unsqueeze(0),)
        self._scores = (self._unfold(query), self._unfold(key).transpose(-1, -2), masks)

    def attended(self, weights: Tensor, value: Tensor) -> Tensor:
        """Multiply weights (B * H, Q, K) with values and record the call."""
        output = torch.bmm(weights, value)
        assert self._scores is not None  # the scores come first
        query, key, masks = self._scores
        name = self._recorder.module_name
        attention = ScoreMap(query, key, masks=masks, scale=1.0, name=name, kind=self._kind)
        tokens, sources = self._given["query"], self._given["key"]
        return self._recorder.add(attention, output, self._unfold, self._unfold(value), tokens, sources)

    def _unfold(self, x: Tensor) -> Tensor:
        return x.reshape(self._batch, self._heads, *x.shape[1:])

    def _separate_masks(self, n_keys: int) -> tuple[Tensor, ...] | None:
        """Return the attention mask and the padding mask as two tensors; None if there are not two.

        The body adds them to one (B, H, Q, K) tensor per layer. As two they are (Q, K), shared by all layers, and
        (B, K). Unlike in the fused kernel, True means *not* allowed.
        """
        attn_mask, padding = self._given["attn_mask"], self._given["key_padding_mask"]
        if attn_mask is None or padding is None or attn_mask.shape[-1] != n_keys:
            return None  # at most one mask, or appended columns (bias_kv, zero_attn): use the mask of the body
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.view(-1, self._heads, *attn_mask.shape[1:])
        padding = padding.view(-1, 1, 1, n_keys)
        return tuple(~m if m.dtype == torch.bool else m for m in (attn_mask, padding))
