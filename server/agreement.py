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
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from consilium.common.soft_mask import SoftMasks

GRID: Final = 64
WHOLE: Final = 10_000
"""Full agreement, in ten-thousandths."""
FEWEST: Final = 3
"""Sites it takes to say that one stands apart."""
SHARE: Final = 0.5
NOT_MET: Final = -1
"""In place of agreement, where there is nobody to agree with."""

Counts = npt.NDArray[np.int64]
ValueT = TypeVar("ValueT", bound=np.generic)


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


@dataclass(frozen=True)
class Meeting:
    """Two sites' answers to n images, on the labels that both know.

    Attributes
    ----------
    one, other
        Their names.
    shared
        Positions of these labels.
    common, both
        int64 (n, labels): the sums of the lower levels, and of all.
    """

    one: str
    other: str
    shared: tuple[int, ...]
    common: Counts
    both: Counts


def meetings(samples: Mapping[str, Sample]) -> list[Meeting]:
    """Lay every two sites' answers to a chunk, all of the same images, over each other; those that share a label."""
    found = []
    sizes = {site: held.masks.sum((2, 3), dtype=np.int64) for site, held in samples.items()}
    for (one, ours), (other, theirs) in combinations(samples.items(), 2):
        shared = [label for label in ours.known if label in theirs.known]
        if shared:
            common = np.minimum(_of(ours.masks, ours, shared), _of(theirs.masks, theirs, shared))
            both = _of(sizes[one], ours, shared) + _of(sizes[other], theirs, shared)
            found.append(Meeting(one, other, tuple(shared), common.sum((2, 3), dtype=np.int64), both))
    return found


def of_chunk(samples: Mapping[str, Sample], met: Sequence[Meeting] | None = None) -> dict[str, tuple[int, int]]:
    """Compare all sites' answers to a chunk.

    Parameters
    ----------
    samples
        By site, all of the same images.
    met
        Their `meetings`, if they are there already.

    Returns
    -------
    dict
        By site, number of images and the sum of its agreement on them, in ten-thousandths. A site that shares no label and
        image with another is not there.
    """
    found = by_image(samples, meetings(samples) if met is None else met)
    counted = {site: held[held != NOT_MET] for site, held in found.items()}
    return {site: (len(held), int(held.sum())) for site, held in counted.items() if len(held)}


def by_image(samples: Mapping[str, Sample], met: Sequence[Meeting], label: int | None = None) -> dict[str, Counts]:
    """Compare each site with the others, image by image.

    Parameters
    ----------
    samples, met
        By site, all of the same n images, and their `meetings`.
    label
        The one that is looked at, by position; where None, all that two sites share, taken together.

    Returns
    -------
    dict
        By site, int64 (n,), in ten-thousandths: its agreement; `NOT_MET` where no other site answered. A site that shares no
        label with another, or does not know the one asked for, is not there.
    """
    found: dict[str, list[Counts]] = {site: [] for site in samples}
    for meeting in met:
        if label is None:
            common, both = meeting.common.sum(axis=1), meeting.both.sum(axis=1)
        elif label in meeting.shared:
            at = meeting.shared.index(label)
            common, both = meeting.common[:, at], meeting.both[:, at]
        else:
            continue
        overlap = _dice(common, both)
        overlap[~_both_answered(samples[meeting.one], samples[meeting.other])] = NOT_MET
        found[meeting.one].append(overlap)
        found[meeting.other].append(overlap)
    return {site: median_of_met(np.stack(overlaps)) for site, overlaps in found.items() if overlaps}


def between(
    samples: Mapping[str, Sample], met: Sequence[Meeting], heard: Mapping[str, npt.NDArray[np.bool_]], count: int
) -> Counts:
    """Compare the sites that a pseudo mask was made of with each other.

    Parameters
    ----------
    samples, met
        By site, all of the same images, and their `meetings`.
    heard
        By site, bool (n, known labels): which of its masks were folded in.
    count
        The number of images, n.

    Returns
    -------
    NDArray
        int64 (n,), in ten-thousandths: the mean over pairs of sites of their soft Dice on the labels of which both were folded
        in; `NOT_MET` where there is no such pair.
    """
    total, pairs = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for one in met:
        ours, theirs = (_of(heard[site], samples[site], one.shared) for site in (one.one, one.other))
        folded = ours & theirs
        there = folded.any(axis=1)
        total += np.where(there, _dice((one.common * folded).sum(axis=1), (one.both * folded).sum(axis=1)), 0)
        pairs += there
    return np.asarray(np.where(pairs > 0, total // np.maximum(pairs, 1), NOT_MET), np.int64)


def soft_dice(ours: SoftMasks, theirs: SoftMasks) -> Counts:
    """Soft Dice of each image over all its labels, in ten-thousandths: int64 (n,), from uint8 (n, K, h, w)."""
    axes = (1, 2, 3)
    common = np.minimum(ours, theirs).sum(axes, dtype=np.int64)
    return _dice(common, ours.sum(axes, dtype=np.int64) + theirs.sum(axes, dtype=np.int64))


def _dice(common: Counts, both: Counts) -> Counts:
    return np.asarray(np.where(both > 0, 2 * WHOLE * common // np.maximum(both, 1), WHOLE), np.int64)


def median_of_met(found: Counts) -> Counts:
    """Give the median of agreements, int64 (m, n), over those of an image that are not `NOT_MET`, if any; halves down."""
    ordered = np.sort(found, axis=0)  # those that are not met come first
    missing = (ordered == NOT_MET).sum(axis=0)
    met, images = len(ordered) - missing, np.arange(ordered.shape[1])
    low, high = missing + (met - 1) // 2, missing + met // 2
    middle = (
        ordered[np.minimum(low, len(ordered) - 1), images] + ordered[np.minimum(high, len(ordered) - 1), images]
    ) // 2
    return np.asarray(np.where(met > 0, middle, NOT_MET), np.int64)


def stand_apart(agreement: Mapping[str, Agreement]) -> list[str]:
    """Sites whose agreement is below half of the median site's, of at least three: something is wrong there.

    A weak teacher stays above it: its outlines are poor, but mostly where the others' are.
    """
    if len(agreement) < FEWEST:
        return []
    least = SHARE * median(held.mean for held in agreement.values())
    return sorted(site for site, held in agreement.items() if held.mean < least)


def _of(values: npt.NDArray[ValueT], held: Sample, wanted: Sequence[int]) -> npt.NDArray[ValueT]:
    """Choose labels of an array (n, known labels, ...)."""
    return values if held.known == tuple(wanted) else values[:, [held.known.index(label) for label in wanted]]


def _both_answered(ours: Sample, theirs: Sample) -> npt.NDArray[np.bool_]:
    both = np.ones(len(ours.masks), np.bool_)
    for held in (ours.answered, theirs.answered):
        if held is not None:
            both &= held
    return both
