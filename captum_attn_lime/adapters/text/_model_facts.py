"""`ModelFacts`: facts about a text model found by running it, discarded when the model changes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._util.warn import warn
from captum_attn_lime.adapters._state import fast_path_off, probing
from captum_attn_lime.adapters._wrappers import parameters_of
from captum_attn_lime.adapters.text._batch_effects import (
    Array,
    Batching,
    Epsilon,
    RunRows,
    Side,
    find_batching,
    others_change_output,
    precision,
    shortened,
)
from captum_attn_lime.adapters.text._binding import Binding, unused_parameters
from captum_attn_lime.adapters.text._embedding import EmbeddingSearch, probe_ids
from captum_attn_lime.adapters.text._fingerprint import fingerprint
from captum_attn_lime.adapters.text._tokenize import PlainIds
from captum_attn_lime.errors import ForwardError, InputError, PaddingWarning, SelectionError

# Greatest number of tokens of a text in a probing run.
_FEW = 64
# Width to which a shorter text is padded if there is no longer one.
_LEAST = 6


class ModelFacts:
    """How a model takes text, which layer embeds its ids, and which texts may share a batch.

    Args:
        ways: The ways in which the model may take text, the likeliest first.
        side: The side on which the tokenizer pads.

    Attributes:
        binding: The way that runs.
    """

    def __init__(self, ways: Sequence[Binding], side: Side) -> None:
        self._ways = tuple(ways)
        self._tokenizer_side: Side = side
        self._fingerprint: Any = None
        self.binding = self._ways[0]
        self._embedding: nn.Module | None = None
        self._no_embedding: str | None = None
        self._error_message: str | None = None
        self._others_matter: bool | None = None
        self._padding: dict[int, Batching] = {}
        self._has_warned = False

    @property
    def is_alone(self) -> bool:
        """Whether other texts in its batch change a text's output."""
        return bool(self._others_matter)

    def probe(self, adapter: Any, row: Any) -> None:
        """Run the model on a text, if it is new or has changed since the last call.

        Args:
            adapter: The ``TextAdapter``.
            row: The tokens of a text.
        """
        if fingerprint(adapter.model) == self._fingerprint:
            return
        self._padding, self._others_matter, self._error_message = {}, None, None
        row = shortened(row, _FEW)
        ids = torch.tensor([probe_ids(adapter.model, row.ids)], device=adapter.device)
        types = None
        if adapter._tokenizing.types:
            fits = row.types is not None and len(row.types) == ids.shape[1]
            types = torch.tensor([row.types if fits else (0,) * ids.shape[1]], device=adapter.device)
        search = EmbeddingSearch(adapter.model)
        failures = []
        for way in self._ways:
            with probing(adapter.model) as model, fast_path_off():
                failure = search.watch(ids, lambda: way.call(model, ids, torch.ones_like(ids), types))  # noqa: B023
            if failure is None:
                self.binding = way
                break
            failures.append(failure)
        try:
            self._embedding, self._no_embedding = search.found(), None
        except SelectionError as error:
            self._embedding, self._no_embedding = None, str(error)
        if len(failures) == len(self._ways) > 1:
            self._error_message = _no_way(adapter.model, failures[0])
        elif failure is None and adapter._tokenizing.gives_types and not adapter._declines_types:
            self._error_message = _lost_types(adapter.model, self.binding, ids, types)
        self._fingerprint = fingerprint(adapter.model)

    def embedding(self, adapter: Any) -> nn.Module:
        """Return the layer that embeds the ids.

        Raises:
            SelectionError: It cannot be found.
        """
        if self._embedding is None or not any(m is self._embedding for m in adapter.model.modules()):
            self._fingerprint = None if self._embedding is not None else self._fingerprint
            self.probe(adapter, PlainIds(()))
        if self._embedding is None:
            raise SelectionError(str(self._no_embedding))
        return self._embedding

    def check(self) -> None:
        """Raise if the model cannot be run, or loses token types.

        Raises:
            ForwardError: No way of passing a text runs, or token types are lost.
        """
        if self._error_message is not None:
            raise ForwardError(self._error_message)

    def batching(self, adapter: Any, rows: Sequence[Any], width: int | None = None) -> Batching:
        """Return how these rows may share batches; call :meth:`probe` first. Results are cached.

        Args:
            adapter: The ``TextAdapter``.
            rows: The tokens of some texts.
            width: The number of tokens to which they are padded; by default the longest row's.

        Warns:
            PaddingWarning: Once, if padding changes the model's output.
        """
        seeds = count()
        dtypes = [p.dtype for p in adapter.model.parameters()]

        def run(some: Sequence[PlainIds], side: Side, width: int) -> list[Array]:
            with probing(adapter.model):
                ids, further = adapter._tensors(some, width, side)
                # A new random state each time, or a random model would look deterministic.
                torch.manual_seed(next(seeds))
                np.random.seed(next(seeds))  # noqa: NPY002
                output = adapter(ids, *further)
            dtypes.append(output.dtype)
            return _by_row(output, some, side)

        def epsilon() -> float:
            return precision(*dtypes)

        if self.binding.mask is None:
            found = Batching(None, self._others_change(run, rows, epsilon))
        else:
            found = self._padded(run, rows, width, epsilon, adapter.batch_tokens)
        self._warn(adapter.model, found)
        return found

    def _padded(self, run: RunRows, rows: Sequence[Any], width: int | None, epsilon: Epsilon, budget: int) -> Batching:
        """Return how rows may share batches, for a model that takes a mask."""
        longest = max(len(row.ids) for row in rows)
        width = longest if width is None else max(width, longest)
        if all(len(row.ids) == width for row in rows):  # no padding needed now
            rows = [shortened(rows[0], _FEW)]
            width = max(len(rows[0].ids), _LEAST)
        kind = max(width, _FEW).bit_length()
        if kind in self._padding:
            return self._padding[kind]
        found, is_certain = find_batching(run, rows, width, self._tokenizer_side, epsilon, budget=budget)
        if found.side is None:
            found = Batching(None, self._others_change(run, rows, epsilon))
        if is_certain:
            self._padding[kind] = found
        return found

    def _others_change(self, run: RunRows, rows: Sequence[Any], epsilon: Epsilon) -> bool:
        if self._others_matter is None:
            self._others_matter = others_change_output(run, shortened(rows[0], _FEW), epsilon)
        return self._others_matter

    def _warn(self, model: nn.Module, found: Batching) -> None:
        """Warn once that a model's texts cannot share batches."""
        if self._has_warned or (not found.alone and (found.side is not None or self.binding.mask is None)):
            return
        self._has_warned = True
        why = "with the other texts of its batch" if found.alone else "with padding, though it takes a mask"
        how = "one at a time" if found.alone else "without padding, equal lengths together"
        warn(
            f"{type(model).__name__}'s output for a text changes {why}. Texts run {how}, so that each gets the output "
            "that it gets alone; this is slower.",
            PaddingWarning,
        )


