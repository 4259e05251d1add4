"""A scenario's scene: a labelled data set, shared out among sites, a test and the transferal images, whole groups each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.common.datasets import split
from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError
from consilium.server.ablation.settings import SiteSettings, SplitSettings
from consilium.server.experiment.data import DataSet, joined

Positions = npt.NDArray[np.int64]

_TRANSFERAL = "the transferal images"
_LABELLED = "the coordinator's images"
_REST = "the others"


@dataclass(frozen=True)
class SitePart:
    """What one site has, by position in the labelled data set; ascending, nothing twice."""

    train: Positions
    validation: Positions
    test: Positions


@dataclass(frozen=True)
class Parts:
    """A data set shared out: each image is in one part, each group on one side of every border."""

    sites: Mapping[str, SitePart]
    transferal: Positions
    labelled: Positions = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class SiteData:
    """What one site has: images to train on, images its temperature and its weight are measured on, and its test."""

    train: DataSet
    validation: DataSet
    test: DataSet


@dataclass(frozen=True)
class Scene:
    """The data of one scenario and seed.

    Attributes
    ----------
    sites
        What each has.
    test
        The sites' test images, one site's behind the other's.
    slices
        Where each site's are among them.
    unlabelled
        The transferal images of the labelled data set itself. Their masks are known to this experiment, and to nobody in it.
    labelled
        The coordinator's own images, with masks; None where it has none.
    """

    sites: Mapping[str, SiteData]
    test: DataSet
    slices: Mapping[str, slice]
    unlabelled: DataSet
    labelled: DataSet | None = None

    @property
    def pooled(self) -> DataSet:
        """All sites' training images together: what no federation has."""
        return joined("all sites' images", [site.train for site in self.sites.values()])


def share_out(
    groups: Sequence[str], kinds: Sequence[str], sites: Mapping[str, SiteSettings], shares: SplitSettings, seed: int
) -> Parts:
    """Share out a data set.

    The transferal images come first, kind by kind, then the coordinator's; then sites that see some kinds of cases only take
    theirs; the others share what is left. Then each site's part is dealt into test, validation and training images: of each
    site the same part is test, so that transferal images and pooled test have every kind as the data set has it, wherever it
    went.

    Parameters
    ----------
    groups, kinds
        Of each image; an empty group is a group of its own.
    sites
        Who takes part, with what share.
    shares
        How much is for what.
    seed
        Decides the order.

    Raises
    ------
    DataError
        If a part would get nothing, or a site wants more of its kinds than there is.
    """
    cases = [Case("", _unread, None, group, kind) for group, kind in zip(groups, kinds, strict=True)]
    total = len(cases)
    first = _deal(cases, np.arange(total), {_TRANSFERAL: shares.transferal, _REST: 1 - shares.transferal}, seed)
    left, whole = first[_REST], sum(site.share for site in sites.values())
    own = np.zeros(0, np.int64)
    if shares.labelled:
        rest = {_LABELLED: shares.labelled, _REST: 1 - shares.transferal - shares.labelled}
        second = _deal(cases, left, rest, seed)
        own, left = second[_LABELLED], second[_REST]
    wanted = {name: len(left) * site.share / whole for name, site in sites.items()}
    taken: dict[str, Positions] = {}
    for name, site in sites.items():
        if not site.kinds:
            continue
        of_kind = left[_only(cases, left, site.kinds)]
        if wanted[name] >= len(of_kind):
            raise DataError(
                f"{name} sees {', '.join(site.kinds)} only, and should get {wanted[name]:.0f} images; {len(of_kind)} such are "
                f"there ({', '.join(sorted(set(kinds)))} are known). Give it a smaller share"
            )
        dealt = _deal(cases, of_kind, {name: wanted[name], _REST: len(of_kind) - wanted[name]}, seed)
        taken[name] = dealt[name]
        left = np.setdiff1d(left, taken[name])
    others = {name: wanted[name] for name, site in sites.items() if not site.kinds}
    if others:
        taken |= _deal(cases, left, others, seed)
    test = shares.test / (1 - shares.transferal - shares.labelled)
    inner = {
        "train": (1 - test) * (1 - shares.validation),
        "validation": (1 - test) * shares.validation,
        "test": test,
    }
    parts = {name: SitePart(**_deal(cases, taken[name], inner, seed)) for name in sites}
    return Parts(parts, first[_TRANSFERAL], own)


def lay_out(data: DataSet, parts: Parts) -> Scene:
    """Give everybody the images of their part."""
    sites = {
        name: SiteData(
            data.take(f"{name}'s images", part.train),
            data.take(f"{name}'s validation", part.validation),
            data.take(f"{name}'s test", part.test),
        )
        for name, part in parts.sites.items()
    }
    ends = np.cumsum([0, *(len(site.test) for site in sites.values())]).tolist()
    slices = {name: slice(first, last) for name, first, last in zip(sites, ends, ends[1:], strict=False)}
    order = np.concatenate([part.test for part in parts.sites.values()])
    own = data.take("the coordinator's images", parts.labelled) if len(parts.labelled) else None
    test, unlabelled = data.take("the pooled test", order), data.take("the unlabelled rest", parts.transferal)
    return Scene(sites, test, slices, unlabelled, own)


def _deal(cases: Sequence[Case], positions: Positions, shares: Mapping[str, float], seed: int) -> dict[str, Positions]:
    whole = sum(shares.values())
    normal = {name: share / whole for name, share in shares.items()}
    chosen = np.array(split.split([cases[i] for i in positions], normal, seed))
    return {name: positions[chosen == name] for name in shares}


def _only(cases: Sequence[Case], positions: Positions, kinds: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which of some images are of these kinds, with all their group."""
    others = {case.group for case in cases if case.group and case.kind not in kinds}
    return np.array([cases[i].kind in kinds and cases[i].group not in others for i in positions], np.bool_)


def _unread() -> Image.Image:
    """These cases are dealt, not read; their pixels are in the data set."""
    raise NotImplementedError
