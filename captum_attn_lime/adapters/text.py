"""`TextAdapter`: a text classifier as a Captum forward function and a lime classifier function."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._progress import progress
from captum_attn_lime.adapters.base import Adapter, Array, Encoding
from captum_attn_lime.adapters.batches import batches
from captum_attn_lime.adapters.binding import bind
from captum_attn_lime.adapters.embedding import find_embedding
from captum_attn_lime.adapters.limits import (
    configured_class_names,
    lacks_padding_token,
    padding_token,
    position_limit,
)
from captum_attn_lime.adapters.padding import without_doubt
from captum_attn_lime.adapters.state import evaluating, padding_id
from captum_attn_lime.adapters.tokenize import PlainIds, Tokenizing, Tokens
from captum_attn_lime.adapters.words import WORD_PATTERN, Word, find_words, word_of_tokens
from captum_attn_lime.errors import InputError, SelectionError, TextError, TokenizerError, TruncationWarning

# Where the wished-for baseline token is missing, the next one stands in.
_BASELINES = {"mask": ("mask", "unk", "pad"), "unk": ("unk", "mask", "pad"), "pad": ("pad",)}
# Texts tokenised at once by predict_proba.
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class TextEncoding(Encoding):
    """Texts as token ids, with their words as features.

    Attributes:
        texts: For each example the text that the model sees: after truncation.
        tokens: The tokens of each example, special and padding tokens included.
        words: The words of each example, ids 0 to len - 1; spans are in ``texts``. A word without any token (a control
            character that the tokenizer drops) is left out.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    words: tuple[tuple[Word, ...], ...]


