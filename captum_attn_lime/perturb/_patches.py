"""Perturbed pictures that embed each patch once, where segments consist of a model's patches."""

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
from captum_attn_lime.perturb._masks import Array, Masks
from captum_attn_lime.perturb._model_outputs import BatchScorer
from captum_attn_lime.perturb._tensors import MaskedInputs, PerturbedTensors, kept_cells

_TOLERANCE = 1e-5  # relative to the largest output: a convolution over one picture rounds otherwise than over a batch


@dataclass(frozen=True, eq=False, repr=False)
class PerturbedPicture(PerturbedTensors):
    """One picture whose segments are replaced, in its patch embeddings where segments consist of patches.

    The first of several batches also runs on perturbed pictures. Where the scores differ, the model uses pixels in
    another way too, and all batches run on pictures.

    Attributes:
        model: The model that embeds the patches.
    """

    model: nn.Module = field(kw_only=True)

    def _batches(self, kept: Masks) -> Iterator[Array]:
        parts = list(self._parts(kept))
        patches = PatchEmbeddings.of(self.model, self.example) if len(parts) > 1 else None
        for number, part in enumerate(parts):
            fast = None if patches is None else patches.scores(self.example, part, self.score_batch)
            if fast is not None and number:
                yield fast
                continue
            exact = self._scores_of(part)
            if fast is None or not _are_close(fast, exact):
                patches = None
            yield exact


@dataclass(frozen=True)
class PatchEmbeddings:
    """The patch embeddings of a picture and of its replacement.

    The first convolution of a vision transformer embeds each patch independently, so its output for a picture with
    some patches replaced combines these two outputs.

    Attributes:
        weight: The convolution's weight.
        original: Its output for the picture, (1, D, rows, columns).
        replaced: Its output for the replacement.
        segment_of: The segment of each patch, (1, rows, columns).
    """

    weight: Tensor
    original: Tensor
    replaced: Tensor
    segment_of: Tensor

    @classmethod
    def of(cls, model: nn.Module, example: MaskedInputs) -> PatchEmbeddings | None:
        """Return the patch embeddings of a picture; None where its segments do not consist of the model's patches."""
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
        original, replaced = (convolution(t) for t in (x, base.expand(x.shape)))
        return cls(convolution.weight, original, replaced, first.reshape(1, rows, columns))

    def scores(self, example: MaskedInputs, kept: Tensor, score_batch: BatchScorer) -> Array | None:
        """Return the scores of copies, or None where the model does not embed the picture exactly once."""
        n = len(kept)
        kept = kept if n > 1 else kept.expand(2, -1)
        x = example.inputs[0].expand(len(kept), -1, -1, -1)  # not writable in place
        patches = kept_cells(kept, self.segment_of)[:, None]
        mode = _ReplacedConvolution(x, self.weight, torch.where(patches, self.original, self.replaced))
        try:
            with mode:
                scores = score_batch(x)
        except RuntimeError:  # the model writes into the expanded picture
            return None
        return scores[:n] if mode.uses == 1 else None


class _ReplacedConvolution(TorchFunctionMode):
    """Returns a given output for the convolution of one tensor with one weight.

    The mode is local to its thread and does not change the model.
    """

    def __init__(self, x: Tensor, weight: Tensor, output: Tensor) -> None:
        super().__init__()
        self.x, self.weight, self.output = x, weight, output
        self.uses = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_convolution = func in (torch.conv2d, functional.conv2d) and len(args) > 1
        if is_convolution and args[0] is self.x and args[1] is self.weight:
            self.uses += 1
            return self.output
        return func(*args, **(kwargs or {}))


def _are_close(fast: Array, exact: Array) -> bool:
    return float(np.abs(fast - exact).max()) <= _TOLERANCE * float(np.abs(exact).max())


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
