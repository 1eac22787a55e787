"""`ImageAdapter`: an image model as a Captum forward function and a lime classifier function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters._base import Adapter
from captum_attn_lime.adapters._checks import check_count
from captum_attn_lime.adapters._encoding import Encoding, counted
from captum_attn_lime.adapters._model_config import configured_class_names
from captum_attn_lime.adapters._outputs import Array, Outputs, without_nan
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters.image._pixels import Pixels, pair, read_images
from captum_attn_lime.adapters.image._preprocessing import Fit, Preprocessing, preprocessing_of
from captum_attn_lime.adapters.image._segments import (
    Labels,
    Segments,
    baseline_image,
    find_patch_size,
    patch_grid,
    segment,
)
from captum_attn_lime.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class ImageEncoding(Encoding):
    """Pictures as tensors, with their segments as features.

    Attributes:
        images: The pictures at the model's size, for display, each (H, W, 3), uint8 or floats from 0 to 1.
    """

    images: tuple[Pixels, ...]

    def _examples(self) -> str:
        height, width = self.images[0].shape[:2]
        return f"{counted(len(self), 'picture')} of {height} x {width}"

    @property
    def segments(self) -> Labels:
        """The segment of each pixel, (B, H, W) int64; pixels of no segment have the id after the last."""
        assert isinstance(self.feature_mask, Tensor)
        return np.asarray(self.feature_mask[:, 0].cpu().numpy())


class ImageAdapter(Adapter):
    """An image model, ready for Captum and for lime.

    A picture is an array (H, W, 3), a tensor (C, H, W), a PIL image or a path, with integers from 0 to 255 or floats
    from 0 to 1. The adapter resizes, centre-crops and normalises it as the model expects. It reads the settings from
    timm's configuration of the model or from ``processor``; arguments override them. A picture that already has the
    model's size is only normalised, so the pictures that :meth:`encode` and lime show are what the model sees.

    Args:
        model: A model of normalised pixels (n, C, H, W) that returns (n, classes), a tuple that begins with it, or
            ``.logits``.
        processor: A HuggingFace image processor, a timm data configuration, or torchvision's ``weights.transforms()``.
        mean: Mean of each channel (red, green, blue) for values from 0 to 1; ``(0.5,)``, one channel, for a greyscale
            model.
        std: Standard deviation of each channel for values from 0 to 1.
        size: Height and width of the model's pictures, or one number for both. If no source gives a size, pictures keep
            theirs.
        fit: ``"squash"`` (the default without other settings) resizes a picture to ``size``; ``"crop"`` keeps the
            aspect ratio and crops the centre.
        resize_to: Height and width before the centre crop; by default ``size``.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"nearest"``, ``"box"`` or ``"hamming"``.
        patch_size: Height and width of the model's patches; by default those of its first convolution.
        class_names: Names of the classes; by default those of a HuggingFace configuration.
        outputs: What the model returns: ``"logits"``, ``"probabilities"`` (it ends in softmax or sigmoid),
            ``"predictions"`` (a regression), or ``"auto"`` to find out.
        batch_size: Greatest number of pictures that :meth:`predict_proba` runs at once.

    Raises:
        InputError: The model's preprocessing is unknown, or settings contradict each other.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> adapter = ImageAdapter(model, mean=0.5, std=0.5, size=16)
        >>> x = adapter.encode(np.zeros((20, 30, 3), dtype=np.uint8))
        >>> x.inputs.shape, x.feature_names
        (torch.Size([1, 3, 16, 16]), (('patch 0,0', 'patch 0,1', 'patch 1,0', 'patch 1,1'),))
        >>> adapter.predict_proba(np.zeros((5, 16, 16, 3), dtype=np.uint8)).shape
        (5, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        size: int | Sequence[int] | None = None,
        fit: Fit | None = None,
        resize_to: int | Sequence[int] | None = None,
        interpolation: str | None = None,
        patch_size: int | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        outputs: Outputs = "auto",
        batch_size: int = 16,
    ) -> None:
        super().__init__(model, class_names=class_names, outputs=outputs)
        if self.class_names is None:
            self.class_names = configured_class_names(model)
        check_count("batch_size", batch_size, "pictures")
        given = dict(mean=mean, std=std, size=size, fit=fit, resize_to=resize_to, interpolation=interpolation)
        self.preprocessing: Preprocessing = preprocessing_of(model, processor, given)
        self.batch_size = batch_size
        channels = len(self.preprocessing.mean)
        self.patch_size = find_patch_size(model, channels) if patch_size is None else pair(patch_size, "patch_size")

    def _settings(self) -> list[str]:
        return [f"size={self.preprocessing.size}", f"patch_size={self.patch_size}"]

    def encode(
        self,
        images: Any,
        *,
        features: Segments = "patches",
        baselines: Any = "segment",
        seed: int = 42,
        normalized: bool = False,
    ) -> ImageEncoding:
        """Return a picture or pictures as tensors with their segments as features.

        Args:
            images: One picture or several of one size: array, tensor, PIL image or path, or a list of these.
            features: ``"patches"``: those of the model; ``"quickshift"`` (with lime's settings), ``"slic"`` or
                ``"felzenszwalb"`` of scikit-image; a function from a picture (H, W, 3), at the model's size, to labels
                (H, W), such as ``functools.partial(slic, n_segments=50)``; or labels (H, W) or (B, H, W).
            baselines: What replaces a removed segment: ``"segment"``, the mean colour of each segment, as in lime;
                ``"mean"``, the mean colour of the picture; ``"black"``; ``"blur"``; or a number, a colour or a picture
                in the picture's range of values, 0 to 255 or 0 to 1.
            seed: Seed of segmentation algorithms that draw random numbers.
            normalized: ``images`` is a tensor (C, H, W) or (B, C, H, W) that already went through the model's
                transforms; it stays unchanged.

        Raises:
            InputError: No picture, pictures of several sizes, or features or baselines that do not fit.
        """
        if normalized:
            inputs = self._as_normalized(images)
            shown: list[Pixels] = list(self.preprocessing.pictures(inputs))
        else:
            shown = self.images(images)
            if len({image.shape for image in shown}) > 1:
                sizes = ", ".join(f"{i.shape[0]} x {i.shape[1]}" for i in shown)
                raise InputError(f"the pictures have sizes {sizes}; pass size= to the adapter, or encode each alone.")
            inputs = torch.cat([self.tensors(image[None]) for image in shown])
        masks, names, bases = [], [], []
        for i, image in enumerate(shown):
            labels, segment_names = self._segmented(image, _of_example(features, i, len(shown), 2), seed)
            masks.append(torch.from_numpy(labels))
            names.append(segment_names)
            base = baseline_image(image, labels, len(segment_names), _of_example(baselines, i, len(shown), 3))
            bases.append(self.tensors(base[None]))
        mask = torch.stack(masks).to(inputs.device)[:, None].expand(inputs.shape)  # (B, C, H, W), stored once
        replaced = torch.cat(bases)
        if normalized:  # shown pictures are rounded: pixels of no segment must equal the input itself
            is_feature = mask < torch.tensor([len(n) for n in names], device=mask.device).reshape(-1, 1, 1, 1)
            replaced = torch.where(is_feature, replaced, inputs)
        return ImageEncoding(
            inputs=inputs,
            forward_args=(),
            baselines=replaced,
            feature_mask=mask,
            feature_names=tuple(names),
            images=tuple(shown),
        )

    def outputs(self, raw: Any, *, show_progress: bool = False) -> Array:
        """Return the model's outputs for pictures, (n, columns) float64, in eval mode and without gradients.

        Pictures of one size share batches of up to ``batch_size``.

        Args:
            raw: One picture or several, in any form that :meth:`encode` accepts.
            show_progress: Show a progress bar over the pictures.

        Raises:
            InputError: It is not a picture.
            ForwardError: The model returns NaN.
        """
        images = self.images(raw)
        found = []
        with evaluating(self.model), torch.no_grad(), progress(len(images), show_progress, "images") as tick:
            for start in range(0, len(images), self.batch_size):
                part = images[start : start + self.batch_size]
                same = len({(image.shape, image.dtype) for image in part}) == 1
                batches = [np.stack(part)] if same else [image[None] for image in part]
                found += [self._run(self.tensors(batch)) for batch in batches]
                tick(len(part))
        return without_nan(np.concatenate(found), type(self.model).__name__, "picture")

    def images(self, raw: Any) -> list[Pixels]:
        """Return pictures in any form as arrays (H, W, 3) at the model's size, not normalised.

        Args:
            raw: One picture or several: array, tensor, PIL image or path, or a list of these.

        Raises:
            InputError: It is not a picture.
        """
        return [self.preprocessing.image(image) for image in read_images(raw)]

    def tensors(self, images: Pixels) -> Tensor:
        """Return pictures of the model's size as input of :meth:`forward`, (n, C, H, W) normalised.

        Args:
            images: Pictures (n, H, W, 3), uint8 or floats from 0 to 1.
        """
        return self._placed(self.preprocessing.tensor(images))

    def _one(self, raw: Any) -> tuple[Tensor, ...]:
        return (self.tensors(self.images(raw)[0][None]),)

    def _placed(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self._dtype)

    def _as_normalized(self, images: Any) -> Tensor:
        channels = len(self.preprocessing.mean)
        found = images.unsqueeze(0) if isinstance(images, Tensor) and images.dim() == 3 else images
        is_pixels = isinstance(found, Tensor) and found.dim() == 4 and found.is_floating_point()
        if not is_pixels or found.shape[1] != channels or not len(found):
            got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(
                f"normalized=True needs a floating tensor ({channels}, H, W) or (B, {channels}, H, W), but got {got}."
            )
        return self._placed(found.detach())

    def _segmented(self, image: Pixels, how: Segments, seed: int) -> tuple[Labels, tuple[str, ...]]:
        if not (isinstance(how, str) and how == "patches"):
            return segment(image, how, seed)
        if self.patch_size is None:
            raise InputError(
                f"the first convolution of {type(self.model).__name__} does not cut pictures into patches; pass "
                "patch_size= to the adapter, or features='slic', 'quickshift' or an array of labels."
            )
        return patch_grid((image.shape[0], image.shape[1]), self.patch_size)

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        if len(tensors) != 1 or tensors[0].dim() != 4:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise InputError(
                f"{type(self.model).__name__} takes one tensor (n, C, H, W), but got {shapes}; pass "
                "adapter.encode(images).inputs."
            )
        return self._active_model(tensors[0])


def _of_example(given: Any, i: int, n: int, dimensions: int) -> Any:
    """Return row i of an array with one dimension more than an example has, anything else unchanged."""
    if not isinstance(given, (np.ndarray, Tensor)) or given.ndim != dimensions + 1:
        return given
    if len(given) != n:
        raise InputError(f"an array of shape {tuple(given.shape)} does not fit {n} picture(s); pass one row for each.")
    return given[i]
