"""The state of the fusions that look at each pixel's levels in order: every site's masks of the chunk.

Sums are not enough for these, so each answer waits until its chunk is finished: one byte a pixel, label, image and site, where
the weighted mean's sums take four whatever the number of sites. Nor are they possible under secure aggregation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.soft_mask import SoftMasks
from consilium.server.fusion.answers import checked_rows


@dataclass
class AllMasks:
    """The answers so far.

    Attributes
    ----------
    shape
        (n, K, H, W) of the pseudo masks to come.
    planes
        For each label, one uint8 (n, H, W) for each site that knows it; their order means nothing.
    """

    shape: tuple[int, int, int, int]
    planes: list[list[SoftMasks]]


def init(shape: tuple[int, int, int, int]) -> AllMasks:
    """Start a fusion of n images: shape (n, K, H, W)."""
    return AllMasks(shape, [[] for _ in range(shape[1])])


def fold(state: AllMasks, masks: SoftMasks, weight: int = 1, known: Sequence[int] | None = None) -> None:
    """Add one site's answer.

    Parameters
    ----------
    state
        Changed in place; keeps a copy of the masks.
    masks
        uint8 (n, known labels, H, W), else of the state's shape.
    weight
        1: a method that protects against some of the sites counts sites, so none weighs more than another.
    known
        Which labels the masks are of, by position, each once; all of them where None.
    """
    rows = checked_rows(state.shape, masks, known)
    if weight != 1:
        raise DataError(f"every site weighs 1 in this fusion; got {weight}. Weights are for the weighted mean.")
    for place, row in enumerate(rows):
        state.planes[row].append(masks[:, place].copy())


def unfold(state: AllMasks, masks: SoftMasks, _weight: int = 1, known: Sequence[int] | None = None) -> None:
    """Take one site's answer out again; parameters as it was folded in with. Of equal masks it does not matter which goes."""
    rows = checked_rows(state.shape, masks, known)
    for place, row in enumerate(rows):
        planes = state.planes[row]
        planes.pop(next(at for at, plane in enumerate(planes) if np.array_equal(plane, masks[:, place])))


def merge(state: AllMasks, other: AllMasks, labels: Sequence[int]) -> None:
    """Add the answers in another state, of some labels, as if they had been folded into this one."""
    for row in labels:
        state.planes[row].extend(other.planes[row])


def by_label(state: AllMasks, least_sites: int) -> Iterator[tuple[int, list[SoftMasks]]]:
    """Give each label's position and planes; `DataError` where fewer sites than ``least_sites`` were folded in."""
    for label, planes in enumerate(state.planes):
        if len(planes) < least_sites:
            raise DataError(
                f"this fusion needs at least {least_sites} sites' masks of every label; {len(planes)} were folded in of "
                f"label {label}"
            )
        yield label, planes


def put_in_place(planes: Sequence[npt.NDArray[np.uint8]], ends: int) -> None:
    """Exchange levels between planes, pixel by pixel, until the outer ones are in order.

    Parameters
    ----------
    planes
        uint8, all of one shape, changed in place. What levels a pixel has among them stays.
    ends
        Afterwards the first ``ends`` planes hold each pixel's lowest levels, ascending, and the last ``ends`` its highest.
    """
    last = len(planes) - 1
    for done in range(ends):
        for at in range(done, last - done):
            _exchange(planes[at], planes[at + 1])
        for at in range(last - done - 1, done, -1):
            _exchange(planes[at - 1], planes[at])


def _exchange(low: npt.NDArray[np.uint8], high: npt.NDArray[np.uint8]) -> None:
    lower = np.minimum(low, high)
    np.maximum(low, high, out=high)
    low[...] = lower
