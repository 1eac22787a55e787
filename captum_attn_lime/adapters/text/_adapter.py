"""`TextAdapter`: a model over texts as a Captum forward function and a lime classifier function."""

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
    """A model over texts, ready for Captum and for lime.

    It wraps HuggingFace models and any module over token ids, also in a wrapper (compiled, data-parallel, averaged,
    LoRA, ``forward(**kwargs)``, ``forward(batch)`` of a dictionary). Arguments are bound by name. Padding goes to the
    tokenizer's ``padding_side``. Whether it changes the model's answers is tried out on the first texts of several
    lengths; where it does so on that side it goes to the other, and where it does so on both, or the module takes no
    mask, texts run without padding. A text that has no token at all, as lime makes them, stands as one bos, eos,
    unknown or padding token, the first of these that the tokenizer has.

    What a call returns, and what Captum's ``target`` is, depends on the task:

    ================== ======================== ==================================================================
    task               the adapter returns      target
    ================== ======================== ==================================================================
    "classification"   (n, classes)             class
    "tokens"           (n, N, classes)          (position, class)
    "spans"            (n, N, 2)                (position, 0) for the start of the answer, (position, 1) for its end
    "next_token"       (n, vocabulary)          token id; read at each row's last real token
    ================== ======================== ==================================================================

    :meth:`TextEncoding.find` and :meth:`TextEncoding.positions` give positions. At padding the numbers of "tokens" and
    "spans" mean nothing. :meth:`logits` and :meth:`predict_proba` are for the other two tasks. Of "next_token" they
    hold 8 bytes for each text and token of the vocabulary, and with ``target`` 8 bytes a text.

    Args:
        model: The model. It returns a tensor, a tuple that begins with it, or ``.logits``; for "spans" an object with
            ``.start_logits`` and ``.end_logits``, a tuple of both, or a tensor (n, N, 2).
        tokenizer: A HuggingFace tokenizer with character offsets (a fast one), a :class:`WordTokenizer`, or an object
            with ``spans(text) -> (ids, character spans)``. For "next_token", special tokens that it puts at a text's
            end are left out.
        task: What the model predicts; by default what the HuggingFace class, also in a wrapper, is made for, and
            "classification" for a model written by hand.
        class_names: Names of the classes; by default those of the model's configuration.
        max_length: Greatest number of tokens, special tokens included; by default the lesser of what the tokenizer and
            the model's positions allow.
        batch_tokens: Greatest number of tokens, padding included, that :meth:`predict_proba` runs at once. Short
            texts share a batch, and a longer text runs alone.
        forward_names: Role to parameter name, where the model's parameter names do not tell: ``"input_ids"``,
            ``"attention_mask"`` (1 at real tokens), ``"padding_mask"`` (True at padding), ``"token_type_ids"``. None
            for a role that is not to be given.
        outputs: What the model puts out: ``"logits"``, ``"probabilities"`` (it ends in softmax or sigmoid) or
            ``"predictions"`` (a regression); by default that is found out.

    Attributes:
        pad_id: The token id that fills up a batch.
        mask_id: The token id that stands in for a removed word, unless :meth:`encode` is given another one.

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
        """Greatest number of tokens of one text, special tokens included; None for no limit."""
        return self._tokenizing.max_length

    @property
    def embedding(self) -> nn.Module:
        """The layer that embeds the token ids, for Captum's layer methods.

        An encoder-decoder embeds a text twice, and this is the encoder's layer: what the decoder reads stays as it is,
        so that integrated gradients over this layer do not add up to the difference between text and baselines.

        Raises:
            SelectionError: It is not to be found.
        """
        return self._facts.embedding(self)

    def class_name(self, index: int) -> str:
        """Return the name of a class: its token where the classes are the vocabulary, its number if it has none."""
        if self.class_names is not None:
            return self.class_names[index]
        return self._tokenizing.names([index])[0] if self._head.is_over_vocabulary(self.model) else str(index)

    def with_token_ids(self, target: Any) -> Any:
        """Return a target in which the text of a token is its id, where the classes are a vocabulary."""
        if not self._head.is_over_vocabulary(self.model):
            return target
        if isinstance(target, (tuple, list)):
            return type(target)(self.with_token_ids(one) for one in target)
        return self.token_id(target) if isinstance(target, str) else target

    def token_id(self, token: str) -> int:
        """Return the id of a token of the vocabulary, as the tokenizer writes it or as the text has it.

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
                padding tokens are no features.
            baselines: What stands in for a removed feature: ``"mask"``, ``"unk"`` or ``"pad"`` (where the tokenizer
                has no mask token the unknown token stands in, then the padding token), or a token id. Special and
                padding tokens keep their own ids.
            explained_text: Of pairs, the texts that give the features: ``"both"``, ``"first"`` or ``"second"``. The
                tokens of the other text stay as they are and share the last feature id, as special tokens do.

        Raises:
            TextError: A text is blank or has no word; or a pair has so little room that one of its texts would vanish.
            TokenizerError: The tokenizer gives ids that the model has no embedding for, or takes no pairs.
            InputError: Not a text; options that do not fit; or texts of several lengths for a model whose answers
                padding changes.
            ForwardError: The model does not run on tokens in any way that is known, or loses token types.

        Warns:
            TruncationWarning: A text is longer than the model takes.
        """
        items = self._items(texts)
        explained = raws.texts_to_explain(explained_text, items)
        raws.check_features(features)
        stand_in = baseline_token(self._tokenizing, baselines, self.pad_id)
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
            baselines=torch.where(is_feature, torch.full_like(ids, stand_in), ids),
            feature_mask=feature_mask,
            feature_names=names_of(words) if features != "token" else names_of_tokens(tokens, is_feature),
            texts=tuple(row.texts if is_pair(row.texts) else row.texts[0] for row in rows),
            tokens=tokens,
            words=words,
            text_indices=text_indices,
            token_spans=tuple(spans_of(row, longest, left=side == "left") for row in rows),
        )

    def outputs(self, raw: Raw | Sequence[Raw], *, show_progress: bool = False) -> Array:
        """Return what the model puts out for texts or pairs, (n, columns) float64, in eval mode, without gradients.

        Equal texts run once, texts of similar length run together, and no batch is larger than ``batch_tokens``.

        Args:
            raw: One text or pair, or several; they may be empty.
            show_progress: Show a bar over the texts that run.

        Raises:
            InputError: The model predicts for each token, or no texts came.
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
        """Return the texts or pairs as a list, if the model takes them."""
        items = raws.as_list(raw)
        if self.task == "next_token" and is_pair(items[0]):
            raise InputError(
                f"a pair came, but {type(self.model).__name__} continues one text (task='next_token'); join the two, "
                "or pass several texts as a list."
            )
        return items
