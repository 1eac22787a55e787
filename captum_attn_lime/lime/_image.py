"""`LimeImage`: the official image LIME over the segments of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_attn_lime._explained import Output, Unit
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_output, log_usage
from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters._outputs import Kind
from captum_attn_lime.adapters.image._adapter import ImageAdapter, ImageEncoding
from captum_attn_lime.adapters.image._segments import Segments, patch_grid
from captum_attn_lime.errors import ForwardError, InputError
from captum_attn_lime.features import by_position, spread
from captum_attn_lime.lime._base import Array, check_count, chosen, result_dtype, settled, target_scalars, unit_of
from captum_attn_lime.lime._diagnostics import About
from captum_attn_lime.lime._explainer import Masks
from captum_attn_lime.lime._explanations import explanation_weights
from captum_attn_lime.lime._image_masks import explain_image_masks
from captum_attn_lime.lime._masked import Removable
from captum_attn_lime.lime._patches import masked_example
from captum_attn_lime.lime._replicates import MAX_SAMPLES, NumSamples, Plan

_MOST_PIXELS = 4096  # of a picture whose features nobody named, so that each pixel is one


class LimeImage(PerturbationAttribution):  # type: ignore[misc]
    """The ``LimeImageExplainer`` of the official lime package as a Captum attribution.

    Sampling, kernel, distances and the fit are the official explainer's, and so are the random numbers: a picture at
    the model's size gets the weights that the explainer gives it with the same seed. But no picture is made for each
    sample: the masks that the explainer draws go to the model's device, where removed segments are replaced in the
    normalised pixels. Where segments are made of the model's own patches, each patch is embedded once; whether that is
    the same is tried out on the first samples. :meth:`attribute` takes Captum's arguments, :meth:`explain` a picture.

    Args:
        forward_func: An ``ImageAdapter``; for :meth:`attribute` any function of tensors.
        kernel_width: Width of lime's kernel over distances.
        distance_metric: Distance between masks, a name that scikit-learn knows.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Every call starts its random numbers here, so that equal calls give equal results.

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?", KDD 2016.

    Example:
        >>> x = torch.ones(1, 3, 2, 2)
        >>> lime = LimeImage(lambda x: (x[:, :, 0] * 2 + x[:, :, 1]).sum(dim=(1, 2))[:, None])
        >>> rows = torch.tensor([[0, 0], [1, 1]]).expand(1, 3, 2, 2)
        >>> lime.attribute(x, target=0, feature_mask=rows)[0, 0].round()
        tensor([[12., 12.],
                [ 6.,  6.]])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        kernel_width: float = 0.25,
        distance_metric: str = "cosine",
        model_regressor: Any = None,
        seed: int = 0,
    ) -> None:
        if not callable(forward_func):
            raise InputError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}.")
        super().__init__(forward_func)
        self.kernel_width = kernel_width
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
        perturbations_per_eval: int = 16,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        r"""Fit lime's linear model to the forward function around each example.

        What is explained is the forward function's own output (logits, for an adapter). Each example is explained by
        itself. Every cell carries the weight of its segment. Segments whose cells all equal the baseline cannot be
        removed: exactly 0.

        Args:
            inputs: A tensor (B, C, H, W), or a tuple of tensors (B, ...).
            baselines: What takes the place of a removed segment's cells: tensors of the inputs' shapes or with one
                row, numbers, or a tuple of these; 0 by default, which is the mean colour of the normalisation.
            target: Index of the output to explain, in any of Captum's forms.
            additional_forward_args: Further positional arguments of the forward function.
            feature_mask: Segment ids from 0, as ``adapter.encode`` gives them. By default an adapter's patches; of
                other functions each pixel of a small picture, and each position along dimension 1 of other tensors.
            n_samples: Number of perturbed samples an example; 10 to 15 a segment for a steady ranking.
            perturbations_per_eval: Number of samples in one forward pass.
            return_input_shape: Whether to return the inputs' shapes; else (B, features).
            show_progress: Whether to show a progress bar.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, in the shape of the inputs.

        Raises:
            TargetError: The output does not have the target.
            InputError: Baselines or feature mask do not fit the inputs, or there is no mask for a large picture.
        """
        check_count("n_samples", n_samples, 2)
        check_count("perturbations_per_eval", perturbations_per_eval, 1)
        tensors = as_tuple(inputs)
        mask = self._default_mask(tensors) if feature_mask is None else feature_mask
        problem = Removable.of(tensors, baselines, mask)
        weights = torch.zeros(problem.active.shape, dtype=torch.float64)
        total = len(weights) * n_samples
        with settled(self.forward_func) as function, progress(total, show_progress, "LimeImage") as tick:
            scalars = target_scalars(function, tensors, target, additional_forward_args)
            for i, scalar in enumerate(scalars):
                own = problem.example(i)
                example = masked_example(self.forward_func, own, scalar, perturbations_per_eval, tick)
                features = example.example.active[0].cpu().nonzero().flatten()
                if not len(features):
                    tick(n_samples)
                    continue
                found = self._official(example.scores, len(features), [0], None, self.seed)[1](n_samples)
                for k, weight in explanation_weights(found, 0).items():
                    weights[i, features[k]] = weight
        out = weights.to(tensors[0].device, result_dtype(tensors))
        return format_output(isinstance(inputs, tuple), spread(out, problem.ids)) if return_input_shape else out

    def explain(
        self,
        image: Any,
        target: int | str | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        top_labels: int | None = None,
        segments: Segments | None = None,
        hide_color: Any = None,
        num_samples: NumSamples = 1000,
        num_features: int | None = None,
        replicates: int = 1,
        max_samples: int = MAX_SAMPLES,
        output: Output = "probability",
        seed: int | None = None,
        random_seed: int = 42,
        show_progress: bool = False,
    ) -> Any:
        """Explain a picture as lime does, and return lime's own ``ImageExplanation``.

        The picture is brought to the model's size first. Its segments are counted from 0 without gaps, whatever the
        segmentation calls them.

        Args:
            image: One picture in any form that the adapter takes, or an encoding of one, with its segments and
                baselines.
            target: The class, by its index or name; the predicted one by default. Of a regression with several
                outputs one of these; with a single one there is nothing to choose.
            labels: Several classes, in the place of a target, all from the same samples.
            top_labels: So many classes with the highest scores, in the place of a target.
            segments: As in ``ImageAdapter.encode``; by default ``"quickshift"``, as in lime.
            hide_color: What replaces removed segments: a number, a colour or a picture in the picture's own values, or
                one of the names of ``ImageAdapter.encode``; by default each segment's mean colour, as in lime.
            num_samples: Number of perturbed pictures, or ``"auto"``: runs are added until the strongest
                ``num_features`` or 5 and their order are told apart, or ``max_samples`` are spent.
            num_features: Greatest number of segments; lime selects them and fits again. All by default.
            replicates: Number of runs, each of ``num_samples`` with a seed of its own. lime fits the samples of all
                of them together, and ``diagnostics.replicates`` says how the runs agree.
            max_samples: Greatest number of samples with ``num_samples="auto"``.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                model with a single logit z the logits of the two classes are -z and z. A regression has its prediction
                in either case.
            seed: Seed of this call; the constructor's by default.
            random_seed: Seed of the segmentation; the default is scikit-image's. (lime 0.2.0.1 takes one and loses it.)
            show_progress: Show a bar over the samples.

        Returns:
            ``lime.lime_image.ImageExplanation``: the picture as ``image``, its ``segments``, and
            ``get_image_and_mask``; ``top_labels`` holds the classes that were explained. Its ``diagnostics``
            (:class:`Diagnostics`) say how far it can be trusted, ``all_diagnostics`` for each class, and
            ``explained`` (:class:`Explained`) is the number that is explained.

        Raises:
            TargetError: The model does not have that class.
            InputError: The forward function takes no pictures, or options that do not fit.

        Warns:
            LimeWarning: The explanation says less than it seems to; ``diagnostics.warnings`` says why.
        """
        plan = Plan(num_samples, num_features, replicates, max_samples, self.model_regressor)
        x = self._encoded(image, segments, hide_color, random_seed)
        n = len(x.feature_names[0])
        tensors, bases, ids = as_tuple(x.inputs), as_tuple(x.baselines), as_tuple(x.feature_mask)
        # All segments, also those that already look like what would replace them: lime draws for all.
        active = torch.arange(int(ids[0].max()) + 1, device=ids[0].device) < n
        adapter: Any = self.forward_func
        unit = unit_of(adapter, output)
        with torch.no_grad(), settled(adapter), progress(plan.total, show_progress, "LimeImage") as tick:
            outputs = adapter._run(*tensors)
            answers = _Answers(adapter, unit, adapter._kind_of(torch.from_numpy(outputs), lambda: tensors))
            numbers = chosen(
                adapter,
                answers.of(outputs)[0],
                unit,
                None,
                tensors,
                target=target,
                labels=labels,
                top_labels=top_labels,
            )
            shown = [one.column for one in numbers]
            copies = Removable(tensors, bases, ids, active[None])
            example = masked_example(adapter, copies, answers, adapter.batch_size, tick)
            seed = self.seed if seed is None else seed
            scores = plan.remembering(example.scores, tick)
            explainer, run = self._official(scores, n, shown, num_features, seed)
            about = {label: About(one) for label, one in zip(shown, numbers, strict=True)}
            names = x.feature_names[0]
            explanation = plan.explanation(explainer, run, features=n, seed=seed, about=about, names=names)
        explanation.image, explanation.segments = x.images[0], x.segments[0]
        explanation.top_labels = shown
        return explanation

    def _official(
        self, scores: Callable[[Masks], Array], features: int, labels: Sequence[int], selected: int | None, seed: int
    ) -> tuple[Any, Callable[[int], Any]]:
        """Return lime's explainer, and its explanation of one example for a number of samples."""
        from lime.lime_image import LimeImageExplainer

        explainer = LimeImageExplainer(
            kernel_width=self.kernel_width,
            feature_selection="none" if selected is None else "auto",
            random_state=seed,
        )
        options = dict(
            labels=tuple(labels),
            num_features=features if selected is None else selected,
            distance_metric=self.distance_metric,
            model_regressor=self.model_regressor,
        )
        return explainer, lambda n: explain_image_masks(explainer, features, scores, num_samples=n, **options)

    def _encoded(self, image: Any, segments: Segments | None, hide_color: Any, random_seed: int) -> ImageEncoding:
        """Return one picture with its segments and what replaces them."""
        if not isinstance(self.forward_func, ImageAdapter):
            raise InputError(
                f"explain needs pictures, which {type(self.forward_func).__name__} does not take; make LimeImage with "
                "an ImageAdapter around the model."
            )
        if isinstance(image, ImageEncoding):
            if segments is not None or hide_color is not None:
                raise InputError("an encoding has its own segments and baselines; leave segments and hide_color out.")
            x = image
        else:
            x = self.forward_func.encode(
                image,
                features="quickshift" if segments is None else segments,
                baselines="segment" if hide_color is None else hide_color,
                seed=random_seed,
            )
        if len(x) != 1:
            raise InputError(f"explain takes one picture, but {len(x)} came; call it for each.")
        return x

    def _default_mask(self, tensors: tuple[Tensor, ...]) -> TensorOrTuple:
        x = tensors[0]
        if len(tensors) > 1 or x.dim() != 4:
            return by_position(tensors)
        patch = getattr(self.forward_func, "patch_size", None)
        if isinstance(self.forward_func, ImageAdapter) and patch is not None:
            return torch.from_numpy(patch_grid((x.shape[2], x.shape[3]), patch)[0]).expand(1, *x.shape[1:])
        pixels = x.shape[2] * x.shape[3]
        if pixels > _MOST_PIXELS:
            raise InputError(
                f"a picture of {x.shape[2]} x {x.shape[3]} pixels came without its segments; pass feature_mask=, such "
                "as adapter.encode(image, features='slic').feature_mask."
            )
        return torch.arange(pixels).reshape(1, 1, *x.shape[2:]).expand(1, *x.shape[1:])


@dataclass(frozen=True)
class _Answers:
    """The model's answers to perturbed pictures, as :meth:`LimeImage.explain` asks for them."""

    adapter: Any
    unit: Unit
    kind: Kind

    def __call__(self, tensors: tuple[Tensor, ...]) -> Array:
        """Return the answers in the unit, (n, classes)."""
        return self.of(self.adapter._run(*tensors))

    def of(self, outputs: Array) -> Array:
        """Return the model's outputs (n, columns) in the unit, (n, classes)."""
        if not np.isfinite(outputs).all():
            raise ForwardError(
                "the model gave NaN or an infinite value for a perturbed picture, and LIME cannot fit that; try "
                "another hide_color."
            )
        return np.asarray(self.adapter._as_unit(outputs, self.unit, self.kind))
