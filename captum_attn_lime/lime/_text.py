"""`LimeText`: the official text LIME over words, tokens or any feature mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._explained import Output
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime._util.progress import progress
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import spread
from captum_attn_lime.lime._base import Array, check_count, chosen, result_dtype, settled, target_scalars
from captum_attn_lime.lime._diagnostics import About
from captum_attn_lime.lime._explainer import explain_masks, text_explainer
from captum_attn_lime.lime._explanations import explanation_weights, shown
from captum_attn_lime.lime._index_text import Removal
from captum_attn_lime.lime._masked import MaskedExample, Removable
from captum_attn_lime.lime._replicates import MAX_SAMPLES, NumSamples, Plan
from captum_attn_lime.lime._steady_padding import with_steady_padding
from captum_attn_lime.lime._subject import Segment, Subject, subject_of
from captum_attn_lime.lime._units import Units, UnitText, lime_string, split_spans


class LimeText(PerturbationAttribution):  # type: ignore[misc]
    """The ``LimeTextExplainer`` of the official lime package as a Captum attribution.

    :meth:`attribute` perturbs what Captum's own methods perturb: the features of a feature mask, in place, by
    baselines. Sampling, kernel, distances and the fit are the official explainer's, and so are the random numbers; it
    is handed features in the place of words, and the masks that it draws go to the model. :meth:`explain` is lime as
    it is known: words are deleted from the text, and the result is lime's own ``Explanation``.

    How :meth:`explain` perturbs:

    ================== ==================================================================================
    ``removal``        what becomes of a removed unit's tokens
    ================== ==================================================================================
    None               with ``units="lime"`` what lime does to the text: words are deleted, or replaced by
                       ``mask_string`` with ``bow=False``; with other units as ``"delete"``
    ``"delete"``       they are left out of the encoded text, and what follows moves up
    ``"mask"``         the adapter's baseline token, by default the mask token, stands in each one's place
    ``"pad"``          the padding token stands in each one's place
    ``"attention"``    they stay, and the attention mask hides them, as it hides padding
    ================== ==================================================================================

    With None and lime's units the tokens are left out, too, where that gives exactly what tokenising each perturbed
    text gives: with tokenizers whose words do not depend on their neighbours, as BERT's. This is tried out on the
    text, and where it does not hold (byte pairs, SentencePiece) the perturbed texts are tokenised.

    Args:
        forward_func: A ``TextAdapter``; for :meth:`attribute` any function of tensors.
        class_names: Names of the classes in explanations; by default the adapter's.
        kernel_width: Width of lime's kernel over distances (x 100).
        split_expression: For :meth:`explain`: regular expression between words, or a function from text to words.
        bow: For :meth:`explain`: whether all occurrences of a word are one feature, and are removed together.
        mask_string: For :meth:`explain`: what replaces a word with ``bow=False``.
        units: For :meth:`explain`: what is removed. ``"lime"``: lime's own words, by ``split_expression``;
            ``"tokenizer"``: the adapter's words, among which are signs and emoji, and the tokens of scripts without
            spaces; a compiled pattern of one unit; or a function from the text to its units in order (substrings, or
            pairs of start and end). Units without a token are left out.
        removal: For :meth:`explain`: ``"delete"``, ``"mask"``, ``"pad"`` or ``"attention"``; see above.
        distance_metric: Distance between masks, a name that scikit-learn knows.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Every call starts its random numbers here, so that equal calls give equal results.

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?", KDD 2016.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> lime = LimeText(lambda x: x.sum(dim=1, keepdim=True))
        >>> lime.attribute(x, target=0, n_samples=5000).round(decimals=1)
        tensor([[1., 2., 3.]])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        class_names: Sequence[str] | None = None,
        kernel_width: float = 25,
        split_expression: str | Callable[[str], Sequence[str]] = r"\W+",
        bow: bool = True,
        mask_string: str | None = None,
        units: Units = "lime",
        removal: Removal | None = None,
        distance_metric: str = "cosine",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        if not callable(forward_func):
            raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")
        _check_units(units, removal, bow=bow, has_mask_string=mask_string is not None)
        super().__init__(forward_func)
        self.class_names = class_names
        self.kernel_width = kernel_width
        self.split_expression = split_expression
        self.bow = bow
        self.mask_string = mask_string
        self.units: Units = units
        self.removal: Removal | None = removal
        self.distance_metric = distance_metric
        self.model_regressor = model_regressor
        self.seed = seed

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        n_samples: int = 1000,
        perturbations_per_eval: int = 64,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        r"""Fit lime's linear model to the forward function around each example.

        What is explained is the forward function's own output (logits, for an adapter). Each example is explained by
        itself, with its own row of the additional arguments. Every cell carries the weight of its feature. Features
        whose cells all equal the baseline (special and padding tokens of an encoding) cannot be removed: exactly 0.

        Args:
            inputs: A tensor or a tuple of tensors, (B, ...).
            baselines: What takes the place of a removed feature's cells: tensors of the inputs' shapes or with one
                row, numbers, or a tuple of these; 0 by default. For token ids that is id 0, so pass the encoding's.
            target: Index of the output to explain, in any of Captum's forms.
            additional_forward_args: Further positional arguments of the forward function.
            feature_mask: Feature ids from 0; by default each position along dimension 1 is a feature.
            n_samples: Number of perturbed samples an example; 10 to 15 a feature for a steady ranking.
            perturbations_per_eval: Number of samples in one forward pass.
            return_input_shape: Whether to return the inputs' shapes; else (B, features).
            show_progress: Whether to show a progress bar.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, in the shape of the inputs.

        Raises:
            TargetError: The output does not have the target.
            InputError: Baselines or feature mask do not fit the inputs.
        """
        check_count("n_samples", n_samples, 2)
        check_count("perturbations_per_eval", perturbations_per_eval, 1)
        tensors = as_tuple(inputs)
        problem = Removable.of(tensors, baselines, feature_mask)
        weights = torch.zeros(problem.active.shape, dtype=torch.float64)
        total = len(weights) * n_samples
        with settled(self.forward_func) as function, progress(total, show_progress, "LimeText") as tick:
            scalars = target_scalars(function, tensors, target, additional_forward_args)
            for i, scalar in enumerate(scalars):
                own, asked = with_steady_padding(self.forward_func, problem.example(i), scalar)
                example = MaskedExample(own, asked, perturbations_per_eval, tick)
                weights[i] = self._fit(example, n_samples)
        out = weights.to(tensors[0].device, result_dtype(tensors))
        return format_output(isinstance(inputs, tuple), spread(out, problem.ids)) if return_input_shape else out

    def explain(
        self,
        text: str | tuple[str, str],
        target: int | str | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        top_labels: int | None = None,
        segment: Segment | None = None,
        num_samples: NumSamples = 5000,
        num_features: int | None = None,
        replicates: int = 1,
        max_samples: int = MAX_SAMPLES,
        output: Output = "probability",
        seed: int | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Explain a raw text as lime does, and return lime's own ``Explanation``.

        Words are deleted from the part of the text that the model sees: a text that is too long is cut first, or
        deleting would draw words into view that the model never saw.

        Args:
            text: The text, or a pair of texts as a tuple, of which one is explained.
            target: The class, by its index or name; the predicted one by default. For a language model the next
                token: its explanation has two classes, label 1 for this token and 0 for any other. Of a regression
                with several outputs one of these.
            labels: Several classes, in the place of a target, all from the same samples. Not for language models.
            top_labels: So many classes with the highest scores, in the place of a target.
            segment: ``"first"`` or ``"second"``: the text of a pair to explain, while the other stays as it is.
            num_samples: Number of perturbed texts, or ``"auto"``: runs are added until the strongest
                ``num_features`` or 5 and their order are told apart, or ``max_samples`` are spent.
            num_features: Greatest number of words; lime selects them and fits again. All by default.
            replicates: Number of runs, each of ``num_samples`` with a seed of its own. lime fits the samples of all
                of them together, and ``diagnostics.replicates`` says how the runs agree.
            max_samples: Greatest number of samples with ``num_samples="auto"``.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                model with a single logit z the logits of the two classes are -z and z. A regression has its prediction
                in either case.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a bar over the distinct texts that the model runs on.

        Returns:
            ``lime.explanation.Explanation``; :func:`word_weights` and :func:`token_weights` bring it to the adapter's
            words and tokens. Its HTML is escaped, and it shows itself in a notebook. Its ``diagnostics``
            (:class:`Diagnostics`) say how far it can be trusted, ``all_diagnostics`` for each class, and
            ``explained`` (:class:`Explained`) is the number that is explained.

        Raises:
            TextError: The text has no word, or none by ``split_expression`` or ``units``.
            TargetError: The model does not have that class.
            InputError: The model predicts for each token: use :meth:`attribute`, which masks words in place. Or the
                model or the adapter does not allow this removal.

        Warns:
            LimeWarning: The explanation says less than it seems to; ``diagnostics.warnings`` says why.
        """
        plan = Plan(num_samples, num_features, replicates, max_samples, self.model_regressor)
        subject = subject_of(self.forward_func, text, segment, output, show_progress=show_progress)
        string, subject = self._in_units(subject)
        original = subject.original()
        names = None if subject.is_next_token else self.class_names
        choice = dict(target=subject.token_id(target), labels=labels, top_labels=top_labels)
        numbers = chosen(subject.adapter, original[0], subject.unit, names, subject.tensors, **choice)
        known: Array | None = original
        if subject.is_next_token:
            subject, numbers = subject.about(numbers)
            known = None
        how = dict(split_expression=self.split_expression, bow=self.bow, mask_string=self.mask_string)
        explainer = text_explainer(
            self.kernel_width,
            self.seed if seed is None else seed,
            class_names=subject.names(self.class_names, original.shape[1]),
            feature_selection="none" if num_features is None else "auto",
            **(how if subject.cells is None else {}),
        )
        options = dict(
            labels=tuple(subject.label(one) for one in numbers),
            num_features=10 if num_features is None else num_features,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )

        scores = plan.remembering(partial(subject.scores_of_masks, known=known))

        def run(n: int) -> Any:
            if subject.cells is None:
                return explainer.explain_instance(subject.text, subject.scores, num_samples=n, **options)
            return explain_masks(explainer, string.num_words(), scores, num_samples=n, **options)

        is_cut = subject.seen != text
        is_regression = subject.unit == "prediction"
        about = {subject.label(one): About(one, is_cut, label=1 if is_regression else None) for one in numbers}
        seed = self.seed if seed is None else seed
        names = [string.word(k) for k in range(string.num_words())]
        explanation = plan.explanation(explainer, run, features=len(names), seed=seed, about=about, names=names)
        return subject.mark(shown(explanation, string))

    def _in_units(self, subject: Subject) -> tuple[Any, Subject]:
        """Return the text with its units, and the subject with what is perturbed: its tokens or its text."""
        if self.units == "lime":
            string = lime_string(subject.text, self.split_expression, bow=self.bow, mask_string=self.mask_string)
            if self.removal is None:
                return string, subject.as_lime_does(string)
            return string, subject.on_tokens(string, self.removal)
        if self.units == "tokenizer":
            spans = [(word.start, word.end) for word in subject.encoding.words[0]]
        else:
            spans = subject.with_tokens(split_spans(subject.text, self.units))
        string = UnitText(subject.text, spans, bow=self.bow)
        return string, subject.on_tokens(string, self.removal or "delete")

    def _fit(self, example: MaskedExample, n_samples: int) -> Tensor:
        """Return the weight of each feature of one example, (features,) float64."""
        active = example.example.active[0].cpu()
        weights = torch.zeros(len(active), dtype=torch.float64)
        features = active.nonzero().flatten()
        if not len(features):
            example.tick(n_samples)
            return weights
        explanation = explain_masks(
            text_explainer(self.kernel_width, self.seed, feature_selection="none"),
            len(features),
            example.scores,
            labels=(0,),
            num_samples=n_samples,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        for k, weight in explanation_weights(explanation, 0).items():
            weights[features[k]] = weight
        return weights


def _check_units(units: Any, removal: Any, *, bow: bool, has_mask_string: bool) -> None:
    """Raise where the options that say what is removed, and how, do not go together."""
    if isinstance(units, str) and units not in ("lime", "tokenizer"):
        raise InputError(
            f"units must be 'lime', 'tokenizer', a compiled pattern of one unit or a function from text to units, but "
            f"is {units!r}; for a regular expression pass re.compile({units!r})."
        )
    if not isinstance(units, (str, re.Pattern)) and not callable(units):
        raise InputError(f"units must be 'lime', 'tokenizer', a pattern or a function, not {type(units).__name__}.")
    if removal is not None and removal not in get_args(Removal):
        raise InputError(f"removal must be None or one of {', '.join(map(repr, get_args(Removal)))}, not {removal!r}.")
    if has_mask_string and bow:
        raise InputError("mask_string replaces words only with bow=False (lime would ignore it); pass bow=False.")
    if has_mask_string and (units != "lime" or removal is not None):
        raise InputError("mask_string is lime's own way to remove words: it goes with units='lime' and removal=None.")
