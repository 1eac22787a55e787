"""`LimeText`: the official text LIME over words, tokens or any feature mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime._progress import progress
from captum_attn_lime.errors import InputError, TextError
from captum_attn_lime.features import spread
from captum_attn_lime.lime.base import check_count, class_of, result_dtype, settled, target_scalars
from captum_attn_lime.lime.explanations import explanation_weights
from captum_attn_lime.lime.masked import IndexTexts, Removable
from captum_attn_lime.lime.subject import Output, Segment, subject_of


class LimeText(PerturbationAttribution):  # type: ignore[misc]
    """The ``LimeTextExplainer`` of the official lime package as a Captum attribution.

    :meth:`attribute` perturbs what Captum's own methods perturb: the features of a feature mask, in place, by
    baselines. Sampling, kernel, distances and the fit are the official explainer's; it is handed a text of feature
    numbers, ``"0 1 2 ..."``, and the numbers that it leaves in become masks. :meth:`explain` is lime as it is known:
    words are deleted from the raw text, and the result is lime's own ``Explanation``.

    Args:
        forward_func: A ``TextAdapter``; for :meth:`attribute` any function of tensors.
        class_names: Names of the classes in explanations; by default the adapter's.
        kernel_width: Width of lime's kernel over distances (x 100).
        split_expression: For :meth:`explain`: regular expression between words, or a function from text to words.
        bow: For :meth:`explain`: whether all occurrences of a word are one feature, and are removed together.
        mask_string: For :meth:`explain`: what replaces a word with ``bow=False``.
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
        distance_metric: str = "cosine",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        if not callable(forward_func):
            raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")
        if mask_string is not None and bow:
            raise InputError("mask_string replaces words only with bow=False (lime would ignore it); pass bow=False.")
        super().__init__(forward_func)
        self.class_names = class_names
        self.kernel_width = kernel_width
        self.split_expression = split_expression
        self.bow = bow
        self.mask_string = mask_string
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
        scalars = target_scalars(self.forward_func, tensors, target, additional_forward_args)
        with settled(self.forward_func), progress(len(scalars) * n_samples, show_progress, "LimeText") as tick:
            for i, scalar in enumerate(scalars):
                example = IndexTexts(problem.example(i), scalar, perturbations_per_eval, tick)
                weights[i] = self._fit(example, n_samples)
        out = weights.to(tensors[0].device, result_dtype(tensors))
        return format_output(isinstance(inputs, tuple), spread(out, problem.ids)) if return_input_shape else out

    def explain(
        self,
        text: str | tuple[str, str],
        target: int | None = None,
        *,
        segment: Segment | None = None,
        num_samples: int = 5000,
        num_features: int | None = None,
        output: Output = "probability",
        seed: int | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Explain a raw text as lime does, and return lime's own ``Explanation``.

        Words are deleted from the part of the text that the model sees: a text that is too long is cut first, or
        deleting would draw words into view that the model never saw.

        Args:
            text: The text, or a pair of texts as a tuple, of which one is explained.
            target: The class; the predicted one by default. For a language model the id of the next token: its
                explanation has two classes, label 1 for this token and 0 for any other.
            segment: ``"first"`` or ``"second"``: the text of a pair to explain, while the other stays as it is.
            num_samples: Number of perturbed texts.
            num_features: Greatest number of words; lime selects them and fits again. All by default.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                model with a single logit z the logits of the two classes are -z and z.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a bar over the distinct texts that the model runs on.

        Returns:
            ``lime.explanation.Explanation``; :func:`word_weights` brings it to the adapter's words.

        Raises:
            TextError: The text has no word, or none by ``split_expression``.
            TargetError: The model does not have that class.
            InputError: The model predicts for each token: use :meth:`attribute`, which masks words in place.
        """
        check_count("num_samples", num_samples, 2)
        if num_features is not None:
            check_count("num_features", num_features, 1)
        subject = subject_of(self.forward_func, text, segment, output, show_progress=show_progress)
        self._check_units(subject.text)
        chosen = class_of(target, subject.scores([subject.text])[0])
        if subject.is_next_token:
            subject = subject.about(chosen)
        explainer = self._explainer(
            self.seed if seed is None else seed,
            class_names=subject.names(self.class_names),
            feature_selection="none" if num_features is None else "auto",
            split_expression=self.split_expression,
            bow=self.bow,
            mask_string=self.mask_string,
        )
        explanation = explainer.explain_instance(
            subject.text,
            subject.scores,
            labels=(subject.label(chosen),),
            num_features=10 if num_features is None else num_features,
            num_samples=num_samples,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        return subject.mark(explanation, chosen)

    def _fit(self, texts: IndexTexts, n_samples: int) -> Tensor:
        """Return the weight of each feature of one example, (features,) float64."""
        active = texts.example.active[0].cpu()
        weights = torch.zeros(len(active), dtype=torch.float64)
        features = active.nonzero().flatten()
        if not len(features):
            texts.tick(n_samples)
            return weights
        explanation = self._explainer(self.seed, feature_selection="none").explain_instance(
            texts.text(),
            texts.scores,
            labels=(0,),
            num_samples=n_samples,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        for k, weight in explanation_weights(explanation, 0).items():
            weights[features[k]] = weight
        return weights

    def _explainer(self, seed: int, **options: Any) -> Any:
        from lime.lime_text import LimeTextExplainer

        return LimeTextExplainer(kernel_width=self.kernel_width, random_state=seed, **options)

    def _check_units(self, text: str) -> None:
        from lime.lime_text import IndexedString

        if not IndexedString(text, split_expression=self.split_expression, bow=self.bow).num_words():
            raise TextError(
                f"the text {text[:40]!r} has no word between matches of split_expression {self.split_expression!r}; "
                "pass another split_expression, or use attribute, which takes the adapter's words."
            )
