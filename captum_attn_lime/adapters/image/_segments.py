"""Segments of a picture, which are its features, and baselines that replace removed segments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_attn_lime._util.patch_grid import patch_numbers
from captum_attn_lime.adapters.image._pixels import Pixels, pair
from captum_attn_lime.errors import InputError

Labels = NDArray[np.int64]  # (H, W), from 0
Segments = str | Callable[[Pixels], Any] | NDArray[Any] | Tensor

# The settings of LimeImageExplainer for quickshift. The others keep scikit-image's.
_ALGORITHMS: dict[str, dict[str, Any]] = {
    "quickshift": {"kernel_size": 4, "max_dist": 200, "ratio": 0.2},
    "slic": {},
    "felzenszwalb": {},
}
_BASELINES = ("segment", "mean", "black", "blur")


def find_patch_size(model: nn.Module, channels: int) -> tuple[int, int] | None:
    """Return height and width of the model's patches, or None if unknown.

    They come from the first convolution over the picture's channels, if its patches do not overlap, or from a
    HuggingFace configuration.

    Example:
        >>> find_patch_size(nn.Sequential(nn.Conv2d(3, 8, 16, 16)), 3)
        (16, 16)
    """
    convolution = patch_convolution(model, channels)
    if convolution is not None:
        return pair(convolution.kernel_size, "kernel_size")
    size = getattr(getattr(model, "config", None), "patch_size", None)
    return None if size is None else pair(size, "config.patch_size")


def patch_convolution(model: nn.Module, channels: int) -> nn.Conv2d | None:
    """Return the first convolution over the picture's channels if it cuts patches that do not overlap, else None."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            kernel, plain = tuple(module.kernel_size), module.dilation == (1, 1)
            cuts = kernel == tuple(module.stride) and module.padding in (0, (0, 0), "valid")
            return module if cuts and plain and max(kernel) > 1 else None
    return None


def patch_grid(image: tuple[int, int], patch: tuple[int, int]) -> tuple[Labels, tuple[str, ...]]:
    """Return the patch of each pixel and the patches' names; pixels beyond the last patch share the next id.

    Example:
        >>> patch_grid((2, 5), (1, 2))[1]
        ('patch 0,0', 'patch 0,1', 'patch 1,0', 'patch 1,1')
    """
    rows, columns = image[0] // patch[0], image[1] // patch[1]
    if not rows * columns:
        raise InputError(f"a picture of {image[0]} x {image[1]} pixels has no patch of {patch[0]} x {patch[1]}.")
    numbers = patch_numbers(image, patch, (rows, columns)).numpy()
    names = tuple(f"patch {r},{c}" for r in range(rows) for c in range(columns))
    return np.where(numbers < 0, rows * columns, numbers), names


def segment(image: Pixels, how: Segments, seed: int) -> tuple[Labels, tuple[str, ...]]:
    """Return the segment of each pixel, from 0 without gaps, and the segments' names.

    scikit-image's slic counts from 1, but lime uses segment ids as indices: it would silently explain nothing, with a
    perfect score.

    Args:
        image: The picture, (H, W, 3).
        how: ``"quickshift"``, ``"slic"``, ``"felzenszwalb"``, a function from the picture to labels (H, W), or those
            labels.
        seed: Seed of algorithms that draw random numbers.

    Example:
        >>> segment(np.zeros((1, 4, 3)), np.array([[7, 7, 3, 9]]), 0)
        (array([[1, 1, 0, 2]]), ('segment 0', 'segment 1', 'segment 2'))
    """
    if isinstance(how, str):
        found: Any = _algorithm(how, seed)(image)
    elif callable(how) and not isinstance(how, (np.ndarray, Tensor)):
        found = how(image)
    else:
        found = how
    labels = found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
    if labels.shape != image.shape[:2] or labels.dtype.kind not in "iub":
        raise InputError(
            f"features must be integers (H, W), one for each pixel of the picture at the model's size "
            f"{image.shape[:2]}, but are {labels.dtype} of shape {labels.shape}."
        )
    values, numbers = np.unique(labels, return_inverse=True)
    return numbers.reshape(labels.shape).astype(np.int64), tuple(f"segment {k}" for k in range(len(values)))


