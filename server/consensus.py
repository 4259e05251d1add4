"""A consensus: what sites answered about some images, with their weights, behind the gate, fused into pseudo masks.

The collector folds answers into a `Panel` as they arrive; `fuse` does the same with masks at hand. What comes out does not
depend on the order of sites.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.soft_mask import SoftMasks
from consilium.common.study import FusionSettings
from consilium.common.validation import Validation
from consilium.server import agreement, gate
from consilium.server.fusion.methods import method_of
from consilium.server.outliers import outliers
from consilium.server.site_weights import site_weights

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Again = Callable[[int], SoftMasks]
Put = Callable[[Any, SoftMasks, int, Sequence[int] | None], None]


@dataclass(frozen=True)
class Fused:
    """Pseudo masks of n images, and what stands behind them.

    Attributes
    ----------
    masks
        uint8 (n, K, H, W); 0 everywhere where a label has too few masks.
    seen, answered
        int64 (n, K): how many sites see a target of a label, outliers left out, and how many gave a mask of it.
    consensus
        bool (n,): whether a quorum of sites sees a target of some label; without a gate, whether any does.
    agreement
        float64 (n,), in [0, 1]: mean soft Dice between the sites that were folded in; NaN where they are fewer than two.
    silent
        By site, bool (n,): whether its mask of some label was left out, by the gate or as an outlier.
    by_mean
        bool (n,): whether, in place of a stack, the mean made the mask of some label.
    agreement_by_site
        See `agreement.of_chunk`.
    """

    masks: SoftMasks
    seen: Counts
    answered: Counts
    consensus: Flags
    agreement: npt.NDArray[np.float64]
    silent: Mapping[str, Flags]
    by_mean: Flags
    agreement_by_site: Mapping[str, tuple[int, int]]


def fuse(
    masks: Mapping[str, SoftMasks],
    fusion: FusionSettings,
    validation: Mapping[str, Validation] | None = None,
    alpha: float = 256.0,
    known: Mapping[str, Sequence[int]] | None = None,
) -> Fused:
    """Fuse masks at hand, as a study with these settings does.

    Parameters
    ----------
    masks
        By site, uint8 (n, K, H, W), all of the same images, as they leave the sites: views are averaged and temperatures
        applied there (`consilium.common.temperature.temper`), not here.
    fusion
        Its `method`, `trim`, `weights`, `gate` and `outliers` count. Of a stack it is the mean that stands in for it: see
        `consilium.server.stacking.applied`.
    validation
        Of the sites that report it: for ``weights = "validation"``, and for who is never silent.
    alpha
        Target pixels, at 384 x 384, from which on a site sees a target.
    known
        By site, which labels its masks are of, by position; all of them where a site is not named.
    """
    if not masks:
        raise DataError("a consensus needs at least one site's masks; got none")
    of = {site: tuple((known or {}).get(site, range(held.shape[1]))) for site, held in masks.items()}
    first = next(iter(masks.values()))
    shape = (len(first), 1 + max(max(rows) for rows in of.values()), *first.shape[2:])
    panel = Panel(shape, fusion, weights_of(list(masks), fusion, validation or {}), validation or {}, alpha)
    for site, held in masks.items():
        panel.fold(site, held, of[site])
    return panel.finish()


def weights_of(sites: Sequence[str], fusion: FusionSettings, validation: Mapping[str, Validation]) -> Mapping[str, int]:
    """Give each site's whole-number weight: what the study names, by validation, or 1. In a robust fusion every site is one."""
    if fusion.weights == "validation" and fusion.stand_in.method == "weighted-mean":
        return site_weights(sites, validation)
    return {site: fusion.named_weights.get(site, 1) for site in sites}


