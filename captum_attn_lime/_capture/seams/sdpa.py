"""The fused seam: `torch.nn.functional.scaled_dot_product_attention`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attn_lime._capture.layout import unfolding
from captum_attn_lime._capture.recorder import Recorder, RowView, kind_of
from captum_attn_lime.attention import AttentionKind, ScoreMap
from captum_attn_lime.errors import UnreadableAttentionError

_FLASH = 1  # torch.nn.attention.SDPBackend.FLASH_ATTENTION
_ORDINARY = (Tensor, torch.nn.Parameter)
_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def scaled_dot_product_attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the fused kernel as the model called it, and record its query, key and mask."""
    given = {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
    output, given["log_sums"] = attend(recorder, func, args, kwargs, given)
    query, key = given["query"], given["key"]
    # One query for everything, since each costs the same when replayed.
    found: _Call = recorder.trace.ask("sdpa", partial(_ask, recorder), query, key, given["value"])
    recorder.read.add(found.pair)
    given.update(tokens=query, sources=key, name=found.name)
    if found.is_buffer:
        given["key"] = key.clone()  # the next generation step writes into the cache
    if (packed := found.packed_heads) > 1 and query.shape[1] == key.shape[1]:
        given.update(query=_unpacked(query, packed), attn_mask=_unpacked(given.get("attn_mask"), packed), log_sums=None)
    return record_scores(recorder, output, given, found.kind)


class _Call(NamedTuple):
    """The facts about a call's tensors."""

    kind: AttentionKind
    name: str
    pair: tuple[int, int]
    is_buffer: bool
    packed_heads: int


def _ask(recorder: Recorder, query: Tensor, key: Tensor, value: Tensor) -> _Call:
    provenance = recorder.trace.provenance
    is_pool = query.shape[-2] == 1 and provenance.is_learned(query)
    kind = kind_of(None if is_pool else provenance.same_source(query, key), pooled=is_pool)
    if recorder.trace.places.mixes_channels(value, -2):
        kind = "channel"
    pair, is_buffer = provenance.pair(query, key), provenance.is_buffer(key)
    return _Call(kind, recorder.stack.current, pair, is_buffer, provenance.packed_heads(query))


def attend(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return the call's output, and the log-sum-exp of its scores (B, H, Q) if the kernel returns it.

    If torch would use the fused CPU kernel, the kernel is called directly, with bitwise the same output, because it
    returns the log-sums that the call discards.
    """
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    is_causal, gqa = bool(given.get("is_causal")), bool(given.get("enable_gqa"))
    is_torchs_own = func is F.scaled_dot_product_attention
    if not is_torchs_own or not _takes_fused_kernel(
        query, key, value, mask, given.get("dropout_p") or 0.0, is_causal, gqa
    ):
        return recorder.run(func, args, kwargs), None
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    options = {"attn_mask": mask, "scale": given.get("scale")}
    output, sums = recorder.run(kernel, (query, key, value, 0.0, is_causal), options)
    return output, sums.contiguous()


def _takes_fused_kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, is_causal: bool, gqa: bool
) -> bool:
    """Return whether torch would use the fused CPU kernel for a call."""
    if dropout or not query.is_cpu or query.dim() != 4 or (is_causal and mask is not None):
        return False
    for x in (query, key, value) if mask is None else (query, key, value, mask):
        if type(x) not in _ORDINARY or x.layout != torch.strided:
            return False
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        return False  # torch raises for it
    if torch.is_autocast_enabled("cpu") or torch._C._functorch.peek_interpreter_stack() is not None:
        return False  # these change or wrap the call
    heads = key.shape[1]
    if not (gqa or query.shape[1] == heads) or not 0 < heads == value.shape[1]:
        return False
    return bool(torch._fused_sdp_choice(query, key, value, mask, 0.0, is_causal, enable_gqa=gqa) == _FLASH)


def record_scores(
    recorder: Recorder,
    output: Tensor,
    given: dict[str, Any],
    kind: AttentionKind,
    masks: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """Record a call from its arguments, and return the output with which the model continues.

    Args:
        recorder: The capture.
        output: The call's output, (B, H, Q, d) or (B, Q, d).
        given: The call's arguments by name; ``tokens`` and ``sources``, the tensors that identify the query and key
            tokens, if not query and key; ``log_sums`` if the kernel returned them.
        kind: Kind of the call.
        masks: The mask in a form that needs less memory than ``attn_mask``.
    """
    query, key, value = given["query"], given["key"], given["value"]
    recorder.is_random |= bool(given.get("dropout_p"))
    name = given.get("name")
    if name is None:
        name = recorder.module_name
    if query.dim() not in (3, 4):
        raise UnreadableAttentionError(
            f"scaled_dot_product_attention in {name!r} was called with a query of shape {tuple(query.shape)}; "
            "(B, H, Q, d) or (B, Q, d) is needed to distinguish heads from examples."
        )
    if masks is None:
        mask = given.get("attn_mask")
        masks = () if mask is None else (mask,)
    rows: RowView | None = None
    if query.dim() == 3:
        # One head, or heads folded into the batch: (B, Q, K) masks get the heads' dimension too.
        fold = recorder.places.fold(value, recorder.batch) if len(query) == len(key) else None
        rows = _with_a_head if fold is None else unfolding(fold)
        masks = tuple((rows if len(m) == len(query) else _with_a_head)(m) if m.dim() == 3 else m for m in masks)
        query, key, value = rows(query), rows(key), rows(value)
    attention = ScoreMap(
        query,
        key,
        masks=masks,
        scale=given.get("scale"),
        is_causal=bool(given.get("is_causal", False)),
        name=name,
        kind=kind,
        log_sums=given.get("log_sums"),
    )
    tokens, sources = given.get("tokens", given["query"]), given.get("sources", given["key"])
    return recorder.add(attention, output, rows or _as_rows(attention), value, tokens, sources)


def _with_a_head(x: Tensor) -> Tensor:
    return x.unsqueeze(1)


def _unpacked(x: Any, heads: int) -> Any:
    """Return (B, Hk, G, ...) as (B, Hk * G, 1, ...); a mask that all heads share is unchanged."""
    is_packed = isinstance(x, Tensor) and x.dim() == 4 and x.shape[2] == heads
    return x.flatten(1, 2).unsqueeze(2) if is_packed else x


def _as_rows(attention: ScoreMap) -> RowView:
    """Return the function from an output, (B, Q, d) or with packed heads (B, Hk, G, d), to (B, H, Q, d)."""
    _, heads, queries, _ = attention.shape
    return lambda output: output.reshape(len(output), heads, queries, output.shape[-1])
