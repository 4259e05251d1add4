"""Soft masks: from a teacher's probabilities to bytes and back.

A soft mask is stored as ``q = round(255 * p)``, uint8, (K, H, W), halves down: then ``q >= 128`` exactly where
``p > 0.5``, which is what the paper calls a target pixel. One definition serves everywhere, so that target pixels and
gray-level entropy do not depend on who computed them.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common import planes
from consilium.common.errors import DataError, ErrorCode, WireError

SoftMasks = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]

TARGET_LEVEL: Final = 128
"""Least level of a target pixel."""


def quantise(probabilities: npt.NDArray[np.floating]) -> SoftMasks:
    """Round probabilities to levels.

    Parameters
    ----------
    probabilities
        Floating, any shape, in [0, 1].

    Returns
    -------
    uint8 of the same shape, ``round(255 * p)``, halves down.

    Raises
    ------
    DataError
        If a value is not finite or outside [0, 1]: a teacher that gives logits, or is broken.
    """
    low, high = float(probabilities.min(initial=0.0)), float(probabilities.max(initial=0.0))
    if not (low >= 0.0 and high <= 1.0):  # false for NaN as well
        raise DataError(
            f"a soft mask must be finite and in [0, 1]; the teacher gave values from {low:.4g} to {high:.4g}. "
            "If these are logits, say so in the teacher's settings."
        )
    return np.asarray(np.ceil(probabilities * np.float32(255) - np.float32(0.5)), np.uint8)


def reduce_levels(masks: SoftMasks, levels: int) -> SoftMasks:
    """Coarsen masks to a number of evenly spaced levels, so that less leaves a site.

    Parameters
    ----------
    masks
        uint8, any shape.
    levels
        An even number from 2 (binary: 255 exactly at target pixels) to 256 (unchanged). With an odd one there would be a
        level in the middle, and coarsening would move pixels across the threshold of one half.
    """
    if levels % 2 or not 2 <= levels <= 256:
        raise DataError(f"output levels must be an even number from 2 to 256; got {levels}")
    step = np.floor(np.arange(256) * (levels - 1) / 255 + 0.5)
    table = np.floor(step * 255 / (levels - 1) + 0.5).astype(np.uint8)
    return np.asarray(table[masks])


def encode(mask: SoftMasks) -> bytes:
    """Code one soft mask, uint8 (K, H, W), losslessly."""
    return planes.encode(mask)


def decode(data: bytes, shape: Shape) -> SoftMasks:
    """Decode one soft mask from a site.

    Raises
    ------
    WireError
        ``bad-mask`` if the data is damaged, of another shape, or expands beyond it.
    """
    try:
        return planes.decode(data, shape)
    except planes.PlanesError as error:
        raise WireError(ErrorCode.BAD_MASK, str(error)) from None
