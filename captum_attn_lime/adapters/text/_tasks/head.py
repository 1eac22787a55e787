"""`Head`: what differs between tasks: options of the call, reading of the output, class names."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor, nn

from captum_attn_lime.adapters._model_config import configured_class_names
from captum_attn_lime.adapters._outputs import as_logits
from captum_attn_lime.adapters.text._tasks.find import Task, check_task, find_task, unpacked
from captum_attn_lime.adapters.text._tasks.next_token import at_last_token, keep_last, last_positions
from captum_attn_lime.adapters.text._tasks.spans import span_logits
from captum_attn_lime.adapters.text._tasks.tokens import token_logits
from captum_attn_lime.errors import ForwardError, InputError


class Head:
    """The head of a model.

    Args:
        model: The model.
        task: What it predicts; None to find it from the model's class.

    Attributes:
        task: What it predicts.
    """

    def __init__(self, model: nn.Module, task: Any = None) -> None:
        self.task: Task = find_task(model) if task is None else check_task(task)

    def options(self, model: nn.Module, tokens: Tensor, mask: Tensor | None) -> dict[str, int]:
        """Return further arguments of the model's call."""
        if self.task != "next_token":
            return {}
        return keep_last(model, last_positions(tokens, mask), tokens.shape[1])

    def read(self, output: Any, tokens: Tensor, mask: Tensor | None, name: str) -> Tensor:
        """Return the forward function's result.

        Args:
            output: What the model returned.
            tokens: Its input, token ids (n, N) or embeddings (n, N, D).
            mask: 1 at real tokens (n, N); None if all are.
            name: The model's name, for messages.

        Raises:
            ForwardError: The model did not return what its task needs.
        """
        output = unpacked(output, name)
        try:
            return self._read(output, tokens, mask, name)
        except ForwardError as error:
            raise ForwardError(
                f"{error} The adapter's task is {self.task!r}; if the model has another one, pass task= "
                f"({', '.join(map(repr, get_args(Task)))})."
            ) from None

    def _read(self, output: Any, tokens: Tensor, mask: Tensor | None, name: str) -> Tensor:
        n, length = tokens.shape[:2]
        if self.task == "tokens":
            return token_logits(output, n, length, name)
        if self.task == "spans":
            return span_logits(output, n, length, name)
        if self.task == "next_token":
            return at_last_token(output, last_positions(tokens, mask), length, name)
        return as_logits(output, n, name)

    def class_names(self, model: nn.Module) -> tuple[str, ...] | None:
        """Return the names of the classes; None if there are none, or if they are the vocabulary's tokens."""
        if self.task == "spans":
            return ("start", "end")
        return None if self.is_over_vocabulary(model) else configured_class_names(model)

    def is_over_vocabulary(self, model: nn.Module) -> bool:
        """Return whether the classes are the tokens of the vocabulary."""
        if self.task != "tokens":
            return self.task == "next_token"
        get = getattr(model, "get_output_embeddings", None)
        return callable(get) and get() is not None

    def check_one_row(self, name: str) -> None:
        """Raise InputError if the task is ``"tokens"`` or ``"spans"``, which have no single row per text."""
        if self.task in ("tokens", "spans"):
            place = "(position, class)" if self.task == "tokens" else "(position, 0 for start or 1 for end)"
            raise InputError(
                f"{name} predicts for each token (task={self.task!r}), so a text has no single row of classes, and "
                "tokens move when words are deleted. Mask words in place instead: x = adapter.encode(text), then "
                f"LimeText(adapter).attribute(..., target={place}); x.find(word) gives positions."
            )
