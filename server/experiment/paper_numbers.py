"""The numbers the paper prints, from ``configs/paper/numbers.csv``.

The file holds every number of tables 1 to 7, and those of the text that belong to them. Its columns::

    table    1 to 7, or the section of the text
    row      the row's label: a data set (transferal, or test in table 6), "Trained from Scratch", ...
    starred  yes where the paper's row has a star (images were excluded), no where it has none, empty where stars mean nothing
    column   the column's label: a network, "KTC", ...
    mean     the number, digit for digit as printed
    std      what stands behind its +-, or empty
    unit     of both
    note     ours: what to know of it; in table 1 the paper's modality and source

Labels are the paper's, spelled one way throughout: "Panoptic-FPN" is "Panoptic" in its tables, and "Br." is "Breast".
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from consilium.common.errors import DataError

NETWORKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unet": "U-Net",
        "attention-unet": "AttU-Net",
        "sdu-net": "SDU-Net",
        "panoptic-fpn": "Panoptic-FPN",
        "deeplabv3plus": "DeepLabv3+",
    }
)
"""The paper's labels of our networks, in the order of its columns."""

KTC: Final = "KTC"
SCRATCH: Final = "Trained from Scratch"


@dataclass(frozen=True)
class Printed:
    """One number of the paper; ``std`` is None where it prints none."""

    table: str
    row: str
    starred: bool | None
    column: str
    mean: float
    std: float | None
    unit: str
    note: str


@cache
def printed() -> tuple[Printed, ...]:
    """Every number of the file, in its order."""
    text = (files("consilium.configs") / "paper" / "numbers.csv").read_text("utf-8")
    return tuple(
        Printed(
            line["table"],
            line["row"],
            {"yes": True, "no": False, "": None}[line["starred"]],
            line["column"],
            float(line["mean"]),
            float(line["std"]) if line["std"] else None,
            line["unit"],
            line["note"],
        )
        for line in csv.DictReader(text.splitlines())
    )


def find(table: str, row: str, column: str, starred: bool | None = None) -> Printed | None:
    """The number in one place of the paper, or None where it has none there."""
    return _by_place().get((table, row, starred, column))


def number(table: str, row: str, column: str, starred: bool | None = None) -> Printed:
    """As `find`, for a number that must be there.

    Raises
    ------
    DataError
        If the paper has none there.
    """
    held = find(table, row, column, starred)
    if held is None:
        raise DataError(
            f"the paper has no number in table {table}, row {row!r} (starred: {starred}), column {column!r}"
        )
    return held


@cache
def _by_place() -> Mapping[tuple[str, str, bool | None, str], Printed]:
    return MappingProxyType({(one.table, one.row, one.starred, one.column): one for one in printed()})
