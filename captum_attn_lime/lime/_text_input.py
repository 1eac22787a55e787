"""What `LimeText.explain` perturbs: a text, or one text of a pair, and what it asks the model about it."""

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
from captum_attn_lime.perturb._model_outputs import AdapterScores, adapter_scores
from captum_attn_lime.perturb._text import Removal, perturbed_text, text_tokens
from captum_attn_lime.perturb._token_deletion import DeletedCopies, PerturbedTokens, TextTokens

OneText = Literal["first", "second"]
# Of two columns lime explains the second one by default.
_OF_TOKEN = 1
_ANY_OTHER = "any other token"
# Every pattern of four neighbours, around a circle.
_CIRCLE = np.array([int(c) for c in "0000100110101111"], dtype=bool)


@dataclass(frozen=True)
class TextInput:
    """One text and the model's answers to its perturbed copies.

    Attributes:
        adapter: The adapter.
        encoding: The text or pair as tokens.
        explained_text: Which text of a pair is perturbed; None for a single text.
        unit: The unit of the model's answers.
        show_progress: Whether to show a bar.
        token: The token id that is asked about, of a model whose classes are the vocabulary; else None.
        make: Makes the copies of the tokens, for what the adapter is asked and the number that is explained; None where
            copies are made of the text.
    """

    adapter: Any
    encoding: Any
    explained_text: OneText | None
    unit: Unit
    show_progress: bool
    token: int | None = None
    make: Callable[[AdapterScores, Explained], Perturbed] | None = None

    @property
    def seen(self) -> str | tuple[str, str]:
        """What the model sees, after truncation: a text or a pair."""
        found: str | tuple[str, str] = self.encoding.texts[0]
        return found

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The encoded text, as the adapter's forward function takes it."""
        return (self.encoding.inputs, *self.encoding.forward_args)

    @property
    def text(self) -> str:
        """The text that is perturbed."""
        if isinstance(self.seen, str):
            return self.seen
        return self.seen[0 if self.explained_text == "first" else 1]

    @property
    def is_next_token(self) -> bool:
        """Whether the classes are a whole vocabulary."""
        return getattr(self.adapter, "task", None) == "next_token"

    def token_id(self, target: Any) -> Any:
        """Return a target; of a language model a token's id in the place of its text."""
        if not self.is_next_token or not isinstance(target, str):
            return target
        return self.adapter.token_id(target)

    def about(self, numbers: Sequence[Explained]) -> tuple[TextInput, tuple[Explained, ...]]:
        """Return the same text_input, asked about one token of a language model against all others.

        Raises:
            InputError: Several tokens came.
        """
        if len(numbers) != 1:
            raise InputError("labels= and top_labels= are for classes; a language model's tokens are explained alone.")
        (number,) = numbers
        token = number.column
        own = replace(number, name=str(self.adapter.class_name(token)), opposite=_ANY_OTHER)
        return replace(self, token=token), (own,)

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
        """Return lime's classifier function, with one column per class also for a single logit."""
        items = [self._item(text) for text in texts]
        show = self.show_progress and len(items) > 1  # the one text whose class is looked up needs no bar
        if self.token is None:
            return np.asarray(self.adapter.scores(items, self.unit, show_progress=show))
        function = self.adapter.predict_proba if self.unit == "probability" else self.adapter.logits
        return self.two_columns(function(items, target=self.token, show_progress=show))

    def original(self) -> tuple[AdapterScores | None, Array]:
        """Return what the adapter is asked of tokens, and the scores of the text as it is, (1, classes)."""
        if self.make is None:
            return None, self.scores([self.text])
        self.adapter.check_one_row()
        answers, found = adapter_scores(self.adapter, self.tensors, self.unit)
        self.adapter.check_one_row()  # the first output may have shown that it is by token
        return answers, found

    def copies(self, answers: AdapterScores, number: Explained) -> Perturbed:
        """Return the text as tokens of which units can be taken out.

        Args:
            answers: What the adapter is asked.
            number: The number that is explained.
        """
        if self.make is None:
            raise InputError("this text is perturbed as a text; call scores.")
        return self.make(replace(answers, token=self.token), number)

    def scores_of_masks(self, copies: Perturbed, kept: Masks, known: Array) -> Array:
        """Return the scores of copies of the tokens, one column per class.

        Args:
            copies: The copies.
            kept: Which features each copy keeps, (n, features).
            known: The scores of the text as it is, which does not run again, (1, classes).
        """
        rest = ~kept.all(axis=1)
        out: Array = np.repeat(known, len(kept), axis=0)
        if rest.any():
            found = copies.answers(kept[rest])
            out[rest] = found if self.token is None else self.two_columns(found)
        return out

    def on_tokens(self, string: Any, removal: Removal) -> TextInput:
        """Return the same text_input, with units removed from its tokens.

        Args:
            string: The text with its units.
            removal: What becomes of the tokens of removed units.

        Raises:
            InputError: The adapter answers to texts in a way of its own, or the units do not tell where they stand.
        """
        if not _answers_by_tokens(self.adapter):
            raise InputError(
                f"{type(self.adapter).__name__} has its own predict_proba or logits, which take texts, so its answers "
                "to tokens are not known; use features='lime' without removal=, or LimeText.attribute."
            )
        if "".join(string.as_list) != string.raw:
            raise InputError(
                "split_expression has a capturing group, with which lime repeats what stands between words; write it "
                "as (?:...)."
            )
        names = _names(string)
        features = self._features_of_tokens(occurrences(string), len(names))

        def make(answers: AdapterScores, number: Explained) -> Perturbed:
            options: dict[str, Any] = dict(removal=removal, show_progress=self.show_progress)
            return perturbed_text(answers, self.tensors, features, names, number, **options)

        return replace(self, make=make)

    def as_lime_does(self, string: Any) -> TextInput:
        """Return the same text_input on tokens where that gives what lime's own texts give, else as it is.

        Args:
            string: lime's ``IndexedString`` of the text.
        """
        if not _answers_by_tokens(self.adapter) or "".join(string.as_list) != string.raw:
            return self
        units = occurrences(string)
        each = [(k, start, end) for k, (_, start, end) in enumerate(units)]  # units one by one
        by_unit = text_tokens(self.adapter, self.tensors, self._features_of_tokens(each, len(each)), len(each))
        replacement = None if string.bow else string.mask_string
        if replacement is not None:
            by_unit = by_unit.with_replacements(self.adapter.token_ids(replacement))
        places = [int(p) for p in np.searchsorted(string.string_start, [start for _, start, _ in units])]

        def tokenize(removed: Sequence[Sequence[int]]) -> Any:
            texts = (
                "".join(replacement or "" if k in gone else p for k, p in enumerate(string.as_list))
                for gone in map(frozenset, removed)
            )
            return self.adapter.token_rows([self._item(text) for text in texts])

        if not is_exact(self.adapter, by_unit, places, tokenize):
            return self
        names = _names(string)
        feature = np.array([*(feature for feature, _, _ in units), len(names)], dtype=np.int64)[by_unit.feature]
        cells = replace(by_unit, feature=feature, n_features=len(names))
        own: dict[str, Any] = dict(adapter=self.adapter, cells=cells, show_progress=self.show_progress)
        return replace(self, make=lambda answers, number: PerturbedTokens(names, number, score_batch=answers, **own))

    @property
    def token_spans(self) -> list[Span | None]:
        """Where each token stands in the perturbed text; None for tokens that stand for nothing in it."""
        spans = self.encoding.token_spans[0]
        return [s[1:] if s is not None and s[0] == self.index else None for s in spans]

    def with_tokens(self, spans: Sequence[Span]) -> list[Span]:
        """Return the spans that have a token; there is nothing to remove of the others.

        Raises:
            TextError: None has.
        """
        units = [(k, start, end) for k, (start, end) in enumerate(spans)]
        with_one = set(self._features_of_tokens(units, len(units))[0].tolist())
        if with_one <= {len(units)}:
            raise TextError(f"none of the {len(spans)} units has a token that the model sees.")
        return [span for k, span in enumerate(spans) if k in with_one]

    def _features_of_tokens(self, units: Sequence[Occurrence], n_features: int) -> torch.Tensor:
        """Return the feature of each token, (1, N); ``n_features`` for tokens of none.

        Args:
            units: Feature, start and end of each unit.
            n_features: Number of features.
        """
        words = [Word("", start, end) for _, start, end in units]
        features = [n_features if k is None else units[k][0] for k in word_of_tokens(self.token_spans, words)]
        return torch.tensor([features], device=self.encoding.inputs.device)

    @property
    def index(self) -> int:
        """Which text of a pair is perturbed, 0 or 1; 0 of a single text."""
        return 1 if self.explained_text == "second" else 0

    def _item(self, text: str) -> Any:
        """Return what the adapter takes, with this text in the place of the perturbed one."""
        if isinstance(self.seen, str):
            return text
        first, second = self.seen
        return (text, second) if self.explained_text == "first" else (first, text)

    def two_columns(self, found: Array) -> Array:
        """Return the two columns of a token and of any other, of a token's logits or probabilities (n, 1)."""
        return np.concatenate([1 - found if self.unit == "probability" else -found, found], axis=1)


