"""What `LimeText.explain` perturbs: a text, or one text of a pair, and what it asks the model about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from captum_attn_lime.errors import InputError
from captum_attn_lime.lime.base import Array

Output = Literal["probability", "logits"]
Segment = Literal["first", "second"]
# Of two columns lime explains the second one by default.
_OF_TOKEN = 1


@dataclass(frozen=True)
class Subject:
    """One text and the model's answers to its perturbed copies.

    Attributes:
        adapter: The adapter.
        seen: What the model sees, after truncation: a text or a pair.
        segment: Which text of a pair is perturbed; None for a single text.
        output: What the model is asked for.
        show_progress: Whether to show a bar.
        token: The token id that is asked about, of a model whose classes are the vocabulary; else None.
    """

    adapter: Any
    seen: str | tuple[str, str]
    segment: Segment | None
    output: Output
    show_progress: bool
    token: int | None = None

    @property
    def text(self) -> str:
        """The text that is perturbed."""
        if isinstance(self.seen, str):
            return self.seen
        return self.seen[0 if self.segment == "first" else 1]

    @property
    def is_next_token(self) -> bool:
        """Whether the classes are a whole vocabulary."""
        return getattr(self.adapter, "task", None) == "next_token"

    def about(self, token: int) -> Subject:
        """Return the same subject, asked about one token against all others."""
        return replace(self, token=token)

    def label(self, target: int) -> int:
        """Return lime's label of the explained class."""
        return target if self.token is None else _OF_TOKEN

    def names(self, given: Sequence[str] | None) -> list[str] | None:
        """Return the names of lime's classes."""
        if self.token is not None:
            return ["any other token", str(self.adapter.class_name(self.token))]
        names = self.adapter.class_names if given is None else given
        return None if names is None else list(names)

    def scores(self, texts: Sequence[str]) -> Array:
        """Return lime's classifier function, with one column per class also for a single logit."""
        items: list[Any] = list(texts)
        if not isinstance(self.seen, str):
            first, second = self.seen
            items = [(text, second) if self.segment == "first" else (first, text) for text in texts]
        function = self.adapter.predict_proba if self.output == "probability" else self.adapter.logits
        options = {} if self.token is None else {"target": self.token}
        # The one text whose class is looked up needs no bar.
        found: Array = function(items, show_progress=self.show_progress and len(items) > 1, **options)
        if found.shape[1] > 1:
            return found
        return np.concatenate([1 - found if self.output == "probability" else -found, found], axis=1)

    def mark(self, explanation: Any, target: int) -> Any:
        """Return the explanation with a note of what it explains, for :func:`compare` and :func:`word_weights`."""
        explanation.explained_text = self.seen
        if self.segment is not None:
            explanation.explained_segment = self.segment
        if self.token is not None:
            explanation.explained_target = target
        return explanation


def subject_of(
    forward_func: Callable[..., Any], raw: Any, segment: Segment | None, output: Output, *, show_progress: bool
) -> Subject:
    """Return what is perturbed.

    Raises:
        InputError: The forward function takes no texts, or the text and the segment do not go together.
    """
    if not all(hasattr(forward_func, name) for name in ("encode", "predict_proba", "logits")):
        raise InputError(
            f"explain needs raw texts, which {type(forward_func).__name__} does not take; "
            "make LimeText with a TextAdapter around the model."
        )
    if output not in get_args(Output):
        raise InputError(f"output must be 'probability' or 'logits', but is {output!r}.")
    adapter: Any = forward_func
    is_pair = isinstance(raw, tuple)
    if segment is not None and segment not in get_args(Segment):
        raise InputError(f"segment must be 'first' or 'second', but is {segment!r}.")
    if is_pair and segment is None:
        raise InputError(
            "a pair is explained one text at a time, while the other stays: pass segment= 'first' or 'second'."
        )
    if segment is not None and not is_pair:
        raise InputError(f"segment={segment!r} chooses a text of a pair, but {type(raw).__name__} came; pass a tuple.")
    encoding = adapter.encode(raw) if segment is None else adapter.encode(raw, explain=segment)
    return Subject(adapter, encoding.texts[0], segment, output, show_progress)
