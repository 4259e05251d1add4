"""One temperature a teacher: its logits are divided by it, so that its probabilities come true (Guo et al. 2017).

A soft mask keeps its target pixels whatever the temperature: above one half stays above one half.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.evaluation.calibration import LevelCounts
from consilium.common.soft_mask import quantise

TEMPERATURES: Final = (0.25, 8.0)
"""Those that are believed: beyond, a teacher is broken."""

LOGITS_CLIP: Final = 1e-6
"""How close to 0 and 1 a probability made of logits is believed: what float32 can tell."""

LEVELS_CLIP: Final = 1 / 510
"""The same of a probability that may have been an 8-bit level: half a level."""

_BINS: Final = 8192
_REACH: Final = 14.0  # beyond the logit of LOGITS_CLIP

LogitCounts = npt.NDArray[np.int64]
"""(2, 8192): background and target pixels of each small interval of the logit."""

NO_COUNTS: Final[LogitCounts] = np.zeros((2, _BINS), np.int64)

_CENTRES: Final = (np.arange(_BINS) + 0.5) * (2 * _REACH / _BINS) - _REACH


def temper(probabilities: npt.NDArray[np.float32], temperature: float, clip: float) -> npt.NDArray[np.float32]:
    """Divide the logits of probabilities.

    Parameters
    ----------
    probabilities
        In [0, 1], any shape.
    temperature
        Above 1 draws them towards one half, below 1 away from it; at 1 they are returned as they are.
    clip
        Probabilities closer than this to 0 or 1 are taken to be so far from it.
    """
    if temperature == 1.0:
        return probabilities
    low, high = float(probabilities.min(initial=0.0)), float(probabilities.max(initial=0.0))
    if not (low >= 0.0 and high <= 1.0):  # false for NaN as well; clipping would hide it
        raise DataError(f"probabilities are finite and in [0, 1]; got values from {low:.4g} to {high:.4g}")
    return np.asarray(1 / (1 + np.exp(-_logits(probabilities, clip) / temperature)), np.float32)


def _logits(probabilities: npt.NDArray[np.float32], clip: float) -> npt.NDArray[np.float64]:
    held = np.clip(probabilities.astype(np.float64), clip, 1 - clip)
    return np.asarray(np.log(held / (1 - held)))


def count(probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], clip: float) -> LogitCounts:
    """Count pixels by logit and truth; both arrays of one shape. Counts of several images add up."""
    if probabilities.shape != truth.shape:
        raise DataError(f"probabilities and truth have one shape; got {probabilities.shape} and {truth.shape}")
    place = ((_logits(probabilities, clip) + _REACH) * (_BINS / (2 * _REACH))).astype(np.int64)
    place = place.clip(0, _BINS - 1) + _BINS * truth
    return np.bincount(place.ravel(), minlength=2 * _BINS).reshape(2, _BINS)


def fit(counts: LogitCounts) -> float:
    """Find the temperature under which the truth is likeliest: least negative log-likelihood, within `TEMPERATURES`.

    The likelihood is concave in 1 / temperature, so the one found is the best. Without background or without target pixels
    nothing can be learned: 1.
    """
    if not counts.sum(axis=1).all():
        return 1.0
    from scipy.optimize import (
        minimize_scalar,
    )  # a site's settings know this module, and are read by every small command

    background, target = counts

    def loss(inverse: float) -> float:
        scaled = _CENTRES * inverse
        return float(target @ np.logaddexp(0, -scaled) + background @ np.logaddexp(0, scaled)) / float(counts.sum())

    low, high = TEMPERATURES
    found = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-7})
    return float(np.clip(1 / found.x, low, high))


def levels(counts: LogitCounts, temperature: float) -> LevelCounts:
    """Count the levels that soft masks would have at a temperature."""
    level = quantise(1 / (1 + np.exp(-_CENTRES / temperature)))
    return np.stack([np.bincount(level, row, 256) for row in counts]).astype(np.int64)
