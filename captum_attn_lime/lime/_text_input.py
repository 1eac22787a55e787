"""`TextInput`: the text, or one text of a pair, that `LimeText.explain` perturbs, and the model's scores of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch

from captum_attn_lime._explained import Explained, Output, Unit
from captum_attn_lime.adapters import TextAdapter, TextEncoding
from captum_attn_lime.adapters.text._words import Span, Word, word_of_tokens
from captum_attn_lime.errors import InputError, TextError
from captum_attn_lime.lime._base import Array, unit_of
from captum_attn_lime.lime._units import Occurrence, occurrences
from captum_attn_lime.perturb import Perturbed
from captum_attn_lime.perturb._masks import Masks
from captum_attn_lime.perturb._model_outputs import AdapterScorer, adapter_scores
from captum_attn_lime.perturb._text import Removal, perturbed_text, text_tokens
from captum_attn_lime.perturb._token_deletion import DeletedCopies, PerturbedTokens, TextTokens

OneText = Literal["first", "second"]
_OF_TOKEN = 1  # lime's label of a language model's token, of two columns
_ANY_OTHER = "any other token"
# A cycle that contains every pattern of four neighbours.
_CIRCLE = np.array([int(c) for c in "0000100110101111"], dtype=bool)


@dataclass(frozen=True)
class TextInput:
    """One text and the model's scores of its perturbed copies.

    Attributes:
        adapter: The adapter.
        encoding: The text or pair as tokens.
        explained_text: The perturbed text of a pair; None for a single text.
        unit: The unit of the scores.
        show_progress: Whether to show a progress bar.
        token: The explained token id, for models whose classes are the vocabulary; else None.
        make: Makes the perturbed tokens from a scorer and the explained number; None where texts are perturbed.
    """

    adapter: Any
    encoding: Any
    explained_text: OneText | None
    unit: Unit
    show_progress: bool
    token: int | None = None
    make: Callable[[AdapterScorer, Explained], Perturbed] | None = None

    @property
    def seen(self) -> str | tuple[str, str]:
        """The text or pair that the model sees, after truncation."""
        text: str | tuple[str, str] = self.encoding.texts[0]
        return text

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The encoded text, in the order of the adapter's forward function."""
        return (self.encoding.inputs, *self.encoding.forward_args)

    @property
    def text(self) -> str:
        """The perturbed text."""
        return self.seen if isinstance(self.seen, str) else self.seen[self.index]

    @property
    def is_next_token(self) -> bool:
        """Whether the classes are a whole vocabulary."""
        return getattr(self.adapter, "task", None) == "next_token"

    def token_id(self, target: Any) -> Any:
        """Return a target, with a language model's token as its id."""
        if not self.is_next_token or not isinstance(target, str):
            return target
        return self.adapter.token_id(target)

    def for_token(self, numbers: Sequence[Explained]) -> tuple[TextInput, tuple[Explained, ...]]:
        """Return the input and the explained number for one token of a language model against all others.

        Raises:
            InputError: There are several tokens.
        """
        if len(numbers) != 1:
            raise InputError("labels= and top_labels= are for classes; a language model's tokens are explained alone.")
        (number,) = numbers
        token = number.column
        number = replace(number, name=str(self.adapter.class_name(token)), opposite=_ANY_OTHER)
        return replace(self, token=token), (number,)

    def label(self, number: Explained) -> int:
        """Return lime's label of an explained class."""
        return number.column if self.token is None else _OF_TOKEN

    def names(self, given: Sequence[str] | None, n: int) -> list[str] | None:
        """Return the names of lime's n classes."""
        if self.token is not None:
            return [_ANY_OTHER, str(self.adapter.class_name(self.token))]
        names = self.adapter.names_of(n) if given is None else given
        return None if names is None else list(names)

    def scores(self, texts: Sequence[str]) -> Array:
        """Return the scores of texts, with two columns for a single logit, as lime's classifier function does."""
        items = [self._item(text) for text in texts]
        show = self.show_progress and len(items) > 1  # no bar for the unperturbed text
        if self.token is None:
            return np.asarray(self.adapter.scores(items, self.unit, show_progress=show))
        function = self.adapter.predict_proba if self.unit == "probability" else self.adapter.logits
        return self.two_columns(function(items, target=self.token, show_progress=show))

    def original(self) -> tuple[AdapterScorer | None, Array]:
        """Return the scorer of tokens, and the scores of the unperturbed text, (1, classes)."""
        if self.make is None:
            return None, self.scores([self.text])
        self.adapter.check_one_row()
        scorer, scores = adapter_scores(self.adapter, self.tensors, self.unit)
        self.adapter.check_one_row()  # the first output may reveal one row per token
        return scorer, scores

    def copies(self, scorer: AdapterScorer | None, number: Explained) -> Perturbed | None:
        """Return the value function over tokens for an explained number; None where texts are perturbed."""
        if self.make is None or scorer is None:
            return None
        return self.make(replace(scorer, token=self.token), number)

    def scores_of_masks(self, copies: Perturbed, kept: Masks, known: Array) -> Array:
        """Return the scores of perturbed tokens, (n, classes).

        Args:
            copies: The value function over tokens.
            kept: Which features each copy keeps, (n, features).
            known: The scores of the unperturbed text, which is not run again, (1, classes).
        """
        rest = ~kept.all(axis=1)
        out: Array = np.repeat(known, len(kept), axis=0)
        if rest.any():
            scores = copies.class_scores(kept[rest])
            out[rest] = scores if self.token is None else self.two_columns(scores)
        return out

    def on_tokens(self, string: Any, removal: Removal) -> TextInput:
        """Return the input with units removed from its tokens.

        Args:
            string: The text with its units.
            removal: How tokens of removed units are removed.

        Raises:
            InputError: The adapter overrides the scores of texts, or the units' positions are unknown.
        """
        if not _scores_by_tokens(self.adapter):
            raise InputError(
                f"{type(self.adapter).__name__} overrides predict_proba or logits for texts, so its scores of tokens "
                "are unknown; use features='lime' without removal=, or LimeText.attribute."
            )
        if "".join(string.as_list) != string.raw:
            raise InputError(
                "split_expression has a capturing group, with which lime repeats the text between words; write it as "
                "(?:...)."
            )
        names = _names(string)
        features = self._features_of_tokens(occurrences(string), len(names))

        def make(scorer: AdapterScorer, number: Explained) -> Perturbed:
            options: dict[str, Any] = dict(removal=removal, show_progress=self.show_progress)
            return perturbed_text(scorer, self.tensors, features, names, number, **options)

        return replace(self, make=make)

    def on_tokens_if_exact(self, string: Any) -> TextInput:
        """Return the input with units removed from its tokens where that equals lime's texts, else the same input.

        Args:
            string: lime's ``IndexedString`` of the text.
        """
        if not _scores_by_tokens(self.adapter) or "".join(string.as_list) != string.raw:
            return self
        units = occurrences(string)
        each = [(k, start, end) for k, (_, start, end) in enumerate(units)]  # one feature per unit
        by_unit = text_tokens(self.adapter, self.tensors, self._features_of_tokens(each, len(each)), len(each))
        replacement = None if string.bow else string.mask_string
        if replacement is not None:
            by_unit = by_unit.with_replacements(self.adapter.token_ids(replacement))
        pieces = [int(p) for p in np.searchsorted(string.string_start, [start for _, start, _ in units])]

        def tokenize(removed: Sequence[Sequence[int]]) -> Any:
            texts = (
                "".join(replacement or "" if k in indices else p for k, p in enumerate(string.as_list))
                for indices in map(frozenset, removed)
            )
            return self.adapter.token_rows([self._item(text) for text in texts])

        if not is_exact(self.adapter, by_unit, pieces, tokenize):
            return self
        names = _names(string)
        feature = np.array([*(feature for feature, _, _ in units), len(names)], dtype=np.int64)[by_unit.feature]
        tokens = replace(by_unit, feature=feature, n_features=len(names))
        options: dict[str, Any] = dict(adapter=self.adapter, tokens=tokens, show_progress=self.show_progress)
        return replace(self, make=lambda scorer, number: PerturbedTokens(names, number, score_batch=scorer, **options))

    @property
    def token_spans(self) -> list[Span | None]:
        """The span of each token in the perturbed text; None for tokens without one."""
        spans = self.encoding.token_spans[0]
        return [s[1:] if s is not None and s[0] == self.index else None for s in spans]

    def with_tokens(self, spans: Sequence[Span]) -> list[Span]:
        """Return the spans that have a token to remove.

        Raises:
            TextError: No span has one.
        """
        units = [(k, start, end) for k, (start, end) in enumerate(spans)]
        with_one = set(self._features_of_tokens(units, len(units))[0].tolist())
        if with_one <= {len(units)}:
            raise TextError(f"none of the {len(spans)} units has a token that the model sees.")
        return [span for k, span in enumerate(spans) if k in with_one]

    def _features_of_tokens(self, units: Sequence[Occurrence], n_features: int) -> torch.Tensor:
        """Return the feature of each token, (1, N); ``n_features`` for tokens without a feature.

        Args:
            units: Feature, start and end of each unit.
            n_features: Number of features.
        """
        words = [Word("", start, end) for _, start, end in units]
        features = [n_features if k is None else units[k][0] for k in word_of_tokens(self.token_spans, words)]
        return torch.tensor([features], device=self.encoding.inputs.device)

    @property
    def index(self) -> int:
        """Index of the perturbed text in a pair; 0 for a single text."""
        return 1 if self.explained_text == "second" else 0

    def _item(self, text: str) -> Any:
        """Return the adapter's raw input with this text as the perturbed one."""
        if isinstance(self.seen, str):
            return text
        first, second = self.seen
        return (text, second) if self.explained_text == "first" else (first, text)

    def two_columns(self, scores: Array) -> Array:
        """Return the columns of any other token and of a token, from its logits or probabilities (n, 1)."""
        return np.concatenate([1 - scores if self.unit == "probability" else -scores, scores], axis=1)


