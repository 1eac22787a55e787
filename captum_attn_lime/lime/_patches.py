"""Masked pictures from their patches: where segments are made of a model's patches, each patch is embedded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from captum_attn_lime.adapters.image._adapter import ImageAdapter
from captum_attn_lime.adapters.image._segments import patch_convolution
from captum_attn_lime.lime._base import Array
from captum_attn_lime.lime._masked import MaskedExample, Removable

_TOLERANCE = 1e-5  # of the greatest output: rounding, where a convolution runs over one picture instead of a batch


class _Known(TorchFunctionMode):
    """While it is on, the convolution of one tensor with one weight gives what is known already.

    Such a mode belongs to its thread and leaves the model as it is.
    """

    def __init__(self, x: Tensor, weight: Tensor, known: Tensor) -> None:
        super().__init__()
        self.x, self.weight, self.known = x, weight, known
        self.uses = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_it = func in (torch.conv2d, functional.conv2d) and len(args) > 1
        if is_it and args[0] is self.x and args[1] is self.weight:
            self.uses += 1
            return self.known
        return func(*args, **(kwargs or {}))


@dataclass
class _Trial:
    """Whether known patches were found to do what masked pictures do; None before it was tried."""

    holds: bool | None = None


@dataclass(frozen=True)
class PatchedExample(MaskedExample):
    """A single picture whose segments are made of patches, as a classifier of masks.

    The first convolution of a vision transformer looks at each patch alone. So its output for a picture in which some
    patches are replaced is put together from two: that of the picture and that of its baseline. Whether the model
    makes nothing else of the pixels is tried out on the first batch; if it does, masked pictures are made.

    Attributes:
        weight: The convolution's weight.
        whole: Its output for the picture, (1, D, rows, columns).
        replaced: Its output for the baseline.
        segment_of: The segment of each patch, (rows * columns,).
    """

    weight: Tensor = field(kw_only=True)
    whole: Tensor = field(kw_only=True)
    replaced: Tensor = field(kw_only=True)
    segment_of: Tensor = field(kw_only=True)
    trial: _Trial = field(default_factory=_Trial, kw_only=True)

    def values(self, kept: Tensor) -> Array:
        """Return what is asked about the picture with only these segments left in, by the shorter way if it holds."""
        if self.trial.holds is False:
            return super().values(kept)
        found = self._from_patches(kept)
        if self.trial.holds and found is not None:
            return found
        exact = super().values(kept)
        near = found is not None and float(np.abs(found - exact).max()) <= _TOLERANCE * float(np.abs(exact).max())
        self.trial.holds = near and self.trial.holds is None
        return exact

    def _from_patches(self, kept: Tensor) -> Array | None:
        """Return what is asked, or None where the model does not take the known patches once."""
        n = len(kept)
        kept = kept if n > 1 else kept.expand(2, -1)
        x = self.example.inputs[0].expand(len(kept), -1, -1, -1)  # which cannot be written into
        patches = self.example.keep(kept)[:, self.segment_of].reshape(-1, 1, *self.whole.shape[2:])
        mode = _Known(x, self.weight, torch.where(patches, self.whole, self.replaced))
        try:
            with mode:
                found = self.scalar((x,))
        except RuntimeError:  # one picture in the place of many cannot be written into
            return None
        return found[:n] if mode.uses == 1 else None


def masked_example(
    forward_func: Callable[..., Any],
    example: Removable,
    scalar: Callable[[tuple[Tensor, ...]], Array],
    batch: int,
    tick: Callable[[int], object],
) -> MaskedExample:
    """Return an example as a classifier of masks, from its patches where that can be.

    Args:
        forward_func: The forward function; only an adapter's model is looked into.
        example: The example.
        scalar: What is asked about perturbed copies.
        batch: Number of perturbed copies in one forward pass.
        tick: Counts the samples.
    """
    plain = MaskedExample(example, scalar, batch, tick)
    if not isinstance(forward_func, ImageAdapter) or len(example.inputs) != 1 or example.inputs[0].dim() != 4:
        return plain
    x, base, ids = example.inputs[0], example.baselines[0], example.ids[0]
    convolution = patch_convolution(forward_func.model, x.shape[1])
    if convolution is None or _is_compiled(forward_func.model):
        return plain
    height, width = convolution.kernel_size
    rows, columns = x.shape[2] // height, x.shape[3] // width
    if not rows * columns or not bool((ids[:, :1] == ids).all()):
        return plain
    cells = ids[0, 0, : rows * height, : columns * width].reshape(rows, height, columns, width)
    first = cells[:, :1, :, :1]
    if not bool((cells == first).all()):  # a segment begins inside a patch
        return plain
    whole, replaced = (convolution(t) for t in (x, base.expand(x.shape)))
    parts = dict(weight=convolution.weight, whole=whole, replaced=replaced, segment_of=first.reshape(-1))
    return PatchedExample(example, scalar, batch, tick, **parts)


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