def text_input_of(
    forward_func: Callable[..., Any],
    text: Any,
    explained_text: OneText | None,
    output: Output,
    *,
    features: Literal["word", "token"] = "word",
    show_progress: bool,
) -> tuple[TextInput, list[Span] | None]:
    """Return what is perturbed, and where the features of an encoding stand; None of a raw text.

    Raises:
        InputError: The forward function takes no texts, or the text and ``explained_text`` do not go together.
    """
    if not all(hasattr(forward_func, name) for name in ("encode", "predict_proba", "logits")):
        raise InputError(
            f"explain needs raw texts, which {type(forward_func).__name__} does not take; "
            "make LimeText with a TextAdapter around the model."
        )
    adapter: Any = forward_func
    unit = unit_of(adapter, output)
    if isinstance(text, list) or (isinstance(text, TextEncoding) and len(text) != 1):
        kind = "a list" if isinstance(text, list) else "an encoding"
        raise InputError(f"explain needs one text, but {kind} came, of {len(text)}; call it for each.")
    if explained_text is not None and explained_text not in get_args(OneText):
        raise InputError(f"explained_text must be 'first' or 'second', but is {explained_text!r}.")
    is_encoded = isinstance(text, TextEncoding)
    raw = text.texts[0] if is_encoded else text
    is_pair = isinstance(raw, tuple)
    if is_encoded and is_pair and explained_text is None and len(set(text.text_indices[0])) == 1:
        explained_text = get_args(OneText)[text.text_indices[0][0]]
    if is_pair and explained_text is None:
        raise InputError(
            "a pair is explained one text at a time, while the other stays: pass explained_text= 'first' or 'second'."
        )
    if explained_text is not None and not is_pair:
        raise InputError(
            f"explained_text={explained_text!r} chooses a text of a pair, but {type(raw).__name__} came; pass a tuple."
        )
    if not is_encoded:
        how: dict[str, Any] = {} if features == "word" else {"features": features}
        encoding = adapter.encode(raw, **how, **({"explained_text": explained_text} if is_pair else {}))
        return TextInput(adapter, encoding, explained_text, unit, show_progress), None
    text_input = TextInput(adapter, text, explained_text, unit, show_progress)
    own = zip(text.words[0], text.text_indices[0], strict=True)
    return text_input, [(word.start, word.end) for word, of in own if of == text_input.index]


