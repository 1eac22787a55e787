"""One padding id for all perturbed copies of a text, whichever of them share a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_attn_lime.adapters._limits import lacks_padding_token, padding_token
from captum_attn_lime.adapters.text._adapter import TextAdapter
from captum_attn_lime.adapters.text._padding import padded_cells, padding_id, unused_id
from captum_attn_lime.lime._base import Array, TargetScalar
from captum_attn_lime.lime._index_text import Cells
from captum_attn_lime.lime._masked import Removable


def hidden_as_padding(adapter: Any, cells: Cells, run: Callable[..., Array]) -> Callable[..., Array]:
    """Return ``run`` with hidden tokens as padding to models that tell padding by its id.

    Causal classifiers read the last token that is not padding. Of a hidden token they would read what it is itself.
    All copies have the same id in the place of hidden tokens, whichever of them share a batch: models may look at it.

    Args:
        adapter: The ``TextAdapter``.
        cells: The cells of the text, of which some are hidden.
        run: From the tensors of a batch to its numbers.
    """
    own = padding_token(adapter.model)
    if adapter.task != "classification" or (own is None and not lacks_padding_token(adapter.model)):
        return run  # the adapter reads by the mask, or the model knows no padding id
    # Not the model's own: RoBERTa counts positions without it.
    free = unused_id(adapter.model, {own, *cells.ids.tolist()}, first=adapter.mask_id)

    def with_padding(ids: Tensor, *further: Tensor) -> Array:
        with padding_id(adapter.model, free):
            return run(ids.masked_fill(further[cells.hidden or 0] == 0, free), *further)

    return with_padding


def with_steady_padding(
    forward_func: Any, example: Removable, scalar: TargetScalar
) -> tuple[Removable, Callable[[tuple[Tensor, ...]], Array]]:
    """Return an example and what is asked about its copies, with one padding id for all of them.

    An adapter whose padding could be taken for a token chooses another id by what a batch holds. In models that look at
    padding the answer would depend on which copies share a batch.

    Args:
        forward_func: The forward function; only an adapter of texts chooses padding ids.
        example: The example.
        scalar: What is asked about its copies.
    """
    if not isinstance(forward_func, TextAdapter) or forward_func.task != "classification":
        return example, scalar
    own = padding_token(forward_func.model)
    if own is None and not lacks_padding_token(forward_func.model):
        return example, scalar
    adapter, ids, base = forward_func, example.inputs[0], example.baselines[0]
    mask = scalar.args[0] if adapter._binding.mask is not None and scalar.args else None
    if ids.dim() != 2 or ids.is_floating_point():
        return example, scalar  # the adapter says what is wrong
    padded = padded_cells(ids, mask, adapter._ending)
    if not bool(padded.any()):
        return example, scalar
    used = {*ids[~padded].tolist(), *base[~padded].tolist()}
    if own is not None and own not in used:
        return example, scalar
    free = unused_id(adapter.model, used)

    def asked(tensors: tuple[Tensor, ...]) -> Array:
        with padding_id(adapter.model, free):
            return scalar(tensors)

    inputs, bases = ((x.masked_fill(padded, free), *more) for x, *more in (example.inputs, example.baselines))
    return replace(example, inputs=inputs, baselines=bases), asked