def _algorithm(name: str, seed: int) -> Callable[[Pixels], Any]:
    if name not in _ALGORITHMS:
        raise InputError(
            f"features is {name!r}; it must be 'patches', {', '.join(map(repr, _ALGORITHMS))}, a function from the "
            "picture to labels (H, W), or an array of labels."
        )
    from skimage import segmentation

    function = getattr(segmentation, name)
    options = dict(_ALGORITHMS[name])
    # lime ignores its seed: its wrapper passes it under a name that scikit-image has removed.
    for parameter in ("rng", "random_seed"):
        if parameter in inspect.signature(function).parameters:
            options[parameter] = seed
            break
    return lambda image: function(image, **options)


def baseline_image(image: Pixels, labels: Labels, n_segments: int, baseline: Any) -> Pixels:
    """Return the picture that replaces removed segments.

    Args:
        image: The picture, (H, W, 3).
        labels: The segment of each pixel; pixels with ids from ``n_segments`` on belong to none and stay unchanged.
        n_segments: Number of segments.
        baseline: ``"segment"``: the mean colour of each segment, as in lime; ``"mean"``: of the picture; ``"black"``;
            ``"blur"``; or a number, a colour or a picture in the picture's range of values.

    Example:
        >>> baseline_image(np.array([[[0, 0, 0], [9, 9, 8]]], dtype=np.uint8), np.array([[0, 0]]), 1, "segment")
        array([[[4, 4, 4], [4, 4, 4]]], dtype=uint8)
    """
    found = _replacement(image, labels, baseline)
    return np.where((labels < n_segments)[:, :, None], found, image)


def _replacement(image: Pixels, labels: Labels, baseline: Any) -> Pixels:
    if isinstance(baseline, str):
        if baseline not in _BASELINES:
            raise InputError(
                f"baselines must be one of {', '.join(map(repr, _BASELINES))}, or a number, a colour or a picture, but "
                f"is {baseline!r}."
            )
        if baseline == "black":
            return np.zeros_like(image)
        if baseline == "blur":
            from scipy.ndimage import gaussian_filter

            side = max(image.shape[:2]) / 16
            blurred = gaussian_filter(image.astype(np.float64), (side, side, 0))
            return np.asarray((np.rint(blurred) if image.dtype == np.uint8 else blurred).astype(image.dtype))
        flat = labels.reshape(-1) if baseline == "segment" else np.zeros(labels.size, dtype=np.int64)
        count = np.bincount(flat)
        means = [np.bincount(flat, weights=image[:, :, c].reshape(-1)) / count.clip(1) for c in range(3)]
        # Integers are truncated, as in lime.
        return np.stack(means, axis=1)[flat].reshape(image.shape).astype(image.dtype)
    array = baseline.detach().cpu().numpy() if isinstance(baseline, Tensor) else np.asarray(baseline)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise InputError(f"baselines must hold finite numbers or be a name, but are {baseline!r:.60}.")
    most = 255 if image.dtype == np.uint8 else 1
    if array.min() < 0 or array.max() > most or (most == 255 and bool((array != np.rint(array)).any())):
        kind = "integers from 0 to 255" if most == 255 else "numbers from 0 to 1"
        raise InputError(f"the picture holds {kind}, so baselines must too, but are {baseline!r:.60}.")
    try:
        return np.broadcast_to(array, image.shape).astype(image.dtype)
    except ValueError:
        raise InputError(
            f"baselines of shape {array.shape} do not fit a picture of shape {image.shape}; pass a number, a colour "
            "(3,) or a picture (H, W, 3) at the model's size."
        ) from None
