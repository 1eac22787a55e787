"""Causal language models: the logits of the token after each row's last real one."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._explained import class_index
from captum_attn_lime.adapters._outputs import named_tensor
from captum_attn_lime.adapters._wrappers import parameters_of, wrapper_chain
from captum_attn_lime.errors import ForwardError

# Number of rows over a vocabulary that are converted to float64 at once.
_ROWS = 64


def last_positions(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the position of each row's last real token, (n,), with padding on either side.

    Args:
        tokens: Token ids (n, N), or embeddings (n, N, D).
        mask: 1 at real tokens (n, N); None if all are.

    Example:
        >>> last_positions(torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
        [1, 2]
    """
    n, length = tokens.shape[:2]
    if mask is None:
        return torch.full((n,), length - 1, device=tokens.device)
    places = torch.arange(length, device=tokens.device)
    return ((mask != 0) * places).amax(dim=1)


def keep_last(model: nn.Module, last: Tensor, length: int) -> dict[str, int]:
    """Return the option that limits a model's head to the positions from the first last token on, if it has one.

    The head dominates the cost of a small language model: its output is as wide as the vocabulary.
    """
    *wrappers, inner = wrapper_chain(model)
    if "logits_to_keep" not in parameters_of(inner) or not all(_takes(m, "logits_to_keep") for m in wrappers):
        return {}
    return {"logits_to_keep": length - int(last.min())}


def _takes(model: nn.Module, name: str) -> bool:
    parameters = parameters_of(model)
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def at_last_token(output: Any, last: Tensor, length: int, name: str) -> Tensor:
    """Return a model's output at each row's last real token, (n, vocabulary).

    Args:
        output: What the model returned: logits (n, K, vocabulary) of the last K tokens or of all, or (n, vocabulary).
        last: Position of each row's last real token, (n,).
        length: Number of tokens, N.
        name: The model's name, for the message.

    Raises:
        ForwardError: It holds no such tensor.
    """
    found = named_tensor(output, "logits")
    n = len(last)
    if isinstance(found, Tensor) and found.dim() == 2 and len(found) == n:
        return found
    is_row = isinstance(found, Tensor) and found.dim() == 3 and len(found) == n
    if not is_row or not length - int(last.min()) <= found.shape[1] <= length:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{type(output).__name__} without logits"
        raise ForwardError(
            f"{name} returned {what} for {n} example(s) of {length} tokens; with task='next_token' an adapter needs "
            f"({n}, {length}, vocabulary), or ({n}, vocabulary) for the next token alone."
        )
    places = last - (length - found.shape[1])
    picked: Tensor = found[torch.arange(n, device=found.device), places.to(found.device)]
    return picked


def of_target(logits: Tensor, target: Any, *, probability: bool) -> Any:
    """Return one class's logits or probabilities as a NumPy array (n, 1).

    Raises:
        TargetError: There is no such class.
    """
    target = class_index(target, logits.shape[1])
    values = []
    for part in logits.split(_ROWS):  # type: ignore[no-untyped-call]
        row = part.to(torch.float64)
        values.append((row[:, target] - row.logsumexp(dim=1)).exp() if probability else row[:, target])
    return np.asarray(torch.cat(values)[:, None].cpu().numpy(), dtype=np.float64)
