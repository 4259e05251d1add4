"""The data sets by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from consilium.common.datasets import busi, folder
from consilium.common.datasets.cases import Case
from consilium.common.errors import DataError, SettingsError


@dataclass(frozen=True)
class DataSet:
    """A data set that can be read.

    Attributes
    ----------
    cases
        Lists its cases, given its folder.
    what
        What it is, in a line.
    layout
        What the folder holds.
    has_masks
        Whether some or all of its cases have masks.
    groups
        What its groups are; "near duplicates" where it names none, so that they have to be computed or given.
    citation
        Whom to cite, and the licence as far as it is known.
    """

    cases: Callable[[Path], list[Case]]
    what: str
    layout: str
    has_masks: bool
    groups: str
    citation: str


DATA_SETS: Final[Mapping[str, DataSet]] = MappingProxyType(
    {
        "busi": DataSet(
            busi.cases,
            "breast ultrasound, lesions (the paper's Baheya)",
            "{benign,malignant}/NAME (i).png with NAME (i)_mask.png, NAME (i)_mask_1.png, ...",
            True,
            "near duplicates",
            "Al-Dhabyani et al., Data in Brief 28:104863, 2020; CC BY or CC0, as its mirrors say",
        ),
        "folder": DataSet(
            folder.cases,
            "your own labelled images",
            "images/a.png with masks/a.png or masks/a_mask.png, masks/a_mask_1.png, ...",
            True,
            "near duplicates",
            "your own",
        ),
        "images": DataSet(
            folder.images,
            "your own images without masks",
            "any image files, in sub-folders too",
            False,
            "near duplicates",
            "your own",
        ),
    }
)


def cases(name: str, folder: Path) -> list[Case]:
    """List the cases of a data set.

    Parameters
    ----------
    name
        A key of `DATA_SETS`.
    folder
        The data set as published and unpacked.

    Raises
    ------
    SettingsError
        If there is no data set of this name.
    DataError
        If the folder is not there, or is not laid out as published.
    """
    if name not in DATA_SETS:
        raise SettingsError(f"there is no data set {name!r}; known are {', '.join(DATA_SETS)}")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; {name} is laid out as {DATA_SETS[name].layout}")
    return DATA_SETS[name].cases(folder)
