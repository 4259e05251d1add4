"""The paper's fusion (section 2): ``y = sum_i w_i T_i(x)``, with weights that sum to one over the sites that answered.

Each label is fused for itself, over the sites that know it. Laws, checked by tests: the order of sites does not matter; one
site gives that site's mask; a constant gives that constant; scaling all weights changes nothing; a site that does not know a
label changes nothing of it. Works on sums alone, so it is possible under secure aggregation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.soft_mask import SoftMasks
from consilium.server.fusion.answers import checked_rows

WEIGHT_LIMIT: Final = (2**32 - 1) // 511
"""Most that the weights of a label may sum to: then ``2 * 255 * weight + weight``, in `finish`, fits 32 bits."""


@dataclass
class WeightedMean:
    """Sums over the sites that answered so far.

    Attributes
    ----------
    total
        uint32 (n, K, H, W): sum of weight * mask.
    weights, sites
        int64 (K,): of each label, the sum of weights, and how many sites were folded in.
    """

    total: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.int64]
    sites: npt.NDArray[np.int64]


def init(shape: tuple[int, int, int, int]) -> WeightedMean:
    """Start a fusion of n images: shape (n, K, H, W)."""
    return WeightedMean(np.zeros(shape, np.uint32), np.zeros(shape[1], np.int64), np.zeros(shape[1], np.int64))


def fold(state: WeightedMean, masks: SoftMasks, weight: int = 1, known: Sequence[int] | None = None) -> None:
    """Add one site's answer.

    Parameters
    ----------
    state
        Changed in place.
    masks
        uint8 (n, known labels, H, W), else of the state's shape.
    weight
        A whole number, at least 1, relative to the other sites'.
    known
        Which labels the masks are of, by position, each once; all of them where None.
    """
    rows = checked_rows(state.total.shape, masks, known)
    if weight < 1 or state.weights[rows].max() + weight > WEIGHT_LIMIT:
        raise DataError(
            f"weights are at least 1 and sum to at most {WEIGHT_LIMIT}; got {weight} after {state.weights[rows].max()}"
        )
    weighted = masks * np.uint32(weight) if weight > 1 else masks
    if rows == list(range(state.total.shape[1])):
        state.total += weighted
    else:
        for place, row in enumerate(rows):
            state.total[:, row] += weighted[:, place]
    state.weights[rows] += weight
    state.sites[rows] += 1


def unfold(state: WeightedMean, masks: SoftMasks, weight: int = 1, known: Sequence[int] | None = None) -> None:
    """Take one site's answer out again; parameters as it was folded in with."""
    rows = checked_rows(state.total.shape, masks, known)
    for place, row in enumerate(rows):
        state.total[:, row] -= masks[:, place] * np.uint32(weight)
    state.weights[rows] -= weight
    state.sites[rows] -= 1


def merge(state: WeightedMean, other: WeightedMean, labels: Sequence[int]) -> None:
    """Add the answers in another state, of some labels, as if they had been folded into this one."""
    rows = list(labels)
    if (state.weights[rows] + other.weights[rows] > WEIGHT_LIMIT).any():
        raise DataError(
            f"weights sum to at most {WEIGHT_LIMIT}; got {(state.weights[rows] + other.weights[rows]).max()}"
        )
    state.total[:, rows] += other.total[:, rows]
    state.weights[rows] += other.weights[rows]
    state.sites[rows] += other.sites[rows]


def finish(state: WeightedMean) -> SoftMasks:
    """The pseudo masks: uint8 (n, K, H, W), the weighted mean rounded to the nearest level, halves down as in `soft_mask`.

    So a mean of exactly one half, of two binary teachers that disagree for example, is no target pixel.
    """
    lacking = np.flatnonzero(state.sites == 0).tolist()
    if lacking:
        raise DataError(f"a fusion needs at least one site's masks of every label; none were folded in of {lacking}")
    masks = np.empty(state.total.shape, np.uint8)
    for label, weight in enumerate(state.weights.astype(np.uint32)):
        masks[:, label] = (2 * state.total[:, label] + weight - np.uint32(1)) // (2 * weight)
    return masks
