"""The layer that turns token ids into vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime.adapters._wrappers import wrapper_chain
from captum_attn_lime.errors import SelectionError

# Neither constant nor counting up, so that no type or position embedding is mistaken for the token embedding.
PROBE = (1, 0, 1, 1)


def probe_ids(model: nn.Module, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return ids that identify the layer that embeds them: a text's own if possible.

    Equal or consecutive ids look like token types or positions, and ids beyond the table fail.
    """
    steps = {b - a for a, b in pairwise(ids)}
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    named = getattr(_named(model), "num_embeddings", None)
    size = named if isinstance(named, int) else max(tables, default=len(PROBE))
    if not ids or max(ids) >= size:
        return PROBE
    return (*ids, *PROBE) if len(ids) < 3 or steps in ({0}, {1}) else ids


class EmbeddingSearch:
    """Watches runs of a model for the layer that embeds the ids.

    It is a HuggingFace model's input embedding if the run calls it, else the first ``nn.Embedding`` that receives the
    ids: encoder-decoder models declare a shared table that they never call.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._named = _named(model)
        self._embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
        self._received: list[nn.Module] = []
        self._called: list[nn.Module] = []
        self._error: Exception | None = None

    def watch(self, ids: Tensor, run: Callable[[], Any]) -> Exception | None:
        """Run the model on ids, and return the exception, or None."""

        def look(layer: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._called.append(layer)
            received = next(iter((*args, *kwargs.values())), None)
            if isinstance(received, Tensor) and _same(received, ids):
                self._received.append(layer)

        named = [] if self._named is None else [self._named]
        watched = dict.fromkeys([*self._embeddings, *named])
        handles = [m.register_forward_pre_hook(partial(look, m), with_kwargs=True) for m in watched]
        try:
            run()
        except Exception as error:
            self._error = error
            return error
        finally:
            for handle in handles:
                handle.remove()
        self._error = None
        return None

    def found(self) -> nn.Module:
        """Return the layer.

        Raises:
            SelectionError: No module embeds the ids, or the model could not be run to find out.
        """
        name = type(self._model).__name__
        if not self._embeddings and self._named is None:
            raise SelectionError(f"{name} has no nn.Embedding; pass the layer that embeds the ids to the method.")
        if self._named is not None and self._named in self._received:
            return self._named
        if self._received:  # a failure further on does not matter
            return self._received[0]
        # A model may pad the ids first (to a window's length), or fail before it calls its declared embedding.
        if self._named is not None and (self._named in self._called or self._error is not None):
            return self._named
        if self._error is not None:
            raise SelectionError(
                f"{name} has {len(self._embeddings)} nn.Embedding and could not be run to see which takes the ids "
                f"({type(self._error).__name__}: {self._error}); pass the layer that embeds the ids to the method."
            ) from self._error
        raise SelectionError(
            f"none of the {len(self._embeddings)} nn.Embedding of {name} receives the unchanged token ids; "
            "pass the layer that embeds the ids to the method."
        )


def _named(model: nn.Module) -> nn.Module | None:
    """Return the input embeddings of a HuggingFace model, also in a wrapper, or None."""
    for module in wrapper_chain(model):
        get = getattr(module, "get_input_embeddings", None)
        try:
            found = get() if callable(get) else None
        except (NotImplementedError, AttributeError):
            found = None
        if isinstance(found, nn.Module):
            return found
    return None


def _same(received: Tensor, ids: Tensor) -> bool:
    return received.numel() == ids.numel() and torch.equal(received.reshape(-1).to(ids), ids.reshape(-1))
