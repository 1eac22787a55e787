"""`LimeImage`: the official image LIME over the segments of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_attn_lime._explained import Output
from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters.image._adapter import ImageAdapter, ImageEncoding
from captum_attn_lime.adapters.image._segments import patch_grid
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import by_position
from captum_attn_lime.lime._base import check_samples, explained_numbers, unit_of
from captum_attn_lime.lime._draws import image_masks
from captum_attn_lime.lime._masked import LimeMasks
from captum_attn_lime.perturb._factory import perturbed_tensors
from captum_attn_lime.perturb._model_outputs import adapter_scores, eval_mode
from captum_attn_lime.perturb._tensors import MaskedInputs

if TYPE_CHECKING:
    from captum_attn_lime.lime._image_result import LimeImageExplanation

_MOST_PIXELS = 4096  # of a picture without a feature mask, whose features are its pixels


class LimeImage(LimeMasks):
    """The ``LimeImageExplainer`` of the official lime package as a Captum attribution.

    Samples, kernel and distances are those of the official explainer, random number for random number, and lime's
    ``LimeBase`` fits: a picture at the model's size gets the explainer's weights for the same seed. Removed segments
    are replaced in the normalised pixels, on the model's device. Where segments consist of the model's patches, each
    patch is embedded once; the first samples verify that the scores are equal. :meth:`attribute` has Captum's
    arguments, :meth:`explain` explains a picture.

    Args:
        forward_func: An ``ImageAdapter``; for :meth:`attribute` any function of tensors.
        kernel_width: Width of lime's kernel over distances.
        distance_metric: Distance between masks, one of scikit-learn's.
        model_regressor: scikit-learn regressor to fit; lime's ridge regression by default.
        seed: Seed of each call's random numbers, so that equal calls return equal results.

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

    _draw, _scale, _batch = staticmethod(image_masks), 1.0, 16

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        kernel_width: float = 0.25,
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

    def explain(
        self,
        image: Any,
        target: int | str | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        top_labels: int | None = None,
        num_samples: int = 1000,
        num_features: int | None = None,
        output: Output = "probability",
        seed: int | None = None,
        show_progress: bool = False,
    ) -> LimeImageExplanation:
        """Explain a picture as lime does.

        The picture is first resized to the model's size. Segments and baselines are those of ``adapter.encode``, by
        default the model's patches and each segment's mean colour. For lime's default segments call
        ``lime.explain(adapter.encode(image, features="quickshift"))``. Segments are numbered from 0 without gaps.

        Args:
            image: One picture in any form that the adapter accepts, or an encoding of one.
            target: The class, by index or name, by default the predicted one; or the output of a regression with
                several.
            labels: Several classes instead of a target, from the same samples.
            top_labels: Number of classes with the highest scores, instead of a target.
            num_samples: Number of perturbed pictures.
            num_features: Largest number of segments, which lime selects and fits again; all by default.
            output: ``"probability"``, or ``"logits"``, which stay informative where probabilities saturate. For a
                single logit z the logits of the two classes are -z and z. Regressions always explain the prediction.
            seed: Seed of this call; the constructor's by default.
            show_progress: Show a progress bar over the samples.

        Returns:
            :class:`LimeImageExplanation`: a :class:`LimeExplanation` with the picture as ``image``, its ``segments``,
            and ``get_image_and_mask``.

        Raises:
            TargetError: The model has no such class.
            InputError: The forward function is no ``ImageAdapter``, or ``image`` is not one picture.

        Warns:
            LimeWarning: The explanation is less reliable than it looks; ``diagnostics.warnings`` says why.
        """
        from captum_attn_lime.lime._html import NamedMapper
        from captum_attn_lime.lime._image_result import LimeImageExplanation

        check_samples(num_samples, num_features)
        x = self._encoded(image)
        names = x.feature_names[0]
        tensors, bases, ids = as_tuple(x.inputs), as_tuple(x.baselines), as_tuple(x.feature_mask)
        adapter: Any = self.forward_func
        unit = unit_of(adapter, output)
        seed = self.seed if seed is None else seed
        with torch.no_grad(), eval_mode(adapter), progress(num_samples, show_progress, "LimeImage") as tick:
            scorer, scores = adapter_scores(adapter, tensors, unit)
            original = scores[0]
            choice: dict[str, Any] = dict(target=target, labels=labels, top_labels=top_labels)
            chosen = explained_numbers(adapter, original, unit, None, tensors, **choice)
            copies = perturbed_tensors(adapter, names, chosen[0], MaskedInputs(tensors, bases, ids), scorer)
            numbers = {one.column: one for one in chosen}
            fits = self._fits(
                partial(copies.class_scores, tick=tick), names, num_samples, seed, numbers, num_features=num_features
            )
        return LimeImageExplanation(
            x.images[0],
            x.segments[0],
            NamedMapper(names),
            fits,
            feature_names=names,
            class_scores=original,
            class_names=adapter.names_of(len(original)),
            seed=seed,
        )

    def _encoded(self, image: Any) -> ImageEncoding:
        """Return the encoding of one picture."""
        if not isinstance(self.forward_func, ImageAdapter):
            raise InputError(
                f"explain needs an ImageAdapter, but forward_func is {type(self.forward_func).__name__}; make "
                "LimeImage with an ImageAdapter around the model."
            )
        x = image if isinstance(image, ImageEncoding) else self.forward_func.encode(image)
        if len(x) != 1:
            raise InputError(f"explain needs one picture, but got {len(x)}; call it for each.")
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
                f"a picture of {x.shape[2]} x {x.shape[3]} pixels needs segments; pass feature_mask=, such as "
                "adapter.encode(image, features='slic').feature_mask."
            )
        return torch.arange(pixels).reshape(1, 1, *x.shape[2:]).expand(1, *x.shape[1:])
