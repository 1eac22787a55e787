"""The layer that turns token ids into vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters.binding import Binding
from captum_attn_lime.adapters.state import evaluating, fast_path_off
from captum_attn_lime.errors import SelectionError

# Neither constant nor counting up, so that no type or position embedding is taken for the one of the tokens.
_PROBE = ((1, 0, 1, 1),)


def find_embedding(model: nn.Module, binding: Binding, device: torch.device) -> nn.Module:
    """Return the module that embeds the token ids.

    A HuggingFace model says it itself; else it is the only ``nn.Embedding``, or the first one that receives the ids.

    Raises:
        SelectionError: No module embeds the ids, or the model cannot be run to find out.
    """
    get = getattr(model, "get_input_embeddings", None)
    if callable(get):
        try:
            found = get()
        except (NotImplementedError, AttributeError):
            found = None
        if isinstance(found, nn.Module):
            return found
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if len(embeddings) == 1:
        return embeddings[0]
    if not embeddings:
        raise SelectionError(
            f"{type(model).__name__} has no nn.Embedding; give the method the layer that embeds the ids."
        )
    return _first_with_ids(model, binding, embeddings, device)


def _first_with_ids(
    model: nn.Module, binding: Binding, embeddings: list[nn.Embedding], device: torch.device
) -> nn.Embedding:
    ids = torch.tensor(_PROBE, device=device)
    received: list[nn.Embedding] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        came = args[0] if args else None
        if isinstance(module, nn.Embedding) and isinstance(came, Tensor) and _same(came, ids):
            received.append(module)

    handles = [m.register_forward_pre_hook(look) for m in embeddings]
    try:
        with evaluating(model), fast_path_off(), torch.no_grad():
            binding.call(model, ids, torch.ones_like(ids), torch.zeros_like(ids))
    except Exception as error:
        if not received:  # A failure further on does not matter once the ids have been seen.
            raise SelectionError(
                f"{type(model).__name__} has {len(embeddings)} nn.Embedding and could not be run on four tokens to see "
                f"which takes the ids ({type(error).__name__}: {error}); give the method the layer that embeds the ids."
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not received:
        raise SelectionError(
            f"none of the {len(embeddings)} nn.Embedding of {type(model).__name__} receives the token ids as they are; "
            "give the method the layer that embeds the ids."
        )
    return received[0]


def _same(came: Tensor, ids: Tensor) -> bool:
    if came is ids or came.data_ptr() == ids.data_ptr():
        return True
    return came.numel() == ids.numel() and torch.equal(came.reshape(-1).to(ids.dtype), ids.reshape(-1))
