"""Inputs with features taken out: what LimeText asks the forward function about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime._util.progress import Tick
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import by_position, pool
from captum_attn_lime.lime._base import Array
from captum_attn_lime.lime._draws import Masks, distinct


@dataclass(frozen=True)
class Removable:
    """Inputs, what stands in for their removed features, and which features there are to remove.

    Attributes:
        inputs: The inputs, each (B, ...).
        baselines: What replaces removed cells, in the inputs' shapes.
        ids: Feature id of each cell, in the inputs' shapes.
        active: Which features change anything when they are removed, (B, features).
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    ids: tuple[Tensor, ...]
    active: Tensor

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], baselines: Any, feature_mask: TensorOrTuple | None) -> Removable:
        """Return the checked parts of Captum's arguments ``inputs``, ``baselines`` and ``feature_mask``."""
        bases = _expand_baselines(baselines, inputs)
        masks = as_tuple(by_position(inputs) if feature_mask is None else feature_mask)
        changed = tuple((x != b).to(torch.float32) for x, b in zip(inputs, bases, strict=True))
        active = pool(changed, masks) > 0  # pool has checked the masks.
        ids = tuple(m.to(x.device, torch.int64).expand(x.shape) for m, x in zip(masks, inputs, strict=True))
        return cls(inputs, bases, ids, active)

    def example(self, i: int) -> Removable:
        """Return one example of the batch, with the batch dimension kept."""
        row = slice(i, i + 1)
        inputs, baselines, ids = (tuple(t[row] for t in group) for group in (self.inputs, self.baselines, self.ids))
        return Removable(inputs, baselines, ids, self.active[row])

    def keep(self, kept: Tensor) -> Tensor:
        """Return for each copy of a single example which of all features stay, (n, features) bool.

        Args:
            kept: Which of the active features stay, (n, active features) bool.
        """
        keep = torch.ones(len(kept), self.active.shape[1], dtype=torch.bool, device=kept.device)
        keep[:, self.active[0]] = kept
        return keep

    def without(self, kept: Tensor) -> tuple[Tensor, ...]:
        """Return copies of a single example with the cells of removed features replaced, each (n, ...).

        Args:
            kept: For each copy the active features that stay, (n, active features) bool.
        """
        keep = self.keep(kept)
        out = []
        for x, base, ids in zip(self.inputs, self.baselines, self.ids, strict=True):
            own = _once(ids)
            cells = keep.to(x.device)[:, own.reshape(-1)].reshape(len(kept), *own.shape[1:])
            out.append(torch.where(cells, x, base))
        return tuple(out)


@dataclass(frozen=True)
class MaskedExample:
    """A single example as a classifier of masks, for the official explainer.

    Attributes:
        example: The example.
        scalar: What is asked about perturbed copies, (n,) or (n, classes).
        batch: Number of perturbed copies in one forward pass.
        tick: Counts the samples.
    """

    example: Removable
    scalar: Callable[[tuple[Tensor, ...]], Array]
    batch: int
    tick: Tick

    def scores(self, kept: Masks) -> Array:
        """Return the target scalar, (n, 1) or (n, classes), of the example with only these features left in.

        Args:
            kept: Which of the active features stay, (n, active features).
        """
        # Short texts repeat masks often (99 % of 5,000 samples over 5 features): each runs once.
        first, where = distinct(kept)
        values = []
        for start in range(0, len(first), self.batch):
            part = torch.from_numpy(kept[first[start : start + self.batch]]).to(self.example.active.device)
            values.append(self.values(part))
            self.tick(len(part))
        self.tick(len(kept) - len(first))
        return np.asarray(np.concatenate(values)[where].reshape(len(kept), -1), dtype=np.float64)

    def values(self, kept: Tensor) -> Array:
        """Return what is asked about copies with only these active features left in, (n,) or (n, classes)."""
        return self.scalar(self.example.without(kept))


def _once(ids: Tensor) -> Tensor:
    """Return the ids with one entry along dimensions that only repeat them, as a picture's channels do."""
    for dim, stride in enumerate(ids.stride()):
        if stride == 0 and dim:
            ids = ids.narrow(dim, 0, 1)
    return ids


def _expand_baselines(baselines: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return one baseline tensor of the input's shape and dtype per input."""
    given = baselines if isinstance(baselines, tuple) else (baselines,) * (1 if len(inputs) == 1 else 0)
    if baselines is None:
        given = (0,) * len(inputs)
    if len(given) != len(inputs):
        raise InputError(f"baselines must be a tuple with one entry for each of the {len(inputs)} inputs.")
    out = []
    for x, base in zip(inputs, given, strict=True):
        try:
            out.append(torch.as_tensor(base, dtype=x.dtype, device=x.device).expand(x.shape))
        except (RuntimeError, TypeError, ValueError) as error:
            shape = tuple(base.shape) if isinstance(base, Tensor) else repr(base)
            raise InputError(f"baseline {shape} does not fit an input of shape {tuple(x.shape)}.") from error
    return tuple(out)