def is_exact(adapter: TextAdapter, cells: TextTokens, places: Sequence[int], tokenize: Callable[..., Any]) -> bool:
    """Return whether leaving out tokens gives the tokens of the text without these units.

    That holds where a word's tokens do not depend on what stands around it, and is tried out: every pattern of four
    neighbouring units kept and removed, wherever it may stand, all units, and none.

    Args:
        adapter: The adapter.
        cells: The tokens, each unit a feature.
        places: The index of each unit among the pieces of the text.
        tokenize: From a list of copies, each given by the indices of its removed pieces, to their rows of tokens.
    """
    n = cells.n_features
    patterns = [np.resize(np.roll(_CIRCLE, k), n) for k in range(len(_CIRCLE))]
    kept = np.stack([*patterns, np.ones(n, dtype=bool), np.zeros(n, dtype=bool)])
    copies = DeletedCopies(cells, kept)
    if adapter.max_length is not None and copies.longest > adapter.max_length:  # the tokenizer would cut these copies
        return False
    rows = tokenize([[place for place, stays in zip(places, row, strict=True) if not stays] for row in kept])
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


def _answers_by_tokens(adapter: Any) -> bool:
    """Return whether the adapter's answers to texts are its answers to their tokens, and nothing is put on top."""
    names = ("predict_proba", "logits", "outputs", "encode")
    return isinstance(adapter, TextAdapter) and all(
        getattr(type(adapter), name) is getattr(TextAdapter, name) and name not in vars(adapter) for name in names
    )
