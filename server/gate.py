"""The gate: a site that sees no target of a label in an image is silent there, and a quorum of sites must see one.

A teacher that misses a target says 0 as surely as one that looks at an image without any; two of four that miss draw the mean
below one half. So the mean is taken over the sites that see something. Alone that would believe every false alarm, so it takes
a quorum of the sites that answered; where fewer see a target, nobody is silent, and the mean is that of all.

Each label is gated for itself, over the sites that know it. It needs each site's own mask, or of each site one bit more an image
and label; with that bit it is possible under secure aggregation.
"""

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from consilium.common.soft_mask import TARGET_LEVEL, SoftMasks
from consilium.common.validation import Validation
from consilium.server.exclusion import least_target_pixels

Gate = Literal["none", "majority"] | int

NEVER_SILENT: Final = frozenset[str]()


def sees(masks: SoftMasks, alpha: float) -> npt.NDArray[np.bool_]:
    """Tell where a site sees a target: bool (n, K), from its masks, uint8 (n, K, H, W).

    It does where it draws as many target pixels as exclusion asks of a pseudo mask, ``alpha`` scaled with the area, and at
    least one.
    """
    drawn = np.count_nonzero(masks >= TARGET_LEVEL, axis=(2, 3))
    return np.asarray(drawn >= max(least_target_pixels(alpha, masks.shape[-1]), 1))


def quorum(gate: Gate, answered: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give how many sites must see a target, of so many that answered, int64 of any shape.

    A majority is more than half. A number is not more than answered: where fewer did, all of them must. Without a gate it is 0.
    """
    if gate == "none":
        return np.zeros_like(answered)
    if gate == "majority":
        return np.asarray(answered // 2 + 1)
    return np.asarray(np.minimum(answered, gate))


def heard_always(gate: Gate, validation: Mapping[str, Validation]) -> frozenset[str]:
    """Name the sites that are not gated: those with more false alarms than misses in their own validation.

    When such a site draws nothing, that says more than when it draws something.
    """
    if gate == "none":
        return NEVER_SILENT
    return frozenset(site for site, found in validation.items() if found.false_alarms > found.misses)
