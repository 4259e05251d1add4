"""The paper's fusion (section 2): ``y = sum_i w_i T_i(x)``, with weights that sum to one over the sites that answered.

Laws, checked by tests: the order of sites does not matter; one site gives that site's mask; a constant gives that
constant; scaling all weights changes nothing. Works on sums alone, so it is possible under secure aggregation.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.soft_mask import SoftMasks

WEIGHT_LIMIT: Final = (2**32 - 1) // 511
"""Most that the weights may sum to: then ``2 * 255 * weight + weight``, in `finish`, fits 32 bits."""


@dataclass
class WeightedMean:
    """Sums over the sites that answered so far.

    Attributes
    ----------
    total
        uint32 (n, K, H, W): sum of weight * mask.
    weight
        Sum of weights.
    sites
        How many were folded in.
    """

    total: npt.NDArray[np.uint32]
    weight: int = 0
    sites: int = 0


def init(shape: tuple[int, int, int, int]) -> WeightedMean:
    """Start a fusion of n images: shape (n, K, H, W)."""
    return WeightedMean(np.zeros(shape, np.uint32))


def fold(state: WeightedMean, masks: SoftMasks, weight: int = 1) -> None:
    """Add one site's answer.

    Parameters
    ----------
    state
        Changed in place.
    masks
        uint8, the state's shape.
    weight
        A whole number, at least 1, relative to the other sites'.
    """
    if masks.shape != state.total.shape or masks.dtype != np.uint8:
        raise DataError(f"soft masks here are uint8 {state.total.shape}; got {masks.dtype} {masks.shape}")
    if weight < 1 or state.weight + weight > WEIGHT_LIMIT:
        raise DataError(f"weights are at least 1 and sum to at most {WEIGHT_LIMIT}; got {weight} after {state.weight}")
    state.total += masks * np.uint32(weight) if weight > 1 else masks
    state.weight += weight
    state.sites += 1


def finish(state: WeightedMean) -> SoftMasks:
    """The pseudo masks: uint8 (n, K, H, W), the weighted mean rounded to the nearest level, halves down as in `soft_mask`.

    So a mean of exactly one half, of two binary teachers that disagree for example, is no target pixel.
    """
    if state.sites == 0:
        raise DataError("a fusion needs at least one site's masks; none were folded in")
    weight = np.uint32(state.weight)
    return np.asarray((2 * state.total + weight - np.uint32(1)) // (2 * weight), np.uint8)
