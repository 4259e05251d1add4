"""The trimmed mean: at each pixel the ``trim`` lowest and the ``trim`` highest levels are left out, the mean is of the others.

So up to ``trim`` sites, whatever they send, cannot move a pixel beyond what the other sites say of it. It needs
``2 * trim + 1`` sites of every label. Each label is fused for itself, over the sites that know it; every site counts as one.
Laws, checked by tests: the order of sites does not matter; sites that agree give what they agree on; the result lies between
the lowest and the highest level of the sites that are not trimmed away. Does not work on sums alone (`all_masks`).
"""

import numpy as np

from consilium.common.soft_mask import SoftMasks
from consilium.server.fusion.all_masks import AllMasks, by_label, fold, init, merge, put_in_place, unfold

__all__ = ["finish", "fold", "init", "merge", "unfold"]


def finish(state: AllMasks, trim: int) -> SoftMasks:
    """The pseudo masks: uint8 (n, K, H, W), the mean of the middle levels rounded to the nearest, halves down.

    Raises
    ------
    DataError
        If fewer than ``2 * trim + 1`` sites were folded in of a label.
    """
    fused = np.empty(state.shape, np.uint8)
    for label, planes in by_label(state, 2 * trim + 1):
        count = len(planes) - 2 * trim
        for image in range(state.shape[0]):  # one at a time: its planes fit the processor's cache
            levels = [plane[image] for plane in planes]
            put_in_place(levels, trim)
            total = np.zeros(state.shape[2:], np.uint32)
            for middle in levels[trim : trim + count]:
                total += middle
            fused[image, label] = (2 * total + np.uint32(count - 1)) // np.uint32(2 * count)
    return fused
