"""From the study's canonical grid to the teacher's input, and from its output back.

Equal geometries are left alone, bit for bit. Others are stretched bilinearly with antialiasing, pixel centres aligned at
half integers, as `images.canonical` does to files.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from consilium.common.errors import DataError

_BATCH: Final = 64  # a whole data set in float32 would not fit

Size = int | tuple[int, int]
"""One number of pixels for a square, or height and width."""

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


def to_channels(images: Pixels, channels: int) -> Pixels:
    """Turn gray into RGB by repetition, RGB into gray by ITU-R 601 luma (in Pillow's fixed point).

    Parameters
    ----------
    images
        uint8 (n, 1 or 3, H, W).
    channels
        1 or 3.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.ascontiguousarray(np.repeat(images, 3, axis=1))
    red, green, blue = (images[:, i : i + 1].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def to_size(images: Pixels, size: Size) -> Pixels:
    """Stretch images, uint8 (n, C, H, W), to a size: (n, C, height, width)."""
    shape = _shape(size)
    if images.shape[2:] == shape:
        return images
    result = np.empty((*images.shape[:2], *shape), np.uint8)
    for at in range(0, len(images), _BATCH):
        stretched = _stretch(images[at : at + _BATCH].astype(np.float32), shape)
        result[at : at + _BATCH] = np.floor(stretched + np.float32(0.5)).clip(0, 255)
    return result


def to_masks(masks: Pixels, size: int) -> Pixels:
    """Stretch masks, uint8 (n, K, H, W) of 0 and 1, to (n, K, size, size), 1 where more than half of a pixel was 1."""
    if masks.shape[2:] == (size, size):
        return masks
    result = np.empty((*masks.shape[:2], size, size), np.uint8)
    for at in range(0, len(masks), _BATCH):
        result[at : at + _BATCH] = _stretch(masks[at : at + _BATCH].astype(np.float32), (size, size)) > 0.5
    return result


def to_grid(probabilities: Probabilities, size: Size) -> Probabilities:
    """Bring a model's output back to the canonical grid.

    Parameters
    ----------
    probabilities
        float32 (n, K, h, w) in [0, 1].
    size
        Of the grid.

    Returns
    -------
    float32 (n, K, height, width) in [0, 1].

    Raises
    ------
    DataError
        If a value is not finite or not in [0, 1]: stretching must not hide a broken model.
    """
    low, high = float(probabilities.min(initial=0.0)), float(probabilities.max(initial=0.0))
    if not (low >= 0.0 and high <= 1.0):  # false for NaN as well
        raise DataError(
            f"a teacher gives probabilities, finite and in [0, 1]; this one gave values from {low:.4g} to {high:.4g}. "
            'If these are logits, say so where the teacher is opened (site.toml: teacher.output = "logits").'
        )
    shape = _shape(size)
    if probabilities.shape[2:] == shape:
        return probabilities
    return np.clip(_stretch(probabilities, shape), 0.0, 1.0)  # weights sum to 1 up to rounding


def _shape(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _stretch(planes: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(planes))
    result = interpolate(tensor, shape, mode="bilinear", align_corners=False, antialias=True)
    return np.asarray(result.numpy(), np.float32)
