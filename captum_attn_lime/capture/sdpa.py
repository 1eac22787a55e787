"""The fused seam: `torch.nn.functional.scaled_dot_product_attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_attn_lime.attention import ScoreMap
from captum_attn_lime.attention.map import AttentionKind
from captum_attn_lime.capture.recorder import Recorder, kind_of
from captum_attn_lime.errors import UnreadableAttentionError

_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def scaled_dot_product_attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the fused kernel as the model asked for it and record its query, key and mask."""
    output = recorder.run(func, args, kwargs)
    given = {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
    kind = kind_of(recorder.provenance.same_source(given["query"], given["key"]))
    return record_scores(recorder, output, given, kind)


def record_scores(
    recorder: Recorder,
    output: Tensor,
    given: dict[str, Any],
    kind: AttentionKind,
    masks: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """Record a call by its arguments and return the output to go on with.

    Args:
        recorder: The capture.
        output: The call's output, (B, H, Q, d) or (B, Q, d).
        given: The call's arguments by name; ``tokens`` where the query does not tell its lineage itself.
        kind: Kind of the call.
        masks: The mask in a form that takes less memory than ``attn_mask``, where the caller has one.
    """
    query, key, value = given["query"], given["key"], given["value"]
    name = recorder.stack.current
    if query.dim() not in (3, 4):
        raise UnreadableAttentionError(
            f"scaled_dot_product_attention in {name!r} was called with a query of shape {tuple(query.shape)}; "
            "(B, H, Q, d) or (B, Q, d) is needed to tell heads from examples."
        )
    if masks is None:
        mask = given.get("attn_mask")
        masks = () if mask is None else (mask,)
    if query.dim() == 3:
        # One head: (B, Q, K) masks get its dimension too.
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        masks = tuple(m.unsqueeze(1) if m.dim() == 3 else m for m in masks)
    attention = ScoreMap(
        query,
        key,
        masks=masks,
        scale=given.get("scale"),
        is_causal=bool(given.get("is_causal", False)),
        name=name,
        kind=kind,
    )
    return recorder.add(attention, output, _with_heads, value, given.get("tokens", given["query"]))


def _with_heads(output: Tensor) -> Tensor:
    return output.unsqueeze(1) if output.dim() == 3 else output
