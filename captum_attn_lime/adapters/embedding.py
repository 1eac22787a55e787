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

    It is the one that a HuggingFace model names, if a run of the model comes by it, or else the first ``nn.Embedding``
    that receives the ids: encoder-decoder models name a table that they hold for sharing and never call.

    Raises:
        SelectionError: No module embeds the ids, or the model cannot be run to find out.
    """
    named = _named(model)
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if not embeddings and named is None:
        raise SelectionError(
            f"{type(model).__name__} has no nn.Embedding; give the method the layer that embeds the ids."
        )
    received, called, error = _run(model, binding, [*embeddings, *([] if named is None else [named])], device)
    if named is not None and named in received:
        return named
    if received:  # A failure further on does not matter once the ids have been seen.
        return received[0]
    # A model that pads the ids first (to its window's length) does call the one it names, or failed before it could.
    if named is not None and (named in called or error is not None):
        return named
    if error is not None:
        raise SelectionError(
            f"{type(model).__name__} has {len(embeddings)} nn.Embedding and could not be run on four tokens to see "
            f"which takes the ids ({type(error).__name__}: {error}); give the method the layer that embeds the ids."
        ) from error
    raise SelectionError(
        f"none of the {len(embeddings)} nn.Embedding of {type(model).__name__} receives the token ids as they are; "
        "give the method the layer that embeds the ids."
    )


def _named(model: nn.Module) -> nn.Module | None:
    """Return what a HuggingFace model gives as its input embeddings."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        found = get() if callable(get) else None
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None


def _run(
    model: nn.Module, binding: Binding, candidates: list[nn.Module], device: torch.device
) -> tuple[list[nn.Module], list[nn.Module], Exception | None]:
    """Return which candidates receive the ids in a run, which are called at all, and how the run failed."""
    ids = torch.tensor(_PROBE, device=device)
    received: list[nn.Module] = []
    called: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called.append(module)
        came = next(iter((*args, *kwargs.values())), None)
        if isinstance(came, Tensor) and _same(came, ids):
            received.append(module)

    handles = [m.register_forward_pre_hook(look, with_kwargs=True) for m in dict.fromkeys(candidates)]
    failure = None
    try:
        with evaluating(model), fast_path_off(), torch.no_grad():
            binding.call(model, ids, torch.ones_like(ids), torch.zeros_like(ids))
    except Exception as error:
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    return received, called, failure


def _same(came: Tensor, ids: Tensor) -> bool:
    if came is ids or came.data_ptr() == ids.data_ptr():
        return True
    return came.numel() == ids.numel() and torch.equal(came.reshape(-1).to(ids.dtype), ids.reshape(-1))
