"""Copies of tensors with features replaced in place, as Captum's perturbation methods make them, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime._util.progress import Tick, progress
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import by_position, pool
from captum_attn_lime.perturb._masks import Array, Ints, Masks
from captum_attn_lime.perturb._model_outputs import BatchScorer
from captum_attn_lime.perturb._perturbed import Perturbed


@dataclass(frozen=True)
class MaskedInputs:
    """Inputs, the features of their cells, and the values that replace removed cells.

    Attributes:
        inputs: The inputs, each (B, ...).
        baselines: Values of removed cells, in the inputs' shapes; for a single example (D, ...), whose score is then
            the mean over D replacements.
        ids: Feature id of each cell, in the inputs' shapes.
        active: Features that change a cell when they are removed, (B, features); None where this is not needed.
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    ids: tuple[Tensor, ...]
    active: Tensor | None = None

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], baselines: Any, feature_mask: TensorOrTuple | None) -> MaskedInputs:
        """Return the checked parts of Captum's arguments ``inputs``, ``baselines`` and ``feature_mask``."""
        bases = _expand_baselines(baselines, inputs)
        masks = as_tuple(by_position(inputs) if feature_mask is None else feature_mask)
        changed = tuple((x != b).to(torch.float32) for x, b in zip(inputs, bases, strict=True))
        active = pool(changed, masks) > 0  # pool checks the masks
        ids = tuple(m.to(x.device, torch.int64).expand(x.shape) for m, x in zip(masks, inputs, strict=True))
        return cls(inputs, bases, ids, active)

    def example(self, i: int) -> MaskedInputs:
        """Return one example of the batch, with the batch dimension kept."""
        row = slice(i, i + 1)
        inputs, baselines, ids = (tuple(t[row] for t in group) for group in (self.inputs, self.baselines, self.ids))
        return MaskedInputs(inputs, baselines, ids, None if self.active is None else self.active[row])

    @property
    def n_features(self) -> int:
        """One more than the largest feature id."""
        return max(int(ids.max()) for ids in self.ids) + 1

    @property
    def n_replacements(self) -> int:
        """The number of replacements of a single example."""
        return len(self.baselines[0])

    def without(self, kept: Tensor) -> tuple[Tensor, ...]:
        """Return copies of a single example with the cells of removed features replaced, each (n * D, ...).

        Args:
            kept: The features that each copy keeps, bool (n, features); cells of later features are always kept.
        """
        n, draws = len(kept), self.n_replacements
        out = []
        for x, base, ids in zip(self.inputs, self.baselines, self.ids, strict=True):
            cells = kept_cells(kept.to(x.device), ids)
            if draws > 1:
                cells, base = cells.repeat_interleave(draws, 0), base.repeat(n, *[1] * (base.dim() - 1))
            out.append(torch.where(cells, x, base))
        return tuple(out)


@dataclass(frozen=True, eq=False, repr=False)
class PerturbedTensors(Perturbed):
    """One example as tensors whose features are replaced in place.

    Attributes:
        example: The example.
        score_batch: Scores a batch of copies.
        batch_size: Number of copies in one forward pass.
    """

    example: MaskedInputs = field(kw_only=True)
    score_batch: BatchScorer = field(kw_only=True)
    batch_size: int = field(kw_only=True)

    @property
    def active(self) -> Ints:
        """The features that change a cell when they are removed, in order."""
        active = self.example.active
        return np.arange(len(self.names)) if active is None else np.flatnonzero(active[0].cpu().numpy())

    def class_scores_of_active(self, kept: Masks, *, tick: Tick | None = None) -> Array:
        """Return :meth:`class_scores` for masks of the active features; all other features are kept.

        Args:
            kept: Which of the active features each copy keeps, (n, active features).
            tick: Called with the number of copies done.
        """
        masks = np.ones((len(kept), len(self.names)), dtype=bool)
        masks[:, self.active] = kept
        return self.class_scores(masks, tick=tick)

    def _run(self, kept: Masks, tick: Tick) -> Array:
        scores: Array = np.empty((0, 0))
        done = 0
        with torch.no_grad(), progress(len(kept), self.show_progress, f"{self.input_kind}s") as bar:
            for values in self._batches(kept):
                if not scores.size:
                    scores = np.empty((len(kept), values.shape[1]))
                scores[done : done + len(values)] = values
                done += len(values)
                bar(len(values))
                tick(len(values))
        return scores

    def _batches(self, kept: Masks) -> Iterator[Array]:
        """Yield the scores batch by batch."""
        for part in self._parts(kept):
            yield self._scores_of(part)

    def _parts(self, kept: Masks) -> Iterator[Tensor]:
        """Yield the masks batch by batch, on the example's device."""
        size = max(1, self.batch_size // self.example.n_replacements)
        for start in range(0, len(kept), size):
            yield torch.from_numpy(kept[start : start + size]).to(self.example.inputs[0].device)

    def _scores_of(self, kept: Tensor) -> Array:
        """Return the scores of copies, (n, columns), each the mean over the replacements."""
        scores = self.score_batch(*self.example.without(kept))
        return np.asarray(scores.reshape(len(kept), self.example.n_replacements, -1).mean(axis=1), dtype=np.float64)


def kept_cells(kept: Tensor, ids: Tensor) -> Tensor:
    """Return the cells of a single example that each copy keeps, (n, ...), broadcastable to the example's shape.

    Args:
        kept: The features that each copy keeps, bool (n, features).
        ids: The feature of each cell, (1, ...); cells of later features are always kept.
    """
    for dim, stride in enumerate(ids.stride()):  # the channels of a picture share their ids
        if stride == 0 and dim:
            ids = ids.narrow(dim, 0, 1)
    always = torch.ones(len(kept), 1, dtype=torch.bool, device=kept.device)
    keep = torch.cat([kept, always], dim=1)
    return keep[:, ids.clamp(max=kept.shape[1]).reshape(-1)].reshape(len(kept), *ids.shape[1:])


def _expand_baselines(baselines: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return one baseline per input, of its shape and dtype."""
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
