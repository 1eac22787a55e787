"""Perturbs an encoded text: deletes its features, or replaces or hides them in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._explained import Explained
from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import InputError
from captum_attn_lime.perturb._model_outputs import AdapterScorer
from captum_attn_lime.perturb._perturbed import Perturbed
from captum_attn_lime.perturb._tensors import MaskedInputs, PerturbedTensors
from captum_attn_lime.perturb._token_deletion import PerturbedTokens, TextTokens

Removal = Literal["delete", "mask", "pad", "attention"]


def perturbed_text(
    scorer: AdapterScorer,
    tensors: tuple[Tensor, ...],
    features: Tensor,
    names: tuple[str, ...],
    explained: Explained,
    *,
    removal: Removal | Tensor,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Perturbed:
    """Return one encoded text whose features can be removed.

    Args:
        scorer: Scores batches with a ``TextAdapter``.
        tensors: The ids and further arguments, each (1, N).
        features: The feature of each token, (1, N); tokens of features without a name are always kept.
        names: The features' names.
        explained: The explained number.
        removal: How tokens of removed features are removed, or the tokens that replace them, (1, N).
        batch_size: Number of copies in one forward pass; by default what the adapter's ``batch_tokens`` allows.
        show_progress: Show a progress bar over the distinct copies.

    Raises:
        InputError: The model or the text does not support this removal.
    """
    adapter: TextAdapter = scorer.adapter
    if isinstance(removal, str) and removal not in get_args(Removal):
        known = ", ".join(map(repr, get_args(Removal)))
        raise InputError(f"removal must be 'baseline' or one of {known} for texts, but is {removal!r}.")
    ids, *further = tensors
    if isinstance(removal, str) and removal == "delete":
        adapter.check_one_row()
        tokens = text_tokens(adapter, tensors, features, len(names))
        return PerturbedTokens(
            names,
            explained,
            adapter=adapter,
            tokens=tokens,
            score_batch=scorer,
            batch_size=batch_size,
            show_progress=show_progress,
        )
    if isinstance(removal, Tensor):
        base = (removal, *further)
    elif removal == "attention":
        k = _mask_position(adapter, tensors, features < len(names))
        base = (*tensors[:k], torch.zeros_like(tensors[k]), *tensors[k + 1 :])
        scorer = replace(scorer, padding=adapter.spare_padding(ids[0].tolist()))
    else:
        base = (torch.full_like(ids, adapter.pad_id if removal == "pad" else adapter.mask_id), *further)
    return PerturbedTensors(
        names,
        explained,
        example=MaskedInputs(tensors, base, (features,) * len(tensors)),
        score_batch=scorer,
        batch_size=max(1, adapter.tokens_at_once(ids.shape[1]) // ids.shape[1]) if batch_size is None else batch_size,
        input_kind="text",
        show_progress=show_progress,
    )


def text_tokens(adapter: TextAdapter, tensors: tuple[Tensor, ...], features: Tensor, n_features: int) -> TextTokens:
    """Return the tokens of one encoded text without padding.

    Args:
        adapter: The adapter.
        tensors: The ids and further arguments, each (1, N).
        features: The feature of each token, (1, N).
        n_features: Number of features; tokens of later ones are always kept.
    """
    named = dict(zip(("input_ids", *adapter.argument_names), (x[0].cpu().numpy() for x in tensors), strict=False))
    real = named.get("attention_mask", np.ones(tensors[0].shape[1])) != 0
    types = named.get("token_type_ids")
    return TextTokens(
        named["input_ids"][real].astype(np.int64),
        None if types is None else types[real].astype(np.int64),
        features[0].clamp(max=n_features).cpu().numpy()[real].astype(np.int64),
        n_features,
    )


def _mask_position(adapter: TextAdapter, tensors: tuple[Tensor, ...], is_feature: Tensor) -> int:
    """Return the index of the attention mask among the tensors.

    Raises:
        InputError: There is none, or it would hide all tokens.
    """
    names = ("input_ids", *adapter.argument_names)
    if "attention_mask" not in names:
        raise InputError(
            f"removal='attention' hides tokens with the attention mask, which {type(adapter.model).__name__} does not "
            "accept; use removal='mask', 'pad' or 'delete'."
        )
    place = names.index("attention_mask")
    if bool((is_feature | (tensors[place] == 0)).all()):
        raise InputError(
            "removal='attention' would hide every token of this text, because its tokenizer adds no special tokens, "
            "and a model that sees no token has no meaningful output; use removal='mask' or 'pad'."
        )
    return place
