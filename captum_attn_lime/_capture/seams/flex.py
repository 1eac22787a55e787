"""The flexible seam: `torch.nn.attention.flex_attention`, whose scores and mask are functions of position."""

from __future__ import annotations

from types import CellType, FunctionType
from typing import Any

from torch import Tensor

from captum_attn_lime._capture.recorder import Recorder, kind_of
from captum_attn_lime.attention import ModifiedScoreMap

_PARAMETERS = (
    "query", "key", "value", "score_mod", "block_mask", "scale", "kernel_options", "score_buffers", "mask_buffers",
)  # fmt: skip


def flex_attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the operator, and record its query, key and the functions that modify and mask its scores."""
    output, *statistics = recorder.run(func, args, kwargs)
    given = {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
    score_mod, mask_mod = (_as_now(f) for f in (given["score_mod"], given["block_mask"][-1]))
    query, key = given["query"], given["key"]
    recorder.read.add(recorder.provenance.pair(query, key))
    attention = ModifiedScoreMap(
        query,
        key,
        score_mod=_with(score_mod, given.get("score_buffers", ())),
        mask_mod=_with(mask_mod, given.get("mask_buffers", ())),
        scale=given["scale"],
        name=recorder.module_name,
        kind=kind_of(recorder.provenance.same_source(query, key)),
    )
    return (recorder.add(attention, output, lambda x: x, given["value"], query, key), *statistics)


def _as_now(function: Any) -> Any:
    """Return a copy of a function with the current values of its closure, since loop variables change later.

    Tensors are copied too, since the model may write into them; they are small, a number or a row per position.
    """
    if not isinstance(function, FunctionType) or function.__closure__ is None:
        return function
    cells = []
    for cell in function.__closure__:
        try:
            held = cell.cell_contents
        except ValueError:  # not assigned yet
            cells.append(cell)
            continue
        cells.append(CellType(held.detach().clone() if isinstance(held, Tensor) else _as_now(held)))
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells))
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _with(function: Any, buffers: tuple[Any, ...]) -> Any:
    """Return a function with the tensor arguments after its indices bound."""
    return (lambda *index: function(*index, *buffers)) if buffers else function
