"""Distances between the outlines of two masks, by DeepMind's ``surface-distance``.

Tools differ by many pixels on the same pair of masks: they disagree on what the outline is, on how its elements are
weighted, and on which percentile is meant (Podobnik and Vrtovec, arXiv 2410.02630). So there is one tool here, pinned, and
it is never asked about a mask without an outline: its release 0.1 fails there under NumPy 2, and what such a pair means is
decided in `consilium.common.evaluation.per_image`.

In its two dimensions outline elements lie on the corners between pixels, weigh as long as the outline is there, and both
directions count. Border pixels of the picture have an outline too.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import surface_distance

from consilium.common.errors import DataError

TOLERANCES_PX: Final = (2, 5)
"""How far apart two outlines may be and still agree, for the normalised surface Dice."""

_PIXELS: Final = (1, 1)


@dataclass(frozen=True)
class Boundary:
    """How far two outlines are apart.

    Attributes
    ----------
    hd95_px
        95 percent of either outline are at most this far from the other; the worse direction counts.
    assd_px
        Mean distance over both outlines, by length.
    nsd
        Part of both outlines that is within each of `TOLERANCES_PX` of the other, in [0, 1].
    """

    hd95_px: float
    assd_px: float
    nsd: tuple[float, ...]


def compare(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Boundary:
    """Compare the outlines of two masks.

    Parameters
    ----------
    mask, truth
        bool (H, W), each with at least one pixel.

    Raises
    ------
    DataError
        If one of them is empty: there is no outline to measure to.
    """
    if mask.shape != truth.shape or mask.ndim != 2:
        raise DataError(f"two masks that are compared have one shape (H, W); got {mask.shape} and {truth.shape}")
    if not mask.any() or not truth.any():
        raise DataError("an empty mask has no outline; decide what it counts before asking for distances")
    with (
        warnings.catch_warnings()
    ):  # its imports from scipy are old; pyproject.toml keeps scipy below 2, which ends them
        warnings.filterwarnings("ignore", "Please import", DeprecationWarning)
        found = surface_distance.compute_surface_distances(truth, mask, _PIXELS)
    there, back = found["distances_gt_to_pred"], found["distances_pred_to_gt"]
    length_there, length_back = found["surfel_areas_gt"], found["surfel_areas_pred"]
    total = float(there @ length_there + back @ length_back)
    return Boundary(
        hd95_px=float(surface_distance.compute_robust_hausdorff(found, 95)),
        assd_px=total / float(length_there.sum() + length_back.sum()),
        nsd=tuple(float(surface_distance.compute_surface_dice_at_tolerance(found, reach)) for reach in TOLERANCES_PX),
    )
