"""Pictures in any form as arrays (H, W, 3): read, checked, resized and cropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_attn_lime.errors import InputError

Pixels = NDArray[Any]  # (H, W, 3), uint8 from 0 to 255 or floats from 0 to 1

_SLACK = 1e-3  # a resampled float image may exceed 0 to 1 by this much
_UNKNOWN_RANGE = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of PIL


def read_images(raw: Any) -> list[Pixels]:
    """Return one picture or several as arrays (H, W, 3), uint8 or floating.

    Args:
        raw: One picture, a list of pictures, an array (n, H, W, channels) or a tensor (n, C, H, W). A picture is an
            array (H, W) or (H, W, channels), a tensor (C, H, W), a PIL image, or a path, with integers from 0 to 255
            or floats from 0 to 1. Grey is repeated over three channels.

    Raises:
        InputError: Not a picture, transparent pixels, or values out of range.

    Example:
        >>> [image.shape for image in read_images(np.zeros((2, 4, 5, 3), dtype=np.uint8))]
        [(4, 5, 3), (4, 5, 3)]
    """
    if isinstance(raw, (list, tuple)):
        if not raw:
            raise InputError("the list of pictures is empty; pass at least one.")
        return [_read(image) for image in raw]
    if isinstance(raw, (Tensor, np.ndarray)) and raw.ndim == 4:
        if not len(raw):
            raise InputError(f"images of shape {tuple(raw.shape)} hold no picture; pass at least one.")
        return [_read(image) for image in raw]
    return [_read(raw)]


def _read(raw: Any) -> Pixels:
    """Return one picture as (H, W, 3)."""
    if isinstance(raw, Tensor):
        array = raw.detach().cpu()
        if array.is_floating_point():
            array = array.double() if str(array.dtype) == "torch.float64" else array.float()
        if array.dim() == 3 and array.shape[0] not in (1, 3, 4):
            raise InputError(
                f"a tensor of shape {tuple(raw.shape)} is not a picture; tensors are (C, H, W) with 1 or 3 channels. "
                "Arrays have channels last: pass tensor.numpy(), or tensor.permute(2, 0, 1)."
            )
        return _rgb(array.permute(1, 2, 0).numpy() if array.dim() == 3 else array.numpy())
    if isinstance(raw, (str, os.PathLike)):
        from PIL import Image

        try:
            with Image.open(raw) as opened:
                return _read_pil(opened)
        except OSError as error:
            raise InputError(f"cannot read a picture from {os.fspath(raw)!r}: {error}.") from error
    if hasattr(raw, "convert") and hasattr(raw, "getbands"):
        return _read_pil(raw)
    if isinstance(raw, np.ndarray):
        return _rgb(raw)
    raise InputError(
        f"a picture must be an array (H, W, 3), a tensor (C, H, W), a PIL image or a path, but is {type(raw).__name__}."
    )


def _read_pil(image: Any) -> Pixels:
    """Return a PIL image, rotated as its EXIF data says, as (H, W, 3) uint8."""
    from PIL import ImageOps

    if image.mode in _UNKNOWN_RANGE:
        raise InputError(
            f"the range of values of a PIL image of mode {image.mode!r} is unknown; scale it to 0 to 255 and convert "
            "it to 'L' or 'RGB'."
        )
    upright = ImageOps.exif_transpose(image)
    has_alpha = "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in upright.info
    return _rgb(np.asarray(upright.convert("RGBA" if has_alpha else "RGB")))


def _rgb(array: Pixels) -> Pixels:
    """Return (H, W), (H, W, 1), (H, W, 3) or an opaque (H, W, 4) as (H, W, 3), checked."""
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = " Tensors have channels first: pass torch.from_numpy(array), or array.transpose(1, 2, 0)."
        is_first = array.ndim == 3 and array.shape[0] in (1, 3)
        raise InputError(
            f"an array of shape {array.shape} is not a picture; arrays are (H, W), (H, W, 1) or (H, W, 3)."
            + (hint if is_first else "")
        )
    array = _values(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4:
        if bool((array[:, :, 3] < (255 if array.dtype == np.uint8 else 1)).any()):
            raise InputError(
                "the picture has transparent pixels, which have no colour; put it on a background first, for example "
                "with Image.alpha_composite(white, image).convert('RGB')."
            )
        array = array[:, :, :3]
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def _values(array: Pixels) -> Pixels:
    """Return the values as uint8 from 0 to 255 or as floats from 0 to 1."""
    if array.dtype == np.bool_:
        return np.asarray(array.astype(np.uint8) * np.uint8(255))
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise InputError(f"a picture must hold numbers, but its dtype is {array.dtype}.")
    least, most = float(array.min()), float(array.max())
    if array.dtype.kind != "f":
        if least < 0 or most > 255:
            raise InputError(f"integers in a picture run from 0 to 255, but these from {least:g} to {most:g}.")
        return array.astype(np.uint8)
    if not (least >= -_SLACK and most <= 1 + _SLACK):  # NaN too
        raise InputError(
            f"floats in a picture run from 0 to 1, but these from {least:g} to {most:g}; divide by 255, or pass uint8. "
            "For tensors that are already normalised: adapter.encode(tensor, normalized=True)."
        )
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def fit_image(
    image: Pixels,
    size: tuple[int, int],
    resize_to: tuple[int, int],
    *,
    squash: bool,
    interpolation: str,
    floor: bool,
) -> Pixels:
    """Return a picture resized and centre-cropped; the same array if it already has the size.

    uint8 stays uint8, with PIL's resampling, which image processors use.

    Args:
        image: The picture, (H, W, 3).
        size: Height and width of the result.
        resize_to: Height and width before the crop.
        squash: Whether to resize to exactly that size, or to cover it and keep the aspect ratio.
        interpolation: Name of one of PIL's resampling filters, in lower case.
        floor: Whether an odd margin is split with the smaller part first, or, as in torchvision, the even part.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    target = resize_to
    if not squash:
        # The other side is rounded down, as in torchvision.
        if resize_to[0] * width >= resize_to[1] * height:
            target = (resize_to[0], resize_to[0] * width // height)
        else:
            target = (resize_to[1] * height // width, resize_to[1])
    resized = _resize(image, target, interpolation)
    margins = [a - b for a, b in zip(target, size, strict=True)]
    top, left = (m // 2 if floor else round(m / 2) for m in margins)
    return np.ascontiguousarray(resized[top : top + size[0], left : left + size[1]])


def _resize(image: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    from PIL import Image

    if image.shape[:2] == size:
        return image
    how = Image.Resampling[interpolation.upper()]
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size[::-1], how))
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)).resize(size[::-1], how) for c in range(3)]
    # Bicubic and Lanczos overshoot at edges.
    return np.stack([np.asarray(c) for c in channels], axis=2).clip(0, 1).astype(image.dtype)


def pair(value: Any, name: str) -> tuple[int, int]:
    """Return a number, or a sequence of one or two, as height and width.

    Example:
        >>> pair(224, "size"), pair([8, 4], "size")
        ((224, 224), (8, 4))
    """
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(sides) == 1:
        sides *= 2
    whole = all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in sides)
    if len(sides) != 2 or not whole:
        raise InputError(f"{name} must be a number of pixels or a pair (height, width), but is {value!r}.")
    return int(sides[0]), int(sides[1])
