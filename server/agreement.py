"""Agreement: how far each site's masks are those of the other sites, to find one that is wrong.

Of two masks of an image it is their soft Dice, ``2 sum min(a, b) / (sum a + sum b)``: 1 between equals, 1 where both are empty,
0 where they share nothing. A site's agreement on an image is the median over the other sites, so that fewer than half of them,
however wrong, cannot lower an honest site's. (Against the mean of the others they can: a mean with one inverted mask is half
gray everywhere.) All of it is in whole numbers, ten-thousandths, so it does not depend on the order of answers.

An image from which a site abstained is none of its own: two sites are compared on the images that both answered.

To be cheap it looks at a lattice of about `GRID` x `GRID` pixels of each mask, 4 KB whatever the image's size; these wait until
their chunk is finished. It needs every site's masks, on that lattice, so it is not possible under secure aggregation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.soft_mask import SoftMasks

GRID: Final = 64
WHOLE: Final = 10_000
"""Full agreement, in ten-thousandths."""
FEWEST: Final = 3
"""Sites it takes to say that one stands apart."""
SHARE: Final = 0.5
_NOT_MET: Final = WHOLE + 1


@dataclass(frozen=True)
class Sample:
    """What is kept of an answer.

    Attributes
    ----------
    masks
        uint8 (n, known labels, h, w).
    known
        Positions of the labels they are of.
    answered
        bool (n,): on which images it is an answer; all where None.
    """

    masks: SoftMasks
    known: tuple[int, ...]
    answered: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Agreement:
    """Mean over ``n`` images, in percent."""

    mean: float
    n: int


def sample(masks: SoftMasks, known: Sequence[int], answered: npt.NDArray[np.bool_] | None = None) -> Sample:
    """Take every so many-th pixel of an answer, uint8 (n, known labels, H, W), in both directions."""
    step = max(1, masks.shape[-1] // GRID)
    return Sample(np.ascontiguousarray(masks[:, :, step // 2 :: step, step // 2 :: step]), tuple(known), answered)


def of_chunk(samples: Mapping[str, Sample]) -> dict[str, tuple[int, int]]:
    """Compare all sites' answers to a chunk.

    Parameters
    ----------
    samples
        By site, all of the same images.

    Returns
    -------
    dict
        By site, number of images and the sum of its agreement on them, in ten-thousandths. A site that shares no label and
        image with another is not there.
    """
    met: dict[str, list[npt.NDArray[np.int64]]] = {site: [] for site in samples}
    for (one, ours), (other, theirs) in combinations(samples.items(), 2):
        shared = [label for label in ours.known if label in theirs.known]
        if shared:
            overlap = soft_dice(_labels(ours, shared), _labels(theirs, shared))
            overlap[~_both_answered(ours, theirs)] = _NOT_MET
            met[one].append(overlap)
            met[other].append(overlap)
    medians = {site: _median(found) for site, found in met.items() if found}
    return {site: (len(found), int(found.sum())) for site, found in medians.items() if len(found)}


def between(
    samples: Mapping[str, Sample], heard: Mapping[str, npt.NDArray[np.bool_]], count: int
) -> npt.NDArray[np.int64]:
    """Compare the sites that a pseudo mask was made of with each other.

    Parameters
    ----------
    samples
        By site, all of the same images.
    heard
        By site, bool (n, known labels): which of its masks were folded in.
    count
        The number of images, n.

    Returns
    -------
    NDArray
        int64 (n,), in ten-thousandths: the mean over pairs of sites of their soft Dice on the labels of which both were folded
        in; -1 where there is no such pair.
    """
    total, pairs = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for (one, ours), (other, theirs) in combinations(samples.items(), 2):
        shared = [label for label in ours.known if label in theirs.known]
        if not shared:
            continue
        both = _rows(heard[one], ours, shared) & _rows(heard[other], theirs, shared)
        shown = both[:, :, None, None]
        overlap = soft_dice(_labels(ours, shared) * shown, _labels(theirs, shared) * shown)
        met = both.any(axis=1)
        total += np.where(met, overlap, 0)
        pairs += met
    return np.where(pairs > 0, total // np.maximum(pairs, 1), -1)


def soft_dice(ours: SoftMasks, theirs: SoftMasks) -> npt.NDArray[np.int64]:
    """Soft Dice of each image over all its labels, in ten-thousandths: int64 (n,), from uint8 (n, K, h, w)."""
    axes = (1, 2, 3)
    common = np.minimum(ours, theirs).sum(axes, dtype=np.int64)
    both = ours.sum(axes, dtype=np.int64) + theirs.sum(axes, dtype=np.int64)
    return np.asarray(np.where(both > 0, 2 * WHOLE * common // np.maximum(both, 1), WHOLE), np.int64)


def stand_apart(agreement: Mapping[str, Agreement]) -> list[str]:
    """Sites whose agreement is below half of the median site's, of at least three: something is wrong there.

    A weak teacher stays above it: its outlines are poor, but mostly where the others' are.
    """
    if len(agreement) < FEWEST:
        return []
    least = SHARE * median(held.mean for held in agreement.values())
    return sorted(site for site, held in agreement.items() if held.mean < least)


def _rows(heard: npt.NDArray[np.bool_], held: Sample, wanted: list[int]) -> npt.NDArray[np.bool_]:
    return heard[:, [held.known.index(label) for label in wanted]]


def _labels(held: Sample, wanted: list[int]) -> SoftMasks:
    return held.masks if list(held.known) == wanted else held.masks[:, [held.known.index(label) for label in wanted]]


def _both_answered(ours: Sample, theirs: Sample) -> npt.NDArray[np.bool_]:
    both = np.ones(len(ours.masks), np.bool_)
    for held in (ours.answered, theirs.answered):
        if held is not None:
            both &= held
    return both


def _median(found: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """The median over a site's partners, of each image that it met any of them on."""
    ordered = np.sort(np.stack(found), axis=0)  # those that were not met on an image come last
    partners = (ordered < _NOT_MET).sum(axis=0)
    images = np.flatnonzero(partners)
    low, high = (partners[images] - 1) // 2, partners[images] // 2
    return np.asarray((ordered[low, images] + ordered[high, images]) // 2, np.int64)
