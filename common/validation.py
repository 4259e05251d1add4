"""Validation: what a teacher is worth, measured by its site on labelled images it was not trained on.

A site tells the coordinator these few numbers and nothing of a single image; the site's policy says from how many images on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common import metrics, temperature
from consilium.common.datasets.labelled import Labelled
from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks, quantise

_BATCH: Final = 16


@dataclass(frozen=True)
class Validation:
    """Of one teacher, on ``n`` images.

    Attributes
    ----------
    dice
        Mean over the images, in percent.
    n
        Images; at least 1.
    temperature
        That makes its probabilities true; 1 where nothing could be learned.
    misses
        True masks that show a target, of which its mask touches no pixel.
    false_alarms
        True masks that show none, for which its mask shows one.
    """

    dice: float
    n: int
    temperature: float = 1.0
    misses: int = 0
    false_alarms: int = 0

    def to_card(self) -> dict[str, float | int]:
        """The form it has in a teacher's card."""
        return {
            "dice-mean": round(self.dice, 4),
            "images": self.n,
            "temperature": round(self.temperature, 4),
            "misses": self.misses,
            "false-alarms": self.false_alarms,
        }


def from_card(card: Mapping[str, Any]) -> Validation | None:
    """Read what a site says of its teacher; None if it says nothing, or nothing that could be true."""
    try:
        told = card["validation"]
        found = Validation(
            dice=float(told["dice-mean"]),
            n=int(told["images"]),
            temperature=float(told["temperature"]),
            misses=int(told["misses"]),
            false_alarms=int(told["false-alarms"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    low, high = temperature.TEMPERATURES
    true = 0 <= found.dice <= 100 and found.n >= 1 and low <= found.temperature <= high
    return found if true and found.misses >= 0 and found.false_alarms >= 0 else None


def count_faults(masks: SoftMasks, truth: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Count misses and false alarms, as `Validation` has them, of masks and their truth, (n, K, H, W)."""
    drawn, real = masks >= TARGET_LEVEL, np.asarray(truth) > 0
    shown, touched = real.any(axis=(2, 3)), (drawn & real).any(axis=(2, 3))
    return int(np.count_nonzero(shown & ~touched)), int(np.count_nonzero(~shown & drawn.any(axis=(2, 3))))


def measure(
    predict: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]], data: Labelled, clip: float
) -> Validation | None:
    """Measure a teacher.

    Parameters
    ----------
    predict
        Its probabilities at temperature 1: uint8 (n, C, H, W) in, float (n, K, H, W) in [0, 1] out.
    data
        Labelled images in the form that it is asked about.
    clip
        How close to 0 and 1 its probabilities are believed; see `temperature.temper`.

    Returns
    -------
    Validation or None
        None without images.
    """
    counts = temperature.NO_COUNTS.copy()
    dice: list[npt.NDArray[np.float64]] = []
    misses = alarms = 0
    for at in range(0, len(data), _BATCH):
        truth = np.asarray(data.masks[at : at + _BATCH])
        probabilities = predict(np.asarray(data.images[at : at + _BATCH]))
        masks = quantise(probabilities)
        counts += temperature.count(probabilities, truth > 0, clip)
        dice.append(metrics.dice(masks, truth))
        missed, alarmed = count_faults(masks, truth)
        misses, alarms = misses + missed, alarms + alarmed
    if not dice:
        return None
    every = np.concatenate(dice)
    return Validation(100 * float(every.mean()), len(every), temperature.fit(counts), misses, alarms)
