"""Copies of an encoded text: its features left out, or replaced or hidden where they stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._explained import Explained
from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import InputError
from captum_attn_lime.perturb._asking import Answers
from captum_attn_lime.perturb._cells import Cells, PerturbedTokens
from captum_attn_lime.perturb._perturbed import Perturbed
from captum_attn_lime.perturb._tensors import PerturbedTensors, Removable

Removal = Literal["delete", "mask", "pad", "attention"]


def perturbed_text(
    answers: Answers,
    tensors: tuple[Tensor, ...],
    features: Tensor,
    names: tuple[str, ...],
    explained: Explained,
    *,
    removal: Removal | Tensor,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Perturbed:
    """Return one encoded text whose features can be taken out.

    Args:
        answers: What a ``TextAdapter`` is asked.
        tensors: The ids and further arguments, each (1, N).
        features: The feature of each token, (1, N); tokens of a later feature than there are names always stay.
        names: The features' names.
        explained: The number that is asked for.
        removal: What becomes of the tokens of removed features; or what replaces each of them, (1, N).
        batch_size: Number of copies that run at once; by default what the adapter's ``batch_tokens`` allow.
        show_progress: Show a bar over the distinct copies.

    Raises:
        InputError: The model or the text does not allow this removal.
    """
    adapter: TextAdapter = answers.adapter
    if isinstance(removal, str) and removal not in get_args(Removal):
        known = ", ".join(map(repr, get_args(Removal)))
        raise InputError(f"removal must be 'baseline' or one of {known} for texts, but is {removal!r}.")
    ids, *further = tensors
    if isinstance(removal, str) and removal == "delete":
        adapter.check_one_row()
        cells = cells_of(adapter, tensors, features, len(names))
        return PerturbedTokens(
            names,
            explained,
            adapter=adapter,
            cells=cells,
            ask=answers,
            batch_size=batch_size,
            show_progress=show_progress,
        )
    if isinstance(removal, Tensor):
        base = (removal, *further)
    elif removal == "attention":
        k = _place_of_mask(adapter, tensors, features < len(names))
        base = (*tensors[:k], torch.zeros_like(tensors[k]), *tensors[k + 1 :])
        answers = replace(answers, padding=adapter.spare_padding(ids[0].tolist()))
    else:
        base = (torch.full_like(ids, adapter.pad_id if removal == "pad" else adapter.mask_id), *further)
    return PerturbedTensors(
        names,
        explained,
        example=Removable(tensors, base, (features,) * len(tensors)),
        ask=answers,
        batch_size=max(1, adapter.tokens_at_once(ids.shape[1]) // ids.shape[1]) if batch_size is None else batch_size,
        noun="text",
        show_progress=show_progress,
    )


def cells_of(adapter: TextAdapter, tensors: tuple[Tensor, ...], features: Tensor, n_features: int) -> Cells:
    """Return the tokens of one encoded text, its padding left out.

    Args:
        adapter: The adapter.
        tensors: The ids and further arguments, each (1, N).
        features: The feature of each token, (1, N).
        n_features: Number of features; tokens of a later one always stay.
    """
    named = dict(zip(("input_ids", *adapter.argument_names), (x[0].cpu().numpy() for x in tensors), strict=False))
    real = named.get("attention_mask", np.ones(tensors[0].shape[1])) != 0
    types = named.get("token_type_ids")
    return Cells(
        named["input_ids"][real].astype(np.int64),
        None if types is None else types[real].astype(np.int64),
        features[0].clamp(max=n_features).cpu().numpy()[real].astype(np.int64),
        n_features,
    )


def _place_of_mask(adapter: TextAdapter, tensors: tuple[Tensor, ...], is_feature: Tensor) -> int:
    """Return which of the tensors is the attention mask.

    Raises:
        InputError: There is none, or it would hide all tokens.
    """
    names = ("input_ids", *adapter.argument_names)
    if "attention_mask" not in names:
        raise InputError(
            f"removal='attention' hides tokens by the attention mask, which {type(adapter.model).__name__} does not "
            "take; use removal='mask', 'pad' or 'delete'."
        )
    place = names.index("attention_mask")
    if bool((is_feature | (tensors[place] == 0)).all()):
        raise InputError(
            "removal='attention' would hide every token of this text, and a model that sees none gives no meaningful "
            "answer: its tokenizer adds no special token, and all tokens are of units. Use removal='mask' or 'pad'."
        )
    return place
