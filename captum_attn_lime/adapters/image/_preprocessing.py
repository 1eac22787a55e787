"""A model's preprocessing of pictures: read from timm, HuggingFace or torchvision, or given by the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from captum_attn_lime.adapters.image._pixels import Pixels, fit_image, pair
from captum_attn_lime.errors import InputError

Fit = Literal["squash", "crop"]
_RESAMPLINGS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_FLIPPED = (
    " Pictures are in RGB order; for a BGR model give mean and std in RGB order, and wrap the model in a module that "
    "calls it with x.flip(1)."
)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, PIL's conversion from colour to grey
_ROUNDING = 0.035  # other libraries' resampling of the smooth test picture agrees with PIL's to this tolerance


@dataclass(frozen=True)
class Preprocessing:
    """How to turn a picture (H, W, 3) into the model's pixels.

    Attributes:
        mean: Mean of each channel, for values from 0 to 1; one number for a greyscale model.
        std: Standard deviation of each channel.
        size: Height and width of the model's pictures; None keeps their size.
        resize_to: Height and width before the centre crop; by default ``size``.
        fit: ``"squash"`` resizes to exactly that size; ``"crop"`` covers it, keeps the aspect ratio, and crops.
        interpolation: Name of a resampling filter.
        floor: Whether an odd margin is split with the smaller part first, as in HuggingFace, or the even part, as in
            torchvision.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    resize_to: tuple[int, int] | None = None
    fit: Fit = "squash"
    interpolation: str = "bilinear"
    floor: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise InputError(
                f"mean {self.mean} and std {self.std} must have one number per channel, 3 for colour or 1 for grey."
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(s > 0 for s in self.std):
            raise InputError(f"mean {self.mean} must be finite and std {self.std} above 0.")
        _check_units(self.mean, self.std)
        if self.fit not in get_args(Fit):
            raise InputError(f"fit must be 'squash' or 'crop', but is {self.fit!r}.")
        if self.interpolation not in _RESAMPLINGS:
            raise InputError(f"interpolation must be one of {', '.join(_RESAMPLINGS)}, but is {self.interpolation!r}.")
        short = self.size and self.resize_to and any(r < s for r, s in zip(self.resize_to, self.size, strict=True))
        if short or (self.resize_to and not self.size):
            raise InputError(f"resize_to {self.resize_to} must be at least size, which is {self.size}.")

    def image(self, image: Pixels) -> Pixels:
        """Return a picture at the model's size, with the same dtype and range of values."""
        if self.size is None:
            return image
        return fit_image(
            image,
            self.size,
            self.resize_to or self.size,
            squash=self.fit == "squash",
            interpolation=self.interpolation,
            floor=self.floor,
        )

    def tensor(self, images: Pixels) -> Tensor:
        """Return pictures (n, H, W, 3) normalised, (n, C, H, W) float32."""
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        x = x.float() / 255 if images.dtype == np.uint8 else x.float()
        if len(self.mean) == 1:
            x = (x * torch.tensor(_LUMA).reshape(3, 1, 1)).sum(dim=1, keepdim=True)
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def pictures(self, tensor: Tensor) -> Pixels:
        """Return normalised pixels (n, C, H, W) as pictures (n, H, W, 3) float32 from 0 to 1."""
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        x = (tensor.detach().cpu().float() * std + mean).clamp(0, 1)
        return np.ascontiguousarray(x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def _check_units(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise unless mean and std are plausible for values from 0 to 1 in RGB order."""
    if not all(0 <= m <= 1 for m in mean) or any(s > 1 for s in std):
        advice = "give both for values from 0 to 1"
        if any(m > 1 for m in mean):
            halves = [tuple(round(v / 255, 6) for v in values) for values in (mean, std)]
            advice = f"for a model of values from 0 to 255 divide both by 255: mean={halves[0]}, std={halves[1]}"
        raise InputError(
            f"mean {mean} and std {std} are not plausible for pictures with values from 0 to 1; {advice}."
            f"{_FLIPPED if _is_flipped(tuple(m / 255 for m in mean)) else ''}"
        )
    if _is_flipped(mean):
        raise InputError(f"mean {mean} and std {std} are ImageNet's in BGR order.{_FLIPPED}")


def _is_flipped(mean: tuple[float, ...]) -> bool:
    """Return whether a mean is ImageNet's in BGR order, which Caffe-style models use."""
    return len(mean) == 3 and all(abs(m - i) < 3e-3 for m, i in zip(mean[::-1], _IMAGENET_MEAN, strict=True))


def preprocessing_of(model: nn.Module, processor: Any, given: Mapping[str, Any]) -> Preprocessing:
    """Return the model's preprocessing: the user's settings override those of a processor or of the model.

    Args:
        model: The model; timm models carry their settings.
        processor: A timm data configuration, a HuggingFace image processor, torchvision's ``weights.transforms()``, or
            None.
        given: The user's settings; None for those not given.

    Raises:
        InputError: Settings are missing, contradict each other, or cannot be read from the processor.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in ("mean", "std"):
        if name in chosen:
            chosen[name] = _channels(chosen[name], name)
    for name in ("size", "resize_to"):
        if name in chosen:
            chosen[name] = pair(chosen[name], name)
    found = _read(model, processor)
    if found is None:
        if "mean" not in chosen or "std" not in chosen:
            raise InputError(
                f"the preprocessing of {type(model).__name__} is unknown; pass processor= (its HuggingFace image "
                "processor, timm data configuration or torchvision weights.transforms()), or mean=, std= and size=. "
                f"ImageNet's are {_IMAGENET_MEAN} and (0.229, 0.224, 0.225)."
            )
        return Preprocessing(**chosen)
    if "size" in chosen and "resize_to" not in chosen and found.size and found.resize_to:
        scales = [r / s for r, s in zip(found.resize_to, found.size, strict=True)]
        chosen["resize_to"] = tuple(math.floor(a * s) for a, s in zip(chosen["size"], scales, strict=True))
    return replace(found, **chosen)


def _read(model: nn.Module, processor: Any) -> Preprocessing | None:
    if processor is None:
        if not isinstance(getattr(model, "pretrained_cfg", getattr(model, "default_cfg", None)), Mapping):
            return None
        from importlib import import_module  # timm has no types

        return _from_timm(import_module("timm.data").resolve_data_config({}, model=model), model)
    if isinstance(processor, Preprocessing):
        return processor
    if isinstance(processor, Mapping):
        return _from_timm(processor, model)
    if hasattr(processor, "image_mean"):
        return _from_huggingface(processor)
    if all(hasattr(processor, name) for name in ("mean", "std", "crop_size", "resize_size")):
        return _from_torchvision(processor)
    raise InputError(
        f"processor is {type(processor).__name__}; it must be a HuggingFace image processor, a timm data configuration "
        "(timm.data.resolve_data_config({}, model=model)) or torchvision's weights.transforms(). For others pass "
        "mean=, std= and size=."
    )


def _from_timm(config: Mapping[str, Any], model: nn.Module) -> Preprocessing:
    missing = [name for name in ("mean", "std") if name not in config]
    if missing:
        raise InputError(f"the data configuration with the keys {sorted(config)} lacks {' and '.join(missing)}.")
    size = None if "input_size" not in config else pair(tuple(config["input_size"])[-2:], "input_size")
    patches = getattr(model, "patch_embed", None)
    if getattr(patches, "strict_img_size", False) and getattr(patches, "img_size", None):
        size = pair(patches.img_size, "img_size")  # type: ignore[union-attr]  # made for another size than its weights
    mode = config.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise InputError(f"crop_mode {mode!r} pads borders; pass mean=, std=, size= and fit= instead.")
    share = config.get("crop_pct") or 1.0
    interpolation = config.get("interpolation", "bicubic")
    return Preprocessing(
        _channels(config["mean"], "mean"),
        _channels(config["std"], "std"),
        size,
        None if size is None else (math.floor(size[0] / share), math.floor(size[1] / share)),
        "crop" if mode == "center" else "squash",
        "bilinear" if interpolation == "random" else interpolation,
    )


def _from_torchvision(transforms: Any) -> Preprocessing:
    interpolation = getattr(transforms, "interpolation", "bilinear")
    size = pair(transforms.crop_size, "crop_size")
    return Preprocessing(
        _channels(transforms.mean, "mean"),
        _channels(transforms.std, "std"),
        size,
        pair(transforms.resize_size, "resize_size"),
        "crop",
        str(getattr(interpolation, "value", interpolation)),
    )


def _from_huggingface(processor: Any) -> Preprocessing:
    """Return a HuggingFace image processor's settings, after checking that it does nothing else."""
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if getattr(processor, "do_normalize", True):
        mean, std = _channels(processor.image_mean, "image_mean"), _channels(processor.image_std, "image_std")
    factor = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0)
    mean, std = tuple(m / factor for m in mean), tuple(s / factor for s in std)
    resize = dict(getattr(processor, "size", None) or {}) if getattr(processor, "do_resize", True) else {}
    crop = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    size = (crop["height"], crop["width"]) if {"height", "width"} <= set(crop) else None
    before = size
    fit: Fit = "squash"
    edge = resize.get("shortest_edge")
    if resize.get("height") and resize.get("width"):
        before = (resize["height"], resize["width"])
    elif edge:
        share = getattr(processor, "crop_pct", None)  # ConvNeXT's: large pictures are squashed, others cropped
        fit = "squash" if share and edge >= 384 else "crop"
        size = size or ((edge, edge) if share else None)
        before = (int(edge / share),) * 2 if share and edge < 384 else (edge, edge)
    size = size or before
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    number = getattr(processor, "resample", None)
    interpolation = names[2 if number is None else int(number)]
    found = Preprocessing(mean, std, size, before if size else None, fit, interpolation, floor=True)
    _check_same_pixels(processor, found)
    return found


def _check_same_pixels(processor: Any, found: Preprocessing) -> None:
    """Raise unless a processor and its settings turn a test picture into nearly the same pixels."""
    height, width = found.size or (32, 32)
    y, x = np.mgrid[0 : height * 5 // 4, 0 : width * 3 // 2]
    smooth = [np.sin(x / width * 4), np.cos(y / height * 5), np.sin((x + y) / width * 3)]
    picture = np.stack([(s + 1) * 120 for s in smooth], axis=2).astype(np.uint8)
    pixels = processor(images=picture, return_tensors="np")["pixel_values"]
    expected = found.tensor(found.image(picture)[None]).numpy()
    allowed = _ROUNDING * max(1 / s for s in found.std)
    if pixels.shape != expected.shape or float(np.abs(pixels - expected).max()) > allowed:
        raise InputError(
            f"{type(processor).__name__} does more than resize, centre-crop and normalise a picture, or does so "
            "differently; pass mean=, std=, size= and fit= instead, or the pixels that it returns: "
            "adapter.encode(pixel_values, normalized=True)."
        )


def _channels(value: Any, name: str) -> tuple[float, ...]:
    """Return one number per channel; a single number is repeated for three."""
    numbers = tuple(value) if isinstance(value, (Sequence, np.ndarray, Tensor)) else (value,) * 3
    try:
        return tuple(float(v) for v in numbers)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be one number per channel, but is {value!r}.") from None