def check_one_batch(model: nn.Module, binding: Binding, rows: Sequence[Any], batching: Batching) -> None:
    """Raise if rows cannot share a batch.

    Raises:
        InputError: Their outputs would differ from those they get alone.
    """
    lengths = [len(row.ids) for row in rows]
    if len(rows) == 1 or not (batching.alone or (batching.side is None and len(set(lengths)) > 1)):
        return
    why = "takes no mask" if binding.mask is None else "reads padding, though it takes a mask"
    raise InputError(
        f"the texts have {', '.join(map(str, lengths))} tokens and {type(model).__name__} "
        f"{'depends on what else is in its batch' if batching.alone else why}, so they cannot share a batch; "
        "encode them one at a time, or fix the model's forward (an attention_mask that hides padding from the output)."
    )


def _by_row(output: Tensor, rows: Sequence[Any], side: Side) -> list[Array]:
    """Return a model's output for each row, (1, C), or (N, C) for its real tokens if it predicts for each token."""
    values = np.asarray(output.detach().to(device="cpu", dtype=torch.float64).numpy())
    if values.ndim == 2:
        return [row[None] for row in values]
    lengths = [len(row.ids) for row in rows]
    return [v[:n] if side == "right" else v[len(v) - n :] for v, n in zip(values, lengths, strict=True)]


def _no_way(model: nn.Module, error: Exception) -> str:
    return (
        f"{type(model).__name__}.forward did not run on token ids, neither by name, by position nor as a dictionary "
        f"({type(error).__name__}: {error}); give its parameters roles with forward_names= (roles: "
        "input_ids, attention_mask, padding_mask, token_type_ids), or name them so in forward's signature."
    )


def _lost_types(model: nn.Module, binding: Binding, ids: Tensor, types: Tensor | None) -> str | None:
    """Return an error message if a part of the model takes token types, but changing them has no effect."""
    takers = [m for m in model.modules() if "token_type_ids" in parameters_of(m)]
    rest = [] if binding.types is not None else unused_parameters(model, binding)
    if not takers or not (binding.may_lose or rest):
        return None
    outputs: list[list[Tensor]] = []
    try:
        for kind in () if types is None or binding.types is None else (types, 1 - types.clamp(max=1)):
            with probing(model) as probed, fast_path_off():
                outputs.append(_tensors_in(binding.call(probed, ids, torch.ones_like(ids), kind)))
    except Exception:
        return None  # the model has a single token type
    if len(outputs) == 2 and not all(torch.equal(a, b) for a, b in zip(*outputs, strict=True)):
        return None
    return (
        f"{type(takers[0]).__name__} in {type(model).__name__} takes token types, and the tokenizer returns them, but "
        f"{type(model).__name__}.forward does not pass them on; name the parameter that takes them with "
        "forward_names={'token_type_ids': ...}, or leave them out with forward_names={'token_type_ids': None}."
    )


def _tensors_in(output: Any) -> list[Tensor]:
    """Return the floating tensors in a model's output; ids, masks and types that it returns do not count."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output
    return [x for v in values if isinstance(v, (Tensor, dict, list, tuple)) for x in _tensors_in(v)]