class TextAdapter(Adapter):
    """A text classifier, ready for Captum and for lime.

    It wraps HuggingFace sequence classifiers and any module over token ids. Arguments are bound by name; sequences are
    padded on the right; a module that takes no mask never sees padding. A text that has no token at all, as lime makes
    them, stands as one bos, eos, unknown or padding token, the first of these that the tokenizer has.

    Args:
        model: The classifier. It returns logits (n, classes) or (n,), a tuple that begins with them, or ``.logits``.
        tokenizer: A HuggingFace tokenizer, a :class:`WordTokenizer`, or an object with
            ``spans(text) -> (ids, character spans)``.
        class_names: Names of the classes; by default those of the model's configuration.
        max_length: Greatest number of tokens, special tokens included; by default the lesser of what the tokenizer and
            the model's positions allow.
        word_pattern: Regular expression of one word; words are the features.
        baseline: What stands in for a removed word: ``"mask"``, ``"unk"`` or ``"pad"`` (where the tokenizer has no
            mask token the unknown token stands in, then the padding token), or a token id. Special and padding tokens
            keep their own ids.
        batch_tokens: Greatest number of tokens that :meth:`predict_proba` runs at once.
        forward_names: Role to parameter name, where the model's parameter names do not tell: ``"input_ids"``,
            ``"attention_mask"`` (1 at real tokens), ``"padding_mask"`` (True at padding), ``"token_type_ids"``.

    Example:
        >>> from captum.attr import LayerIntegratedGradients
        >>> from captum_attn_lime.adapters import WordTokenizer
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)
        ...
        ...     def forward(self, ids):
        ...         return self.head(self.embed(ids).mean(dim=1))
        >>> adapter = TextAdapter(Classifier(), WordTokenizer.fit(["a fine film"]))
        >>> x = adapter.encode("A fine film!")
        >>> x.feature_names, x.inputs.tolist()
        ((('A', 'fine', 'film', '!'),), [[2, 4, 3, 1]])
        >>> ig = LayerIntegratedGradients(adapter, adapter.embedding)
        >>> ig.attribute(**x.arguments(ig), target=1).shape
        torch.Size([1, 4, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        class_names: Sequence[str] | None = None,
        max_length: int | None = None,
        word_pattern: str = WORD_PATTERN,
        baseline: str | int = "mask",
        batch_tokens: int = 4096,
        forward_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(model, class_names=class_names)
        if class_names is None:
            self.class_names = configured_class_names(model)
        for name, value in (("max_length", max_length), ("batch_tokens", batch_tokens)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a positive number of tokens, but is {value!r}.")
        self.word_pattern = word_pattern
        self.batch_tokens = batch_tokens
        self._binding = bind(model, forward_names)
        limits = [n for n in (max_length, position_limit(model)) if n is not None]
        self._tokenizing = Tokenizing(tokenizer, min(limits, default=None), types=self._binding.types is not None)
        self._pad = self._padding_id()
        self._found_embedding: tuple[nn.Module, ...] = ()  # a tuple, so that it is no submodule of the adapter
        self._baseline = self._baseline_id(baseline)
        self._ending = self._tokenizing.ending(self._pad) if padding_token(model) is not None else 0

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizing.tokenizer

    @property
    def max_length(self) -> int | None:
        """Greatest number of tokens of one text, special tokens included; None for no limit."""
        return self._tokenizing.max_length

    @property
    def embedding(self) -> nn.Module:
        """The layer that embeds the token ids, for Captum's layer methods.

        Raises:
            SelectionError: It is not to be found.
        """
        if not any(m is self._found_embedding[0] for m in self.model.modules() if self._found_embedding):
            self._found_embedding = (find_embedding(self.model, self._binding, self.device),)
        return self._found_embedding[0]

    def encode(self, texts: str | Sequence[str]) -> TextEncoding:
        """Return a text or several as tensors with their words as features.

        Args:
            texts: One text, or several.

        Raises:
            TextError: A text is blank or has no word.
            TokenizerError: The tokenizer gives ids that the model has no embedding for.
            InputError: Not a text; or texts of several lengths for a model that takes no mask.

        Warns:
            TruncationWarning: A text is longer than the model takes.
        """
        rows = []
        for i, text in enumerate(check_texts(texts)):
            if not text.strip():
                raise TextError(f"text {i} is {'empty' if not text else 'blank'}; pass a text with at least one word.")
            rows.append(self._tokenizing.tokens(text))
            _warn_cut(rows[-1], i, self.max_length, self.word_pattern)
        self._check_ids([row.ids for row in rows])
        longest = max(len(row.ids) for row in rows)
        if self._binding.mask is None and any(len(row.ids) != longest for row in rows):
            raise InputError(
                f"the texts have {', '.join(str(len(row.ids)) for row in rows)} tokens and {type(self.model).__name__} "
                "takes no mask, so they cannot share a batch; encode them one at a time, or give the model's forward "
                "an attention_mask parameter."
            )
        ids, forward_args = self._tensors(rows, longest)
        words, feature_mask = self._features(rows, ids)
        is_word = feature_mask < max(len(w) for w in words)
        return TextEncoding(
            inputs=ids,
            forward_args=forward_args,
            baselines=torch.where(is_word, torch.full_like(ids, self._baseline), ids),
            feature_mask=feature_mask,
            feature_names=tuple(tuple(w.text for w in row) for row in words),
            texts=tuple(row.text for row in rows),
            tokens=tuple(self._tokenizing.names(row) for row in ids.tolist()),
            words=words,
        )

    def logits(self, raw: str | Sequence[str], *, show_progress: bool = False) -> Array:
        """Return the logits of texts, (n, classes) float64, computed in eval mode and without gradients.

        Equal texts run once, texts of similar length run together, and no batch is larger than ``batch_tokens``.

        Args:
            raw: One text, or several; they may be empty.
            show_progress: Show a bar over the texts that run.

        Warns:
            TruncationWarning: A text is longer than the model takes.
        """
        texts = check_texts(raw)
        distinct = list(dict.fromkeys(texts))
        rows: list[PlainIds] = []
        for start in range(0, len(distinct), _CHUNK):
            rows += [self._filled(row) for row in self._tokenizing.ids(distinct[start : start + _CHUNK])]
        self._check_ids([row.ids for row in rows])
        _warn_cut_many(rows, self.max_length)
        place = {ids: k for k, ids in enumerate(dict.fromkeys(row.ids for row in rows))}
        unique = list({row.ids: row for row in rows}.values())
        exact = self._binding.mask is None or lacks_padding_token(self.model)
        found: list[Array] = [np.empty(0)] * len(unique)
        with evaluating(self.model), torch.no_grad(), progress(len(unique), show_progress, "texts") as tick:
            for batch in batches([len(row.ids) for row in unique], self.batch_tokens, exact=exact):
                ids, forward_args = self._tensors([unique[k] for k in batch], max(len(unique[k].ids) for k in batch))
                for k, values in zip(batch, self._run(ids, *forward_args), strict=True):
                    found[k] = values
                tick(len(batch))
        of_text = {text: place[row.ids] for text, row in zip(distinct, rows, strict=True)}
        return np.stack([found[of_text[text]] for text in texts])

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        ids, further = tensors[0], list(tensors[1:])
        takes = self._further()
        if len(further) > len(takes):
            raise InputError(
                f"{type(self.model).__name__} takes token ids{''.join(f', {name}' for name in takes)}, but "
                f"{len(tensors)} tensors came."
            )
        if ids.dim() == 2 and ids.is_floating_point():
            raise InputError(
                f"the token ids came as {ids.dtype}: this method moves along its inputs, which ids do not allow. "
                "Use its layer form: LayerIntegratedGradients(adapter, adapter.embedding) and the like."
            )
        named = dict(zip(takes, further, strict=False))
        mask = named.get("attention_mask")
        types = named.get("token_type_ids")
        if ids.dim() != 2 or not self._doubtful_padding():
            return self._binding.call(self.model, ids, mask, types)
        ids, lent = without_doubt(self.model, ids, mask, self._ending)
        with padding_id(self.model, lent):
            return self._binding.call(self.model, ids, mask, types)

    def _doubtful_padding(self) -> bool:
        """Return whether the model could take a real token for padding: its padding id is lent, or the baseline's."""
        return lacks_padding_token(self.model) or padding_token(self.model) == self._baseline

    def _further(self) -> list[str]:
        """Return what goes to forward after the ids, in order."""
        takes = ["attention_mask"] if self._binding.mask is not None else []
        return [*takes, "token_type_ids"] if self._tokenizing.types else takes

    def _tensors(self, rows: Sequence[Tokens | PlainIds], length: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the ids (n, length), padded on the right, and what goes with them."""

        def table(cells: Sequence[Sequence[int]], fill: int) -> Tensor:
            padded = [[*row, *[fill] * (length - len(row))] for row in cells]
            return torch.tensor(padded, dtype=torch.int64, device=self.device)

        ids = table([row.ids for row in rows], self._pad)
        further = []
        if self._binding.mask is not None:
            further.append(table([[1] * len(row.ids) for row in rows], 0))
        if self._tokenizing.types:
            further.append(table([row.types or [0] * len(row.ids) for row in rows], 0))
        return ids, tuple(further)

    def _features(self, rows: Sequence[Tokens], ids: Tensor) -> tuple[tuple[tuple[Word, ...], ...], Tensor]:
        """Return the words that have a token, and the feature mask (B, N)."""
        all_words, owners = [], []
        for i, row in enumerate(rows):
            words = find_words(row.text, self.word_pattern)
            owner = word_of_tokens(row.spans, words)
            used = sorted({k for k in owner if k is not None})
            if not used:
                raise TextError(
                    f"text {i} ({row.text[:40]!r}) has no word to attribute to: "
                    f"{len(words)} word(s) found by word_pattern, none of them with a token that the model sees."
                )
            number = {k: n for n, k in enumerate(used)}
            all_words.append(tuple(words[k] for k in used))
            owners.append([None if k is None else number[k] for k in owner])
        last = max(len(words) for words in all_words)
        mask = torch.full_like(ids, last)
        for i, numbers in enumerate(owners):
            mask[i, : len(numbers)] = torch.tensor([last if n is None else n for n in numbers], device=ids.device)
        return tuple(all_words), mask

    def _filled(self, row: PlainIds) -> PlainIds:
        """Return the row, or the reference token where a text has no token at all."""
        if row.ids:
            return row
        reference = self._tokenizing.special_id("bos", "eos", "unk", "pad")
        if reference is None:
            raise TokenizerError(
                f"{type(self.tokenizer).__name__} gives an empty text no token and has no bos, eos, unk or pad token "
                "to stand for it; give the tokenizer one of them."
            )
        return PlainIds((reference,), None, row.cut)

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise if an id has no embedding."""
        try:
            size = getattr(self.embedding, "num_embeddings", None)
        except SelectionError:
            return  # An embedding that cannot be found is no reason not to run the model.
        highest = max((max(row, default=0) for row in rows), default=0)
        if isinstance(size, int) and highest >= size:
            raise TokenizerError(
                f"the tokenizer gives token id {highest} ({self._tokenizing.names([highest])[0]!r}), but "
                f"{type(self.model).__name__} has {size} embeddings; use the model's own tokenizer, "
                "or resize the embeddings."
            )

    def _padding_id(self) -> int:
        """Return the id that fills up a batch: the model's, else the tokenizer's nearest to one."""
        own = padding_token(self.model)
        if own is not None:
            return own
        found = self._tokenizing.special_id("pad", "eos", "bos", "unk")
        return 0 if found is None else found

    def _baseline_id(self, baseline: str | int) -> int:
        if isinstance(baseline, int) and not isinstance(baseline, bool) and baseline >= 0:
            return baseline
        if baseline not in _BASELINES:
            raise InputError(f"baseline must be {', '.join(map(repr, _BASELINES))} or a token id; got {baseline!r}.")
        found = self._tokenizing.special_id(*_BASELINES[str(baseline)])
        return self._pad if found is None else found


def check_texts(raw: Any) -> list[str]:
    """Return a text or several as a list of texts.

    Raises:
        InputError: Not a text, or none at all.
    """
    texts = [raw] if isinstance(raw, str) else raw
    if isinstance(texts, (bytes, dict)) or not hasattr(texts, "__iter__"):
        raise InputError(f"expected a text (str) or several, but got {type(raw).__name__}.")
    out = list(texts)
    if not out:
        raise InputError("expected a text or several, but the sequence is empty.")
    for i, text in enumerate(out):
        if not isinstance(text, str):
            raise InputError(f"expected texts, but item {i} is {type(text).__name__}: {text!r}; convert it with str().")
    return [str(text) for text in out]


def _warn_cut(row: Tokens, i: int, max_length: int | None, pattern: str) -> None:
    if not row.cut:
        return
    seen = len(find_words(row.text, pattern))
    lost = " ".join(w.text for w in find_words(row.rest, pattern)[:4])
    where = f"all but its last {seen} words" if row.cut_left else f"its words from number {seen + 1} on ({lost} ...)"
    warnings.warn(
        f"text {i} has {row.cut + len(row.ids)} tokens and the model takes {max_length}: {row.cut} tokens were cut. "
        f"Not seen and not explained: {where}.",
        TruncationWarning,
        stacklevel=3,
    )


def _warn_cut_many(rows: Sequence[PlainIds], max_length: int | None) -> None:
    cut = [row.cut for row in rows if row.cut]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(rows)} texts were longer than {max_length} tokens: up to {max(cut)} tokens were cut "
            "and not seen. Explain the part that is seen: adapter.encode(text).texts.",
            TruncationWarning,
            stacklevel=3,
        )
