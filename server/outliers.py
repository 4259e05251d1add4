"""Outliers: of each image, the masks that stand apart from all other sites' are left out.

A site's agreement on an image is that of `agreement`, here of each label for itself: the median over the other sites of their
soft Dice with its mask. A mask is an outlier where that is below half of the median site's: the rule by which the report says
that a site stands apart, image by image. It takes three sites to have one, fewer than half of them can be one, and the median
site must agree with the others at all (`COMMON`): where half see a target and half do not, nobody stands apart.

Left out means that neither its levels count nor what it sees: a site that sends the opposite of its masks sees a target
everywhere, and the gate would take it for a voice. An honest site that is alone with a false alarm, or alone misses the
target, stands apart as well. It needs each site's own masks, so it is not possible under secure aggregation.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.server.agreement import FEWEST, NOT_MET, SHARE, WHOLE, Meeting, Sample, by_image, median_of_met

COMMON: Final = WHOLE // 5
"""Least agreement of the median site, in ten-thousandths, for another to stand apart from it."""

Flags = npt.NDArray[np.bool_]


def outliers(samples: Mapping[str, Sample], met: Sequence[Meeting], needed: int) -> dict[str, Flags]:
    """Find the masks that are left out.

    Parameters
    ----------
    samples, met
        By site, all of the same n images, and their `agreement.meetings`.
    needed
        How many masks of a label the fusion needs. Of an image that would be left with fewer, all count.

    Returns
    -------
    dict
        By site, bool (n, known labels).
    """
    found = {site: np.zeros((len(held.masks), len(held.known)), np.bool_) for site, held in samples.items()}
    for label in sorted({label for held in samples.values() for label in held.known}):
        by_site = by_image(samples, met, label)
        if len(by_site) < FEWEST:
            continue
        agreed = np.stack(list(by_site.values()))
        there = agreed != NOT_MET
        middle = median_of_met(agreed)
        apart = there & (agreed < SHARE * middle) & (middle >= COMMON)
        apart &= (there.sum(axis=0) >= FEWEST) & ((there & ~apart).sum(axis=0) >= needed)
        for site, theirs in zip(by_site, apart, strict=True):
            found[site][:, samples[site].known.index(label)] = theirs
    return found