def text_input_of(
    forward_func: Callable[..., Any],
    text: Any,
    explained_text: OneText | None,
    output: Output,
    *,
    features: Literal["word", "token"] = "word",
    show_progress: bool,
) -> tuple[TextInput, list[Span] | None]:
    """Return the input to perturb, and the spans of an encoding's features; None for a raw text.

    Raises:
        InputError: The forward function is no ``TextAdapter``, or ``explained_text`` does not fit the text.
    """
    if not all(hasattr(forward_func, name) for name in ("encode", "predict_proba", "logits")):
        raise InputError(
            f"explain needs raw texts, which {type(forward_func).__name__} does not accept; "
            "make LimeText with a TextAdapter around the model."
        )
    adapter: Any = forward_func
    unit = unit_of(adapter, output)
    if isinstance(text, list) or (isinstance(text, TextEncoding) and len(text) != 1):
        kind = "a list" if isinstance(text, list) else "an encoding"
        raise InputError(f"explain needs one text, but got {kind} of {len(text)}; call it for each.")
    if explained_text is not None and explained_text not in get_args(OneText):
        raise InputError(f"explained_text must be 'first' or 'second', but is {explained_text!r}.")
    is_encoded = isinstance(text, TextEncoding)
    raw = text.texts[0] if is_encoded else text
    is_pair = isinstance(raw, tuple)
    if is_encoded and is_pair and explained_text is None and len(set(text.text_indices[0])) == 1:
        explained_text = get_args(OneText)[text.text_indices[0][0]]
    if is_pair and explained_text is None:
        raise InputError("a pair is explained one text at a time; pass explained_text='first' or 'second'.")
    if explained_text is not None and not is_pair:
        raise InputError(
            f"explained_text={explained_text!r} chooses a text of a pair, but got {type(raw).__name__}; pass a tuple."
        )
    if not is_encoded:
        how: dict[str, Any] = {} if features == "word" else {"features": features}
        encoding = adapter.encode(raw, **how, **({"explained_text": explained_text} if is_pair else {}))
        return TextInput(adapter, encoding, explained_text, unit, show_progress), None
    text_input = TextInput(adapter, text, explained_text, unit, show_progress)
    words = zip(text.words[0], text.text_indices[0], strict=True)
    return text_input, [(word.start, word.end) for word, index in words if index == text_input.index]