class Panel:
    """The answers to n images so far.

    Of each image there are two fusions: of the masks that are heard, and of those that are silent and wait for whether a
    quorum sees something. The second is made when it is needed. Which masks are outliers is known when all are there: then they
    are asked for once more, and taken out of the fusion that they are in.

    Parameters
    ----------
    shape
        (n, K, H, W) of the pseudo masks to come.
    fusion
        The study's.
    weights
        By site; see `weights_of`.
    validation
        Of the sites that report it.
    alpha
        Target pixels, at 384 x 384, from which on a site sees a target.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        fusion: FusionSettings,
        weights: Mapping[str, int],
        validation: Mapping[str, Validation],
        alpha: float,
    ) -> None:
        self._shape: Final = shape
        self._fusion: Final = fusion
        self._method: Final = method_of(fusion)
        self._weights: Final = weights
        self._alpha: Final = alpha
        self._always: Final = gate.heard_always(fusion.gate, validation)
        self._heard: Final[list[Any]] = [self._method.init(self._of_one) for _ in range(shape[0])]
        self._silent: Final[dict[int, Any]] = {}
        self._answers: Final[dict[str, _Answer]] = {}
        self._again: Final[dict[str, Again]] = {}

    @property
    def _of_one(self) -> tuple[int, int, int, int]:
        return (1, *self._shape[1:])

    def fold(
        self,
        site: str,
        masks: SoftMasks,
        known: Sequence[int],
        answered: Flags | None = None,
        again: Again | None = None,
    ) -> None:
        """Add one site's answer.

        Parameters
        ----------
        site
            Its name; once.
        masks
            uint8 (n, known labels, H, W).
        known
            Which labels they are of, by position.
        answered
            bool (n,): from which images it does not abstain; all where None.
        again
            Gives its mask of an image, by position, once more: ``masks`` are forgotten where it is there, else kept if outliers
            are silent.
        """
        if site in self._answers:
            raise DataError(f"every site answers once; got a second answer of {site}")
        given = np.ones(len(masks), np.bool_) if answered is None else answered
        sees = gate.sees(masks, self._alpha)
        heard = np.ones_like(sees) if self._fusion.gate == "none" or site in self._always else sees
        counts = np.repeat(given[:, None], sees.shape[1], axis=1)
        self._answers[site] = _Answer(agreement.sample(masks, known, answered), sees, heard, counts)
        for image in np.flatnonzero(given).tolist():
            self._put(self._method.fold, site, image, masks[image], counts[image])
        if self._fusion.outliers == "silent":
            self._again[site] = again or masks.__getitem__

    def _put(self, put: Put, site: str, image: int, mask: SoftMasks, chosen: Flags) -> None:
        """Fold the chosen labels of a mask in or out, each where it is heard, or silent."""
        heard = self._answers[site].heard[image]
        self._put_in(put, self._heard[image], site, mask, chosen & heard)
        if (chosen & ~heard).any():
            if image not in self._silent:
                self._silent[image] = self._method.init(self._of_one)
            self._put_in(put, self._silent[image], site, mask, chosen & ~heard)

    def _put_in(self, put: Put, state: Any, site: str, mask: SoftMasks, chosen: Flags) -> None:
        if chosen.any():
            rows = [label for label, taken in zip(self._answers[site].sample.known, chosen, strict=True) if taken]
            put(state, mask[None, chosen], self._weights[site], rows)

    def finish(self, least: npt.ArrayLike | None = None) -> Fused:
        """Make the pseudo masks. The panel takes no answer afterwards.

        Parameters
        ----------
        least
            How many masks of each label, (K,), an image needs; what the fusion needs where None.
        """
        needed = self._fusion.least_sites
        samples = {site: one.sample for site, one in self._answers.items()}
        met_each_other = agreement.meetings(samples)
        answered = self._count([one.counts for one in self._answers.values()])
        if self._again:
            self._leave_out(outliers(samples, met_each_other, needed))
        held = list(self._answers.values())
        counted = self._count([one.counts for one in held])
        seen = self._count([one.counts & one.sees for one in held])
        heard = self._count([one.counts & one.heard for one in held])
        met = (seen >= gate.quorum(self._fusion.gate, counted)) & (heard >= needed)
        masks = np.zeros(self._shape, np.uint8)
        enough = answered >= np.asarray(needed if least is None else least)
        for image in np.flatnonzero(enough.all(axis=1)).tolist():
            if image in self._silent:
                self._method.merge(self._heard[image], self._silent[image], np.flatnonzero(~met[image]).tolist())
            masks[image] = self._method.finish(self._heard[image])[0]
        folded = {
            site: one.counts & (one.heard | ~met[:, list(one.sample.known)]) for site, one in self._answers.items()
        }
        between = agreement.between(samples, met_each_other, folded, len(masks))
        agreed = np.where(between >= 0, between / agreement.WHOLE, np.nan)
        silent = {
            site: np.asarray((one.given[:, None] & ~folded[site]).any(axis=1)) for site, one in self._answers.items()
        }
        consensus = np.asarray((met & (seen > 0)).any(axis=1))
        by_site = agreement.of_chunk(samples, met_each_other)
        by_mean = np.zeros(len(masks), np.bool_)
        return Fused(masks, seen, answered, consensus, agreed, silent, by_mean, by_site)

    def _leave_out(self, apart: Mapping[str, Flags]) -> None:
        for site, again in self._again.items():
            counts = self._answers[site].counts
            gone = counts & apart[site]
            for image in np.flatnonzero(gone.any(axis=1)).tolist():
                self._put(self._method.unfold, site, image, again(image), gone[image])
            self._answers[site] = replace(self._answers[site], counts=counts & ~gone)

    def _count(self, flags: Sequence[Flags]) -> Counts:
        """Count over the sites, in their order: int64 (n, K)."""
        total = np.zeros(self._shape[:2], np.int64)
        for held, known in zip(flags, self._answers.values(), strict=True):
            total[:, list(known.sample.known)] += held
        return total


@dataclass(frozen=True)
class _Answer:
    """Of one site, bool (n, known labels): where it sees a target, would be heard, and counts: gave a mask, and no outlier."""

    sample: agreement.Sample
    sees: Flags
    heard: Flags
    counts: Flags

    @property
    def given(self) -> Flags:
        """From which images it does not abstain: bool (n,)."""
        return np.ones(len(self.sees), np.bool_) if self.sample.answered is None else self.sample.answered
