"""`LimeText`: the official text LIME over words, tokens or any feature mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from captum_attn_lime._explained import Output
from captum_attn_lime.adapters import TextEncoding
from captum_attn_lime.adapters.text._words import Span
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime._base import Array, check_samples, explained_numbers
from captum_attn_lime.lime._draws import text_masks
from captum_attn_lime.lime._masked import LimeMasks
from captum_attn_lime.lime._text_input import OneText, TextInput, text_input_of
from captum_attn_lime.lime._units import TextFeatures, UnitText, lime_string, split_spans
from captum_attn_lime.perturb._masks import Masks
from captum_attn_lime.perturb._text import Removal

if TYPE_CHECKING:
    from captum_attn_lime.lime._result import LimeExplanation


class LimeText(LimeMasks):
    """The ``LimeTextExplainer`` of the official lime package as a Captum attribution.

    :meth:`attribute` replaces features of a feature mask by baselines, as Captum's methods do. :meth:`explain` deletes
    words from the text, as lime does, and returns lime's ``Explanation``. Samples, kernel and distances are those of
    the official explainer, random number for random number, and lime's ``LimeBase`` fits the weights.

    :meth:`explain` removes features as follows:

    ================== ==================================================================================
    ``removal``        how a removed feature's tokens change
    ================== ==================================================================================
    None               with ``features="lime"`` lime's way: words are deleted from the text, or replaced by
                       ``mask_string`` with ``bow=False``; with other features as ``"delete"``
    ``"delete"``       they are deleted from the encoded text, and later tokens move up
    ``"mask"``         the adapter's baseline token, by default the mask token, replaces each
    ``"pad"``          the padding token replaces each
    ``"attention"``    the attention mask hides them, as it hides padding
    ================== ==================================================================================

    With None and lime's features tokens are deleted too, where that equals tokenizing each perturbed text: with
    tokenizers whose words do not depend on their neighbours, such as BERT's. This is checked on each text; where it
    fails (byte pairs, SentencePiece), the perturbed texts are tokenized.

    Args:
        forward_func: A ``TextAdapter``; for :meth:`attribute` any function of tensors.
        class_names: Names of the classes in explanations; by default the adapter's.
        kernel_width: Width of lime's kernel over distances (x 100).
        split_expression: For :meth:`explain`: regular expression between words, or a function from text to words.
        bow: For :meth:`explain`: whether all occurrences of a word are one feature.
        mask_string: For :meth:`explain`: the replacement of a word with ``bow=False``.
        features: For :meth:`explain`: the features. ``"lime"``: lime's words, by ``split_expression``; ``"word"``: the
            adapter's words, with punctuation, emoji, and the tokens of scripts without spaces; ``"token"``: each token;
            a compiled pattern of one feature; or a function from the text to its features in order (substrings, or
            pairs of start and end). Features without a token are dropped.
        removal: For :meth:`explain`: ``"delete"``, ``"mask"``, ``"pad"`` or ``"attention"``; see above.
        distance_metric: Distance between masks, one of scikit-learn's.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Seed of each call's random numbers, so that equal calls return equal results.

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?", KDD 2016.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> lime = LimeText(lambda x: x.sum(dim=1, keepdim=True))
        >>> lime.attribute(x, target=0, n_samples=5000).round(decimals=1)
        tensor([[1., 2., 3.]])
    """

    _draw, _scale, _batch = staticmethod(text_masks), 100.0, 64

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        class_names: Sequence[str] | None = None,
        kernel_width: float = 25,
        split_expression: str | Callable[[str], Sequence[str]] = r"\W+",
        bow: bool = True,
        mask_string: str | None = None,
        features: TextFeatures = "lime",
        removal: Removal | None = None,
        distance_metric: str = "cosine",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            forward_func,
            kernel_width=kernel_width,
            distance_metric=distance_metric,
            model_regressor=model_regressor,
            seed=seed,
        )
        _check_features(features, removal, bow=bow, has_mask_string=mask_string is not None)
        self.class_names = class_names
        self.split_expression = split_expression
        self.bow = bow
        self.mask_string = mask_string
        self.features: TextFeatures = features
        self.removal: Removal | None = removal

    def explain(
        self,
        text: str | tuple[str, str] | TextEncoding,
        target: int | str | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        top_labels: int | None = None,
        explained_text: OneText | None = None,
        num_samples: int = 5000,
        num_features: int | None = None,
        output: Output = "probability",
        seed: int | None = None,
        show_progress: bool = False,
    ) -> LimeExplanation:
        """Explain a text as lime does.

        Texts that are too long are truncated first; otherwise deleting words would bring words into view that the model
        never saw.

        Args:
            text: The text, or a pair of texts as a tuple, of which one is explained; or an encoding of one, whose words
                are then the features.
            target: The class, by index or name, by default the predicted one; or the output of a regression with
                several. For a language model the next token: its explanation has two classes, label 1 for this token
                and 0 for any other.
            labels: Several classes instead of a target, from the same samples. Not for language models.
            top_labels: Number of classes with the highest scores, instead of a target.
            explained_text: The text of a pair to explain, ``"first"`` or ``"second"``; the other is not perturbed.
            num_samples: Number of perturbed texts.
            num_features: Largest number of words, which lime selects and fits again; all by default.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                single logit z the logits of the two classes are -z and z. Regressions always explain the prediction.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a progress bar over the distinct texts that the model runs on.

        Returns:
            :class:`LimeExplanation`; :func:`word_weights` and :func:`token_weights` convert it to the adapter's words
            and tokens.

        Raises:
            TextError: The text has no word, or none by ``split_expression`` or ``features``.
            TargetError: The model has no such class.
            InputError: The model predicts for each token: use :meth:`attribute`, which masks words in place. Or the
                model or the adapter does not support this removal.

        Warns:
            LimeWarning: The explanation is less reliable than it looks; ``diagnostics.warnings`` says why.
        """
        from captum_attn_lime.lime._html import TextMapper
        from captum_attn_lime.lime._result import LimeExplanation

        check_samples(num_samples, num_features)
        text_input, spans = text_input_of(
            self.forward_func,
            text,
            explained_text,
            output,
            features="token" if self.features == "token" else "word",
            show_progress=show_progress,
        )
        string, text_input = self._features_of(text_input, spans)
        scorer, original = text_input.original()
        names = None if text_input.is_next_token else self.class_names
        choice = dict(target=text_input.token_id(target), labels=labels, top_labels=top_labels)
        numbers = explained_numbers(
            text_input.adapter, original[0], text_input.unit, names, text_input.tensors, **choice
        )
        if text_input.is_next_token:
            text_input, numbers = text_input.for_token(numbers)
            original = text_input.two_columns(original[:, [numbers[0].column]])
        copies = text_input.copies(scorer, numbers[0])

        def scores(kept: Masks) -> Array:
            if copies is None:
                return text_input.scores([string.inverse_removing(np.flatnonzero(~row)) for row in kept])
            return text_input.scores_of_masks(copies, kept, original)

        seed = self.seed if seed is None else seed
        words = [str(string.word(k)) for k in range(string.num_words())]
        by_label = {text_input.label(one): one for one in numbers}
        is_cut = not isinstance(text, TextEncoding) and text_input.seen != text
        fits = self._fits(scores, words, num_samples, seed, by_label, num_features=num_features, is_cut=is_cut)
        return LimeExplanation(
            TextMapper(string),
            fits,
            feature_names=words,
            class_scores=original[0],
            class_names=text_input.names(self.class_names, original.shape[1]),
            seed=seed,
            text=text_input.seen,
            explained_text=text_input.explained_text,
            token=text_input.token,
        )

    def _features_of(self, text_input: TextInput, spans: Sequence[Span] | None) -> tuple[Any, TextInput]:
        """Return the text with its features, and the input to perturb: its tokens or its text.

        Args:
            text_input: The input.
            spans: The spans of an encoding's features; None for a raw text.
        """
        if spans is not None and self.mask_string is not None:
            raise InputError(
                "mask_string replaces lime's words, but an encoding has the adapter's; pass the text or removal='mask'."
            )
        if spans is None and self.features == "lime":
            string = lime_string(text_input.text, self.split_expression, bow=self.bow, mask_string=self.mask_string)
            if self.removal is None:
                return string, text_input.on_tokens_if_exact(string)
            return string, text_input.on_tokens(string, self.removal)
        if spans is None and self.features in ("word", "token"):
            spans = [(word.start, word.end) for word in text_input.encoding.words[0]]
        elif spans is None:
            how: Any = self.features
            spans = text_input.with_tokens(split_spans(text_input.text, how))
        string = UnitText(text_input.text, list(dict.fromkeys(spans)), bow=self.bow)
        return string, text_input.on_tokens(string, self.removal or "delete")


def _check_features(features: Any, removal: Any, *, bow: bool, has_mask_string: bool) -> None:
    """Raise InputError for invalid combinations of ``features``, ``removal``, ``bow`` and ``mask_string``."""
    if isinstance(features, str) and features not in ("lime", "word", "token"):
        raise InputError(
            f"features must be 'lime', 'word', 'token', a compiled pattern of one feature or a function from text to "
            f"features, but is {features!r}; for a regular expression pass re.compile({features!r})."
        )
    if not isinstance(features, (str, re.Pattern)) and not callable(features):
        raise InputError(
            f"features must be 'lime', 'word', 'token', a pattern or a function, not {type(features).__name__}."
        )
    if removal is not None and removal not in get_args(Removal):
        raise InputError(f"removal must be None or one of {', '.join(map(repr, get_args(Removal)))}, not {removal!r}.")
    if has_mask_string and bow:
        raise InputError("mask_string replaces words only with bow=False (lime would ignore it); pass bow=False.")
    if has_mask_string and (features != "lime" or removal is not None):
        raise InputError("mask_string requires features='lime' and removal=None; leave it, or these, out.")
