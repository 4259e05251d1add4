"""The fusions a study may choose from, behind one interface.

=================  =========================================================  ==========================================
method             holds against                                              state of a chunk, bytes a pixel
=================  =========================================================  ==========================================
``weighted-mean``  none: one site moves the mean as far as its weight says     4, whatever the number of sites (sums alone)
``trimmed-mean``   up to ``trim`` sites; needs ``2 * trim + 1`` of each label  1 a site (all masks)
``median``         fewer than half of the sites                                1 a site (all masks)
``staple``         sites that are often wrong where most agree                 1 a site (all masks)
``stack``          sites that are often wrong on the coordinator's own images  1 a site (all masks)
=================  =========================================================  ==========================================

The stack has to know whose mask is whose, so it is not behind this interface but in `consilium.server.stacking`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from consilium.common.soft_mask import SoftMasks
from consilium.common.study import FusionSettings
from consilium.server.fusion import median, staple, trimmed_mean, weighted_mean


@dataclass(frozen=True)
class Method:
    """A fusion: ``init(shape)``, then ``fold(state, masks, weight, known)`` for each site, then ``finish(state)``.

    Every state is of all labels, and each label is fused for itself.

    Attributes
    ----------
    init
        Gives a state for n images, of shape (n, K, H, W).
    fold
        Adds one site's masks, uint8 (n, known labels, H, W), to the state, in any order.
    unfold
        Takes a site's masks out of the state again; called as `fold` was.
    merge
        ``merge(state, other, labels)`` adds what was folded into another state, of some labels.
    finish
        Gives the pseudo masks, uint8 (n, K, H, W). Needs `FusionSettings.least_sites` of every label.
    """

    init: Callable[[tuple[int, int, int, int]], Any]
    fold: Callable[[Any, SoftMasks, int, Sequence[int] | None], None]
    unfold: Callable[[Any, SoftMasks, int, Sequence[int] | None], None]
    merge: Callable[[Any, Any, Sequence[int]], None]
    finish: Callable[[Any], SoftMasks]


def method_of(settings: FusionSettings) -> Method:
    """Find the method that a study's settings name; of a stack, the mean that stands in for it."""
    settings = settings.stand_in
    if settings.method == "trimmed-mean":
        finish = partial(trimmed_mean.finish, trim=settings.trim)
        return Method(trimmed_mean.init, trimmed_mean.fold, trimmed_mean.unfold, trimmed_mean.merge, finish)
    module = {"median": median, "staple": staple, "weighted-mean": weighted_mean}[settings.method]
    return Method(module.init, module.fold, module.unfold, module.merge, module.finish)
