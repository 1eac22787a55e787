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

    :meth:`attribute` perturbs what Captum's own methods perturb: the features of a feature mask, in place, by
    baselines. Samples, kernel and distances are those of the official explainer, random number for random number, and
    lime's ``LimeBase`` fits. :meth:`explain` is lime as it is known: words are deleted from the text, and the result is
    lime's ``Explanation``.

    How :meth:`explain` perturbs:

    ================== ==================================================================================
    ``removal``        what becomes of a removed feature's tokens
    ================== ==================================================================================
    None               with ``features="lime"`` what lime does to the text: words are deleted, or replaced by
                       ``mask_string`` with ``bow=False``; with other features as ``"delete"``
    ``"delete"``       they are left out of the encoded text, and what follows moves up
    ``"mask"``         the adapter's baseline token, by default the mask token, stands in each one's place
    ``"pad"``          the padding token stands in each one's place
    ``"attention"``    they stay, and the attention mask hides them, as it hides padding
    ================== ==================================================================================

    With None and lime's features the tokens are left out, too, where that gives exactly what tokenising each perturbed
    text gives: with tokenizers whose words do not depend on their neighbours, as BERT's. This is tried out on the
    text, and where it does not hold (byte pairs, SentencePiece) the perturbed texts are tokenised.

    Args:
        forward_func: A ``TextAdapter``; for :meth:`attribute` any function of tensors.
        class_names: Names of the classes in explanations; by default the adapter's.
        kernel_width: Width of lime's kernel over distances (x 100).
        split_expression: For :meth:`explain`: regular expression between words, or a function from text to words.
        bow: For :meth:`explain`: whether all occurrences of a word are one feature, and are removed together.
        mask_string: For :meth:`explain`: what replaces a word with ``bow=False``.
        features: For :meth:`explain`: what is removed. ``"lime"``: lime's own words, by ``split_expression``;
            ``"word"``: the adapter's words, among which are signs and emoji, and the tokens of scripts without spaces;
            ``"token"``: each token; a compiled pattern of one feature; or a function from the text to its features in
            order (substrings, or pairs of start and end). Features without a token are left out.
        removal: For :meth:`explain`: ``"delete"``, ``"mask"``, ``"pad"`` or ``"attention"``; see above.
        distance_metric: Distance between masks, a name that scikit-learn knows.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Every call starts its random numbers here, so that equal calls give equal results.

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

        Words are deleted from the part of the text that the model sees: a text that is too long is cut first, or
        deleting would draw words into view that the model never saw.

        Args:
            text: The text, or a pair of texts as a tuple, of which one is explained; or an encoding of one, whose words
                are then the features.
            target: The class, by its index or name; the predicted one by default. For a language model the next
                token: its explanation has two classes, label 1 for this token and 0 for any other. Of a regression
                with several outputs one of these.
            labels: Several classes, in the place of a target, all from the same samples. Not for language models.
            top_labels: So many classes with the highest scores, in the place of a target.
            explained_text: ``"first"`` or ``"second"``: the text of a pair to explain, while the other stays.
            num_samples: Number of perturbed texts.
            num_features: Greatest number of words; lime selects them and fits again. All by default.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                model with a single logit z the logits of the two classes are -z and z. A regression has its prediction
                in either case.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a bar over the distinct texts that the model runs on.

        Returns:
            :class:`LimeExplanation`; :func:`word_weights` and :func:`token_weights` bring it to the adapter's words and
            tokens.

        Raises:
            TextError: The text has no word, or none by ``split_expression`` or ``features``.
            TargetError: The model does not have that class.
            InputError: The model predicts for each token: use :meth:`attribute`, which masks words in place. Or the
                model or the adapter does not allow this removal.

        Warns:
            LimeWarning: The explanation says less than it seems to; ``diagnostics.warnings`` says why.
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
        answers, original = text_input.original()
        names = None if text_input.is_next_token else self.class_names
        choice = dict(target=text_input.token_id(target), labels=labels, top_labels=top_labels)
        numbers = explained_numbers(
            text_input.adapter, original[0], text_input.unit, names, text_input.tensors, **choice
        )
        if text_input.is_next_token:
            text_input, numbers = text_input.about(numbers)
            original = text_input.two_columns(original[:, [numbers[0].column]])
        copies = None if answers is None else text_input.copies(answers, numbers[0])

        def scores(kept: Masks) -> Array:
            if copies is None:
                return text_input.scores([string.inverse_removing(np.flatnonzero(~row)) for row in kept])
            return text_input.scores_of_masks(copies, kept, original)

        seed = self.seed if seed is None else seed
        words = [str(string.word(k)) for k in range(string.num_words())]
        own = {text_input.label(one): one for one in numbers}
        is_cut = not isinstance(text, TextEncoding) and text_input.seen != text
        fits = self._fits(scores, words, num_samples, seed, own, num_features=num_features, is_cut=is_cut)
        return LimeExplanation(
            TextMapper(string),
            fits,
            feature_names=words,
            answers=original[0],
            class_names=text_input.names(self.class_names, original.shape[1]),
            seed=seed,
            text=text_input.seen,
            explained_text=text_input.explained_text,
            token=text_input.token,
        )

    def _features_of(self, text_input: TextInput, spans: Sequence[Span] | None) -> tuple[Any, TextInput]:
        """Return the text with its features, and the text_input with what is perturbed: its tokens or its text.

        Args:
            text_input: The text.
            spans: Where the features of an encoding stand; None of a raw text.
        """
        if spans is not None and self.mask_string is not None:
            raise InputError(
                "mask_string replaces lime's words, and an encoding has its own; pass the text, or removal='mask'."
            )
        if spans is None and self.features == "lime":
            string = lime_string(text_input.text, self.split_expression, bow=self.bow, mask_string=self.mask_string)
            if self.removal is None:
                return string, text_input.as_lime_does(string)
            return string, text_input.on_tokens(string, self.removal)
        if spans is None and self.features in ("word", "token"):
            spans = [(word.start, word.end) for word in text_input.encoding.words[0]]
        elif spans is None:
            how: Any = self.features
            spans = text_input.with_tokens(split_spans(text_input.text, how))
        string = UnitText(text_input.text, list(dict.fromkeys(spans)), bow=self.bow)
        return string, text_input.on_tokens(string, self.removal or "delete")


def _check_features(features: Any, removal: Any, *, bow: bool, has_mask_string: bool) -> None:
    """Raise where the options that say what is removed, and how, do not go together."""
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
        raise InputError("mask_string is lime's way to remove words: it goes with features='lime' and removal=None.")