def is_exact(adapter: TextAdapter, tokens: TextTokens, pieces: Sequence[int], tokenize: Callable[..., Any]) -> bool:
    """Return whether deleting tokens equals tokenizing the text without these units.

    It holds where a word's tokens do not depend on its neighbours. The check covers every pattern of four neighbouring
    units kept and removed, at every position, all units, and none.

    Args:
        adapter: The adapter.
        tokens: The tokens, each unit a feature.
        pieces: The index of each unit among the pieces of the text.
        tokenize: Maps copies, each given by the indices of its removed pieces, to rows of tokens.
    """
    n = tokens.n_features
    patterns = [np.resize(np.roll(_CIRCLE, k), n) for k in range(len(_CIRCLE))]
    kept = np.stack([*patterns, np.ones(n, dtype=bool), np.zeros(n, dtype=bool)])
    copies = DeletedCopies(tokens, kept)
    if adapter.max_length is not None and copies.longest > adapter.max_length:  # the tokenizer would cut these
        return False
    rows = tokenize([[piece for piece, is_kept in zip(pieces, row, strict=True) if not is_kept] for row in kept])
    for k, row in enumerate(rows):
        ids, types = copies.cells([k])
        if row.cut or (ids.tolist() or [adapter.empty_id]) != list(row.ids):
            return False
        if types is not None and len(types) and types.tolist() != list(row.types or [0] * len(row.ids)):
            return False
    return True


def _names(string: Any) -> tuple[str, ...]:
    """Return the features' names."""
    return tuple(str(string.word(k)) for k in range(string.num_words()))


def _scores_by_tokens(adapter: Any) -> bool:
    """Return whether the adapter's scores of texts are its scores of their tokens, without overridden methods."""
    names = ("predict_proba", "logits", "outputs", "encode")
    return isinstance(adapter, TextAdapter) and all(
        getattr(type(adapter), name) is getattr(TextAdapter, name) and name not in vars(adapter) for name in names
    )
