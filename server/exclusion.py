"""Exclusion: leaving an image without a salient target out of the student's training (section 2, Algorithm 1).

The paper's rule knows target pixels and gray-level entropy. Entropy measures fuzz, not error: the consensus rule asks instead
whether a quorum of sites sees a target, however fuzzy.

Both statistics are computed on the final uint8 pseudo mask. For several labels the union counts: the largest level over
the labels at each pixel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks

PAPER_SIZE: Final = 384
"""Height and width, in pixels, at which ``alpha`` is stated."""


class Reason(StrEnum):
    """Why an image is left out; empty where it is kept. One with too few masks has no pseudo mask: nothing is measured.

    A far set is left out as a whole, whatever its single images are.
    """

    KEPT = ""
    FEW_TARGET_PIXELS = "few-target-pixels"
    HIGH_ENTROPY = "high-entropy"
    BOTH = "few-target-pixels+high-entropy"
    NO_CONSENSUS = "no-consensus"
    FEW_AND_NO_CONSENSUS = "few-target-pixels+no-consensus"
    TOO_FEW_MASKS = "too-few-masks"
    FAR_SET = "far-set"


@dataclass(frozen=True)
class Statistics:
    """Of n pseudo masks: ``target_pixels`` int64 (n,), ``entropy_bits`` float64 (n,) in [0, 8]."""

    target_pixels: npt.NDArray[np.int64]
    entropy_bits: npt.NDArray[np.float64]


def join(parts: Iterable[Statistics]) -> Statistics:
    """Put the statistics of several chunks one behind the other."""
    listed = list(parts)
    return Statistics(
        np.concatenate([part.target_pixels for part in listed]), np.concatenate([part.entropy_bits for part in listed])
    )


def statistics(masks: SoftMasks) -> Statistics:
    """Count target pixels and measure gray-level entropy.

    ``E = -sum_i h_i log2 h_i`` over the 256-bin histogram ``h`` of levels. A binary mask has at most 1 bit, a constant
    mask none. One histogram gives both numbers.

    Parameters
    ----------
    masks
        Pseudo masks, uint8 (n, K, H, W).
    """
    planes = masks[:, 0] if masks.shape[1] == 1 else masks.max(axis=1)
    counts = np.array([Image.fromarray(plane).histogram() for plane in planes], np.int64)  # twice np.bincount's speed
    share = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return Statistics(counts[:, TARGET_LEVEL:].sum(axis=1), -(share * logs).sum(axis=1) + 0.0)


def least_target_pixels(alpha: float, size: int) -> float:
    """Scale ``alpha``, target pixels at 384 x 384, with the area to ``size`` x ``size``."""
    return alpha * size * size / PAPER_SIZE**2


def reasons(found: Statistics, *, alpha: float, beta: float | None, size: int) -> list[Reason]:
    """Decide about each image.

    Parameters
    ----------
    found
        Of the pseudo masks.
    alpha
        Least target pixels at 384 x 384; scaled with the area to ``size`` x ``size``. Strict: ``N < alpha`` is out.
    beta
        Most gray-level entropy in bits, strict: ``E > beta`` is out. None where every teacher is binary, as in the paper.
    size
        Height and width of the masks in pixels.
    """
    few = found.target_pixels < least_target_pixels(alpha, size)
    high = found.entropy_bits > beta if beta is not None else np.zeros(len(few), bool)
    table = {
        (False, False): Reason.KEPT,
        (True, False): Reason.FEW_TARGET_PIXELS,
        (False, True): Reason.HIGH_ENTROPY,
        (True, True): Reason.BOTH,
    }
    return [table[bool(n), bool(e)] for n, e in zip(few, high, strict=True)]


def reasons_by_consensus(
    found: Statistics, consensus: npt.NDArray[np.bool_], *, alpha: float, size: int
) -> list[Reason]:
    """Decide about each image by the consensus rule: few target pixels as in `reasons`, or no quorum sees a target.

    Parameters
    ----------
    consensus
        bool (n,): whether a quorum does.
    """
    few = found.target_pixels < least_target_pixels(alpha, size)
    table = {
        (False, True): Reason.KEPT,
        (True, True): Reason.FEW_TARGET_PIXELS,
        (False, False): Reason.NO_CONSENSUS,
        (True, False): Reason.FEW_AND_NO_CONSENSUS,
    }
    return [table[bool(n), bool(met)] for n, met in zip(few, consensus, strict=True)]


def without_far_sets(
    reasons: Sequence[Reason], sets: Sequence[str], weights: npt.NDArray[np.float64], least: float
) -> list[Reason]:
    """Leave out whole transferal sets that the sites are far less sure and of one mind about than about the best one.

    One image says little: a pseudo mask that sites agree about may be wrong, and a hard case of their own organ is what the
    student needs. The mean over a set says much: about images of another organ, sites differ.

    Parameters
    ----------
    reasons
        Decided image by image; the means are over those that are kept.
    sets
        Which set each image came with.
    weights
        float64 (n,), of each image; see `weighting.image_weights`.
    least
        Share of the best set's mean weight, in [0, 1); 0 leaves out none.
    """
    kept = np.array([not reason for reason in reasons], np.bool_)
    names = np.array(sets)
    means = {name: float(weights[kept & (names == name)].mean()) for name in sorted(set(names[kept].tolist()))}
    far = {name for name, mean in means.items() if mean < least * max(means.values())}
    return [Reason.FAR_SET if not why and name in far else why for why, name in zip(reasons, sets, strict=True)]
