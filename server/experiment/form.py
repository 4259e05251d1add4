"""What our data sets are to the paper, and what its tables look like with them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from consilium.server.experiment.paper_numbers import NETWORKS


@dataclass(frozen=True)
class Counterpart:
    """What one of our data sets is to the paper.

    Attributes
    ----------
    label
        Its name in our tables.
    paper
        The paper's name of the same images; empty where the paper has none of them, and then no number of the paper stands
        beside ours.
    difference
        What differs from the paper, in sentences; empty where nothing does.
    """

    label: str
    paper: str = ""
    difference: str = ""


_THYROID: Final = "stands in for the paper's Thyroid Nodule, which is not public."
_BREAST: Final = "stands in for the paper's breast lesions of its own hospital, which are not public."
COUNTERPARTS: Final[Mapping[str, Counterpart]] = MappingProxyType(
    {
        "busi": Counterpart(
            "BUSI",
            "Baheya Breast Lesion",
            "BUSI is the paper's Baheya Breast Lesion. The paper counts 697 images with a lesion; it is published with 647. "
            "Here near-duplicate images are never on both sides of a split.",
        ),
        "ddti": Counterpart("DDTI", "", f"DDTI {_THYROID}"),
        "tn3k": Counterpart("TN3K", "", f"TN3K {_THYROID}"),
        "nerve": Counterpart("Ultrasound Nerve", "Nerve Structure"),
        "isic2019": Counterpart("ISIC 2019", "Skin Lesion"),
        "voc2012": Counterpart("PASCAL VOC2012", "PASCAL VOC2012"),
        "bus-bra": Counterpart("BUS-BRA", "", f"BUS-BRA {_BREAST}"),
        "phantoms": Counterpart(
            "phantoms",
            "",
            "Phantoms are synthetic ultrasound, made to try the machinery out: their numbers say nothing about patients, and the "
            "paper's are of other images.",
        ),
    }
)
"""By the names of our data sets, in the order of the paper's rows."""


def counterparts(data_sets: Mapping[str, str]) -> dict[str, Counterpart]:
    """What an experiment's data are to the paper.

    Parameters
    ----------
    data_sets
        The data set behind each name of the experiment, for example ``{"baheya": "busi"}``. A data set that is not among
        `COUNTERPARTS` is none of the paper's.
    """
    return {
        name: replace(known, label=known.label if name == data_set else f"{name} ({known.label})")
        for name, data_set in data_sets.items()
        for known in [COUNTERPARTS.get(data_set, Counterpart(data_set))]
    }


@dataclass(frozen=True)
class Form:
    """What the tables look like.

    Attributes
    ----------
    transferal, students, tests
        Data sets and networks that have their place though nothing was measured; what was measured besides is added.
    exclusion
        Whether there are rows without a star (False), with one (True), or both.
    data
        What each data set is to the paper, by its name in the results. A name that is not there is none of the paper's.
    with_paper
        Whether the paper's numbers stand beside ours, where the data are the same.
    """

    transferal: tuple[str, ...] = ()
    students: tuple[str, ...] = tuple(NETWORKS)[:4]
    tests: tuple[str, ...] = ()
    exclusion: tuple[bool, ...] = (False, True)
    data: Mapping[str, Counterpart] = field(default_factory=lambda: COUNTERPARTS)
    with_paper: bool = True

    def label(self, name: str, starred: bool = False) -> str:
        """How a data set is called in the tables."""
        return (self.data[name].label if name in self.data else name) + "*" * starred

    def of_paper(self, name: str) -> str:
        """What the paper calls the same images; empty where it has none, or its numbers are not wanted."""
        return self.data[name].paper if self.with_paper and name in self.data else ""

    def ordered(self, wanted: Iterable[str], found: Iterable[str]) -> list[str]:
        """Data sets in the paper's order, the others behind."""
        known = {name: place for place, name in enumerate(self.data)}
        return sorted(dict.fromkeys((*wanted, *found)), key=lambda name: known.get(name, len(known)))
