"""Whether a soft mask's probabilities are true: of the pixels given 0.7, seven in ten should be target.

A soft mask has 256 levels, so all there is to know is how many pixels of each level there are, and how many of these are
target. Such counts add up: those of many images are the sum of those of each, in any order.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError

LevelCounts = npt.NDArray[np.int64]
"""(2, 256): background and target pixels of each level."""

BINS: Final = 15
"""Equal bins of probability; each holds 17 of the 256 levels, the last one 18."""

_LEVELS: Final = 256
_BIN_OF_LEVEL: Final = np.minimum(np.arange(_LEVELS) * BINS // (_LEVELS - 1), BINS - 1)
_PROBABILITY: Final = np.arange(_LEVELS) / (_LEVELS - 1)


def count(mask: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_]) -> LevelCounts:
    """Count the pixels of a soft mask uint8 (H, W) by level, and by truth bool (H, W)."""
    if mask.shape != truth.shape or mask.dtype != np.uint8:
        raise DataError(
            f"a soft mask is uint8 and has the shape of its truth; got {mask.dtype} {mask.shape} and {truth.shape}"
        )
    place = mask.ravel() + np.int64(_LEVELS) * truth.ravel()
    return np.bincount(place, minlength=2 * _LEVELS).reshape(2, _LEVELS)


def brier(counts: LevelCounts) -> float:
    """Mean squared difference between probability and truth, in [0, 1] (Brier 1950, for two classes counted once)."""
    background, target = counts
    return float((background @ _PROBABILITY**2 + target @ (1 - _PROBABILITY) ** 2) / counts.sum())


def ece(counts: LevelCounts) -> float:
    """Expected calibration error, in [0, 1]: bins' |mean probability - part that is target|, weighted by their pixels.

    Of the target's probability, not of the winning class's, in `BINS` equal bins.
    """
    pixels, probability, target = _bins(counts)
    return float(np.abs(probability - target).sum() / pixels.sum())


def reliability(counts: LevelCounts) -> list[dict[str, Any]]:
    """The bins that hold pixels, for a reliability plot.

    Returns
    -------
    For each, ``probability`` (mean of what was said, in [0, 1]), ``target`` (part that is target) and ``pixels``.
    """
    pixels, probability, target = _bins(counts)
    return [
        {
            "probability": round(float(probability[i] / pixels[i]), 6),
            "target": round(float(target[i] / pixels[i]), 6),
            "pixels": int(pixels[i]),
        }
        for i in np.flatnonzero(pixels)
    ]


def _bins(counts: LevelCounts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per bin: pixels, sum of their probabilities, how many are target."""
    pixels = counts.sum(axis=0)

    def binned(weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(_BIN_OF_LEVEL, weights, BINS), np.float64)

    return binned(pixels), binned(pixels * _PROBABILITY), binned(counts[1])
