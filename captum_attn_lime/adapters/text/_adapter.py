"""`TextAdapter`: a text model as a Captum forward function and a lime classifier function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime._explained import Unit
from captum_attn_lime.adapters._checks import check_count
from captum_attn_lime.adapters._model_config import padding_token, position_limit
from captum_attn_lime.adapters._outputs import Array, Outputs
from captum_attn_lime.adapters.text import _raw as raws
from captum_attn_lime.adapters.text._batches import scores_of_texts
from captum_attn_lime.adapters.text._binding import bindings, check_kind
from captum_attn_lime.adapters.text._encoding import TextEncoding, features_of, names_of, names_of_tokens, spans_of
from captum_attn_lime.adapters.text._model_facts import ModelFacts, check_one_batch
from captum_attn_lime.adapters.text._pairs import pair_tokens
from captum_attn_lime.adapters.text._raw import ExplainedText, Raw, TextFeatures, is_pair
from captum_attn_lime.adapters.text._special_tokens import baseline_token, padding_fill
from captum_attn_lime.adapters.text._tasks import Head, Task
from captum_attn_lime.adapters.text._token_model import TokenModel
from captum_attn_lime.adapters.text._tokenize import Tokenizing
from captum_attn_lime.errors import InputError, TargetError


class TextAdapter(TokenModel):
    """A text model, ready for Captum and for lime.

    It wraps HuggingFace models and any module over token ids, also in a wrapper (compiled, data-parallel, averaged,
    LoRA, ``forward(**kwargs)``, ``forward(batch)`` of a dictionary). Arguments are bound by name. Padding is on the
    tokenizer's ``padding_side``. The first texts of several lengths show whether padding changes the model's outputs:
    then it moves to the other side, and if it changes them there too, or the module takes no mask, texts run without
    padding. An empty text, as lime generates, becomes one bos, eos, unknown or padding token, the first of these that
    the tokenizer has.

    The task decides what a call returns and what Captum's ``target`` is:

    ================== ======================== ==================================================================
    task               the adapter returns      target
    ================== ======================== ==================================================================
    "classification"   (n, classes)             class
    "tokens"           (n, N, classes)          (position, class)
    "spans"            (n, N, 2)                (position, 0) for the start of the answer, (position, 1) for its end
    "next_token"       (n, vocabulary)          token id; read at each row's last real token
    ================== ======================== ==================================================================

    :meth:`TextEncoding.find` and :meth:`TextEncoding.positions` return positions. For "tokens" and "spans", values at
    padding are meaningless. :meth:`logits` and :meth:`predict_proba` are for the other two tasks. For "next_token" they
    need 8 bytes for each text and token of the vocabulary, and with ``target`` 8 bytes per text.

    Args:
        model: The model. It returns a tensor, a tuple that begins with it, or ``.logits``; for "spans" an object with
            ``.start_logits`` and ``.end_logits``, a tuple of both, or a tensor (n, N, 2).
        tokenizer: A fast HuggingFace tokenizer, a :class:`WordTokenizer`, or an object with
            ``spans(text) -> (ids, character spans)``. For "next_token", special tokens at the end of a text are
            dropped.
        task: What the model predicts; by default the task of the HuggingFace class, also in a wrapper, and
            "classification" for other models.
        class_names: Names of the classes; by default those of the model's configuration.
        max_length: Greatest number of tokens, special tokens included; by default the lesser of what the tokenizer and
            the model's positions allow.
        batch_tokens: Greatest number of tokens, padding included, that :meth:`predict_proba` runs at once. Short
            texts share a batch; a longer text runs alone.
        forward_names: Role to parameter name, if the model uses unusual names: ``"input_ids"``,
            ``"attention_mask"`` (1 at real tokens), ``"padding_mask"`` (True at padding), ``"token_type_ids"``. None
            leaves a role out.
        outputs: What the model returns: ``"logits"``, ``"probabilities"`` (it ends in softmax or sigmoid),
            ``"predictions"`` (a regression), or ``"auto"`` to find out.

    Attributes:
        pad_id: The token id used as padding.
        mask_id: The token id that replaces a removed word, unless :meth:`encode` gets another one.

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
        task: Task | None = None,
        class_names: Sequence[str] | None = None,
        max_length: int | None = None,
        batch_tokens: int = 4096,
        forward_names: Mapping[str, str | None] | None = None,
        outputs: Outputs = "auto",
    ) -> None:
        check_kind(model)
        super().__init__(model, class_names=class_names, outputs=outputs)
        self._head = Head(model, task)
        if class_names is None:
            self.class_names = self._head.class_names(model)
        if max_length is not None:
            check_count("max_length", max_length, "tokens")
        check_count("batch_tokens", batch_tokens, "tokens")
        self.batch_tokens = batch_tokens
        ways = bindings(model, forward_names)
        self._declines_types = "token_type_ids" in (forward_names or {})
        self._tokenizing = Tokenizing(
            tokenizer,
            min((n for n in (max_length, position_limit(model)) if n is not None), default=None),
            types=any(way.types is not None for way in ways),
            open_ended=self.task == "next_token",
        )
        self.pad_id = padding_fill(model, self._tokenizing)
        self.mask_id = baseline_token(self._tokenizing, "mask", self.pad_id)
        self._facts = ModelFacts(ways, "left" if getattr(tokenizer, "padding_side", "right") == "left" else "right")
        self._ending = self._tokenizing.ending(self.pad_id) if padding_token(model) is not None else 0

    def _settings(self) -> list[str]:
        return [f"task={self.task!r}"]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizing.tokenizer

    @property
    def max_length(self) -> int | None:
        """Greatest number of tokens per text, special tokens included; None for no limit."""
        return self._tokenizing.max_length

    @property
    def embedding(self) -> nn.Module:
        """The layer that embeds the token ids, for Captum's layer methods.

        An encoder-decoder embeds a text twice, and this is the encoder's layer. The decoder's input stays unchanged, so
        integrated gradients over this layer do not add up to the difference between text and baselines.

        Raises:
            SelectionError: It cannot be found.
        """
        return self._facts.embedding(self)

    def class_name(self, index: int) -> str:
        """Return the name of a class: its token if the classes are the vocabulary, its number if it has no name."""
        if self.class_names is not None:
            return self.class_names[index]
        return self._tokenizing.names([index])[0] if self._head.is_over_vocabulary(self.model) else str(index)

    def with_token_ids(self, target: Any) -> Any:
        """Return a target in which token ids replace the texts of tokens, if the classes are a vocabulary."""
        if not self._head.is_over_vocabulary(self.model):
            return target
        if isinstance(target, (tuple, list)):
            return type(target)(self.with_token_ids(one) for one in target)
        return self.token_id(target) if isinstance(target, str) else target

    def token_id(self, token: str) -> int:
        """Return the id of a token of the vocabulary, in the tokenizer's notation or as plain text.

        Raises:
            TargetError: It is not one token.
        """
        convert = getattr(self.tokenizer, "convert_tokens_to_ids", None)
        found = convert(token) if callable(convert) else None
        if isinstance(found, int) and self._tokenizing.names([found]) == (token,):
            return found
        ids = self._tokenizing.plain(token)
        if len(ids) != 1:
            raise TargetError(
                f"target {token!r} is {len(ids)} tokens and not one; pass the id of the token to explain."
            )
        return ids[0]

    def encode(
        self,
        texts: Raw | Sequence[Raw],
        *,
        features: TextFeatures = "word",
        baselines: str | int = "mask",
        explained_text: ExplainedText = "both",
    ) -> TextEncoding:
        """Return texts or pairs of texts as tensors with their words as features.

        Args:
            texts: One text, or one pair as a tuple of two; or a list of either.
            features: What one feature is: ``"word"``, ``"token"``, or a compiled pattern of one word. Special and
                padding tokens are not features.
            baselines: What replaces a removed feature: ``"mask"``, ``"unk"`` or ``"pad"`` (without a mask token the
                unknown token, then the padding token), or a token id. Special and padding tokens keep their ids.
            explained_text: The texts of a pair that provide the features: ``"both"``, ``"first"`` or ``"second"``. The
                tokens of the other text stay unchanged and share the last feature id with special tokens.

        Raises:
            TextError: A text is blank or has no word; or truncation would remove one text of a pair.
            TokenizerError: The tokenizer returns ids that the model has no embedding for, or does not support pairs.
            InputError: Not a text; invalid options; or texts of several lengths for a model whose outputs padding
                changes.
            ForwardError: The model cannot be run on tokens, or loses token types.

        Warns:
            TruncationWarning: A text exceeds the maximum length.
        """
        items = self._items(texts)
        explained = raws.texts_to_explain(explained_text, items)
        raws.check_features(features)
        baseline = baseline_token(self._tokenizing, baselines, self.pad_id)
        rows = []
        for i, item in enumerate(items):
            raws.check_not_blank(item, i)
            rows.append(pair_tokens(self._tokenizing, item) if is_pair(item) else self._tokenizing.tokens(str(item)))
            raws.warn_cut(rows[-1], i, self.max_length)
        longest = max(len(row.ids) for row in rows)
        batching = self.batching(rows)
        check_one_batch(self.model, self._binding, rows, batching)
        side = batching.side or "right"
        ids, forward_args = self._tensors(rows, longest, side)
        words, text_indices, feature_mask = features_of(rows, ids, features, explained, left=side == "left")
        is_feature = feature_mask < max(len(w) for w in words)
        tokens = tuple(self._tokenizing.names(row) for row in ids.tolist())
        return TextEncoding(
            inputs=ids,
            forward_args=forward_args,
            baselines=torch.where(is_feature, torch.full_like(ids, baseline), ids),
            feature_mask=feature_mask,
            feature_names=names_of(words) if features != "token" else names_of_tokens(tokens, is_feature),
            texts=tuple(row.texts if is_pair(row.texts) else row.texts[0] for row in rows),
            tokens=tokens,
            words=words,
            text_indices=text_indices,
            token_spans=tuple(spans_of(row, longest, left=side == "left") for row in rows),
        )

    def outputs(self, raw: Raw | Sequence[Raw], *, show_progress: bool = False) -> Array:
        """Return the model's outputs for texts or pairs, (n, columns) float64, in eval mode and without gradients.

        Equal texts run once, texts of similar length run together, and no batch is larger than ``batch_tokens``.

        Args:
            raw: One text or pair, or several; they may be empty.
            show_progress: Show a progress bar over the distinct texts.

        Raises:
            InputError: The model predicts for each token, or there are no texts.
        """
        return scores_of_texts(self, raw, self._run, show_progress=show_progress)

    def _of_class(self, raw: Any, target: Any, unit: Unit, show_progress: bool) -> Array:
        if self.task != "next_token":
            return super()._of_class(raw, target, unit, show_progress)
        of_class = partial(self.token_scores, target=target, unit=unit)
        return scores_of_texts(self, raw, of_class, show_progress=show_progress)

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        rows = self.token_rows(self._items(raw)[:1])
        ids, forward_args = self._tensors(rows, len(rows[0].ids), "right")
        return (ids, *forward_args)

    def _items(self, raw: Any) -> list[Raw]:
        """Return the texts or pairs as a list; raise if the model cannot take them."""
        items = raws.as_list(raw)
        if self.task == "next_token" and is_pair(items[0]):
            raise InputError(
                f"{type(self.model).__name__} continues one text (task='next_token') and cannot take a pair; join the "
                "two, or pass several texts as a list."
            )
        return items
