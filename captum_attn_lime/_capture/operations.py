"""Torch operations by their effect on tokens: they project, multiply, move or merge tokens, or keep their positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Func = Callable[..., Any]

# The functions that a function mode receives for x.mT and x.T.
MATRIX_TRANSPOSE: Func = Tensor.mT.__get__  # type: ignore[attr-defined]
_TRANSPOSE: Func = Tensor.T.__get__  # type: ignore[attr-defined]


def _named(*names: str) -> set[Func]:
    """Return the functions of these names in torch, torch.nn.functional and Tensor."""
    return {getattr(owner, name) for owner in (torch, F, Tensor) for name in names if hasattr(owner, name)}


# Shifts and padding: after these, the cells of a grid are no longer its tokens in order.
DISORDERS: frozenset[Func] = frozenset({*_named("roll", "flip"), F.pad})

MOVES: frozenset[Func] = DISORDERS | _named(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "split", "chunk", "unbind", "select", "narrow", "__getitem__", "t",
) | {MATRIX_TRANSPOSE}  # fmt: skip

# Operations that keep the token positions of the operand with the same shape.
POINTWISE: frozenset[Func] = frozenset(_named(
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__",
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply", "div", "div_", "__truediv__", "__itruediv__",
    "true_divide", "neg", "__neg__", "exp", "sqrt", "rsqrt", "pow", "clamp", "clamp_",
    "layer_norm", "rms_norm", "group_norm", "batch_norm", "normalize",
    "dropout", "dropout_", "relu", "relu_", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "hardswish",
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "clone", "detach",
))  # fmt: skip

MATMULS: frozenset[Func] = frozenset(_named("matmul", "__matmul__"))

# Operations that merge neighbouring tokens into new ones, in the same order; joins do so along the channels only.
MERGES: frozenset[Func] = frozenset(_named(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "max_pool1d", "max_pool2d", "avg_pool1d",
    "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "upsample",
    "pixel_shuffle", "pixel_unshuffle",
))  # fmt: skip
JOINS: frozenset[Func] = frozenset(_named("cat", "concat", "concatenate"))

PROJECTIONS: frozenset[Func] = frozenset({F.linear, torch.conv1d, torch.conv2d, torch.addmm})
# Token ids select rows and are not computed from other tokens, so that lookups start a new lineage.
LOOKUPS: frozenset[Func] = frozenset({F.embedding, torch.embedding})
# Operations that assemble keys after their projection: concatenation, or writing into a buffer with other keys.
WRITES: frozenset[Func] = frozenset(
    {
        Tensor.__setitem__,
        Tensor.copy_,
        Tensor.index_copy_,
        Tensor.index_put_,
        Tensor.scatter_,
    }
)
ASSEMBLES: frozenset[Func] = WRITES | {
    torch.cat,
    torch.concat,
    torch.concatenate,
    torch.index_copy,
    Tensor.index_copy,
    torch.slice_scatter,
    Tensor.slice_scatter,
}
PRODUCTS: frozenset[Func] = frozenset(
    {
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        torch.bmm,
        Tensor.bmm,
        torch.einsum,
        torch.baddbmm,
        Tensor.baddbmm,
        torch.tensordot,
    }
)
SPLITS: frozenset[Func] = frozenset({torch.split, Tensor.split, torch.chunk, Tensor.chunk})
RESHAPES: frozenset[Func] = frozenset({Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten})
SAME_TOKENS: frozenset[Func] = RESHAPES | {
    Tensor.transpose,
    torch.transpose,
    Tensor.swapaxes,
    MATRIX_TRANSPOSE,
    _TRANSPOSE,
    Tensor.permute,
    torch.permute,
    Tensor.contiguous,
    Tensor.unsqueeze,
    torch.unsqueeze,
    Tensor.to,
    Tensor.float,
}
# Operations that may return a view of a part of a tensor.
VIEWS: frozenset[Func] = SAME_TOKENS | {
    Tensor.__getitem__,
    Tensor.narrow,
    torch.narrow,
    Tensor.unflatten,
    Tensor.unsqueeze,
    Tensor.squeeze,
    Tensor.expand,
    Tensor.detach,
}
