"""The median: at each pixel the middle level, or the mean of the two middle ones, rounded down to a half's lower level.

Fewer than half of the sites, whatever they send, cannot move a pixel beyond what the others say of it; with one or two sites
that is none. Each label is fused for itself, over the sites that know it; every site counts as one. Laws, checked by tests: the
order of sites does not matter; one site gives that site's mask; the result lies between the lowest and the highest level; of
binary masks it is the majority's, and no target pixel where two halves disagree. Does not work on sums alone (`all_masks`).
"""

import numpy as np

from consilium.common.soft_mask import SoftMasks
from consilium.server.fusion.all_masks import AllMasks, by_label, fold, init, merge, put_in_place, unfold

__all__ = ["finish", "fold", "init", "merge", "unfold"]


def finish(state: AllMasks) -> SoftMasks:
    """The pseudo masks: uint8 (n, K, H, W); `DataError` if no site was folded in of a label."""
    fused = np.empty(state.shape, np.uint8)
    for label, planes in by_label(state, 1):
        count = len(planes)
        for image in range(state.shape[0]):  # one at a time: its planes fit the processor's cache
            levels = [plane[image] for plane in planes]
            put_in_place(levels, (count + 1) // 2)
            fused[image, label] = (levels[(count - 1) // 2].astype(np.uint16) + levels[count // 2]) // np.uint16(2)
    return fused
