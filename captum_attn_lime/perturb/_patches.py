"""Copies of pictures from their patches: where segments are made of a model's patches, each patch is embedded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from captum_attn_lime.adapters.image._segments import patch_convolution
from captum_attn_lime.perturb._asking import Ask
from captum_attn_lime.perturb._masks import Array, Masks
from captum_attn_lime.perturb._tensors import PerturbedTensors, Removable, cells_of

_TOLERANCE = 1e-5  # of the greatest output: rounding, where a convolution runs over one picture instead of a batch


@dataclass(frozen=True, eq=False, repr=False)
class PerturbedPicture(PerturbedTensors):
    """One picture whose segments are replaced, from its patches where they are made of those.

    Whether the model makes nothing of the pixels but its patches is tried out on the first of several batches; if it
    does, perturbed pictures are made.

    Attributes:
        model: The model whose patches they are.
    """

    model: nn.Module = field(kw_only=True)

    def _batches(self, kept: Masks) -> Iterator[Array]:
        parts = list(self._parts(kept))
        known = KnownPatches.of(self.model, self.example) if len(parts) > 1 else None
        for number, part in enumerate(parts):
            short = None if known is None else known.answers(self.example, part, self.ask)
            if short is not None and number:
                yield short
                continue
            exact = self._asked(part)
            if short is None or not _are_near(short, exact):
                known = None
            yield exact


@dataclass(frozen=True)
class KnownPatches:
    """What a model's first convolution gives for the patches of a picture and of its stand-in.

    The first convolution of a vision transformer looks at each patch alone. So its output for a picture in which some
    patches are replaced is put together from two.

    Attributes:
        weight: The convolution's weight.
        whole: Its output for the picture, (1, D, rows, columns).
        replaced: Its output for the stand-in.
        segment_of: The segment of each patch, (1, rows, columns).
    """

    weight: Tensor
    whole: Tensor
    replaced: Tensor
    segment_of: Tensor

    @classmethod
    def of(cls, model: nn.Module, example: Removable) -> KnownPatches | None:
        """Return the known patches of a picture; None where its segments are not made of the model's patches."""
        x, base, ids = example.inputs[0], example.baselines[0], example.ids[0]
        if len(example.inputs) != 1 or x.dim() != 4 or len(base) != 1 or _is_compiled(model):
            return None
        convolution = patch_convolution(model, x.shape[1])
        if convolution is None:
            return None
        height, width = convolution.kernel_size
        rows, columns = x.shape[2] // height, x.shape[3] // width
        if not rows * columns or not bool((ids[:, :1] == ids).all()):
            return None
        cells = ids[0, 0, : rows * height, : columns * width].reshape(rows, height, columns, width)
        first = cells[:, :1, :, :1]
        if not bool((cells == first).all()):  # a segment begins inside a patch
            return None
        whole, replaced = (convolution(t) for t in (x, base.expand(x.shape)))
        return cls(convolution.weight, whole, replaced, first.reshape(1, rows, columns))

    def answers(self, example: Removable, kept: Tensor, ask: Ask) -> Array | None:
        """Return what is asked about copies, or None where the model does not take the known patches once."""
        n = len(kept)
        kept = kept if n > 1 else kept.expand(2, -1)
        x = example.inputs[0].expand(len(kept), -1, -1, -1)  # which cannot be written into
        patches = cells_of(kept, self.segment_of)[:, None]
        mode = _Known(x, self.weight, torch.where(patches, self.whole, self.replaced))
        try:
            with mode:
                found = ask(x)
        except RuntimeError:  # one picture in the place of many cannot be written into
            return None
        return found[:n] if mode.uses == 1 else None


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


def _are_near(found: Array, exact: Array) -> bool:
    return float(np.abs(found - exact).max()) <= _TOLERANCE * float(np.abs(exact).max())


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
