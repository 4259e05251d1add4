"""Splitting a data set into parts, by group and never by file, and the table that remembers it.

The table is a CSV with the columns ``source`` (relative to the data set's folder), ``group``, ``kind`` and ``part``. Groups
may be patients' numbers, so it stays where the data is.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from consilium.common.datasets import near_duplicates
from consilium.common.datasets.cases import Case
from consilium.common.datasets.layout import rows_of, shown
from consilium.common.errors import DataError, SettingsError, StateError
from consilium.common.files import write_whole

COLUMNS: Final = ("source", "group", "kind", "part")


@dataclass(frozen=True)
class Row:
    """One image of a split; ``source`` is relative to the data set's folder."""

    source: str
    group: str
    kind: str
    part: str


def read_parts(text: str) -> dict[str, float]:
    """Read ``train=0.7,val=0.1,test=0.2``; the shares are brought to a sum of 1.

    Raises
    ------
    SettingsError
        If it is not of this form, a part comes twice, or a share is not a positive number.
    """
    parts: dict[str, float] = {}
    for piece in text.split(","):
        name, _, number = (word.strip() for word in piece.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or name in parts or not (math.isfinite(share) and share > 0):
            raise SettingsError(f"parts are like train=0.7,val=0.1,test=0.2, each once and above 0; got {text!r}")
        parts[name] = share
    return {name: share / sum(parts.values()) for name, share in parts.items()}


def sites(count: int) -> dict[str, float]:
    """Parts ``site-1`` ... of equal shares; `SettingsError` if there are fewer than two."""
    if count < 2:
        raise SettingsError(f"a split has at least two sites; got {count}")
    return {f"site-{i + 1}": 1 / count for i in range(count)}


def split(cases: Sequence[Case], parts: Mapping[str, float], seed: int) -> list[str]:
    """Choose the part of every case.

    Whole groups are dealt in random order, kind by kind, each to the part that lacks most of that kind; so parts have their
    shares of every kind as nearly as whole groups allow. A group with several kinds counts as that of its first case.

    Parameters
    ----------
    cases
        Of one data set; an empty group is a group of its own.
    parts
        Shares, adding up to 1.
    seed
        Decides the order. The same cases, parts and seed give the same split.

    Raises
    ------
    DataError
        If a part would get nothing, because there are too few groups.
    """
    groups: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        groups.setdefault(case.group or f"\0{i}", []).append(i)
    kinds: dict[str, list[list[int]]] = {}
    for members in groups.values():
        kinds.setdefault(cases[members[0]].kind, []).append(members)
    names, shares = list(parts), np.array(list(parts.values()))
    rng = np.random.default_rng(seed)
    chosen = [""] * len(cases)
    total = np.zeros(len(names))
    for held in kinds.values():
        here = np.zeros(len(names))
        for at in rng.permutation(len(held)):
            # What a part lacks of its kind decides; where two lack the same, what it lacks of all.
            lacking = shares * (here.sum() + len(held[at])) - here
            ties = np.flatnonzero(lacking > lacking.max() - 1e-9)
            part = int(ties[np.argmax((shares * (total.sum() + 1) - total)[ties])])
            here[part] += len(held[at])
            total[part] += len(held[at])
            for i in held[at]:
                chosen[i] = names[part]
    empty = [name for name, count in zip(names, total, strict=True) if not count]
    if empty:
        raise DataError(
            f"{len(cases)} images in {len(groups)} groups cannot be dealt to {', '.join(names)}: nothing is left for "
            f"{', '.join(empty)}. Groups are never torn apart; ask for fewer or larger parts."
        )
    return chosen


def join_groups(cases: Sequence[Case], likeness: Sequence[str]) -> list[str]:
    """Join the groups a data set names with another grouping, such as near duplicates.

    Parameters
    ----------
    cases, likeness
        A group of the second kind for each case.

    Returns
    -------
    A group for each case: the same for two that share either. It has the name that the data set gives its first case, or,
    where it gives none, a number in order of appearance.
    """
    ends: dict[str, int] = {}
    links = []
    for i, (case, like) in enumerate(zip(cases, likeness, strict=True)):
        own = [f"o{case.group}"] if case.group else []
        links += [(ends.setdefault(end, i), i) for end in (*own, f"l{like}")]
    joined = near_duplicates.components(np.array(links, np.int64).reshape(-1, 2), len(cases))
    names: dict[str, str] = {}
    taken = {case.group for case in cases}
    for case, number in zip(cases, joined, strict=True):
        if number not in names:
            names[number] = case.group or (f"like-{number}" if number in taken else number)
    return [names[number] for number in joined]


def rows(cases: Sequence[Case], chosen: Sequence[str], folder: Path) -> list[Row]:
    """Make the rows of a table, in the order of the cases."""
    return [
        Row(_relative(case.source, folder), case.group, case.kind, part)
        for case, part in zip(cases, chosen, strict=True)
    ]


def write(table: Path, held: Sequence[Row], *, force: bool = False) -> bool:
    """Write a table; gives whether anything changed.

    Raises
    ------
    StateError
        If another split is there, and ``force`` is not given.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [COLUMNS, *((row.source, row.group, row.kind, row.part) for row in held)]
    )
    data = text.getvalue().encode()
    if table.exists():
        if table.read_bytes() == data:
            return False
        if not force:
            raise StateError(
                f"{table} holds another split, by which something may have been trained; give --force to overwrite it, or "
                "another folder with --out"
            )
    table.parent.mkdir(parents=True, exist_ok=True)
    write_whole(table, data)
    return True


def read(table: Path) -> list[Row]:
    """Read a table; `DataError` if it is none."""
    return [Row(row["source"], row["group"], row["kind"], row["part"]) for row in rows_of(table, *COLUMNS)]


def select(cases: Sequence[Case], table: Path, part: str) -> list[Case]:
    """Restrict cases to a part of a split, with the groups that the table names.

    Parameters
    ----------
    cases
        Of the data set that was split, wherever its folder is now; all of them or some.
    table
        As written by `write`.
    part
        Its name.

    Raises
    ------
    DataError
        If the table has no such part, or does not know a case.
    """
    held = read(table)
    known = {row.source: row for row in held}
    if part not in (names := list(dict.fromkeys(row.part for row in held))):
        raise DataError(f"{table}: has no part {part!r}; it has {shown(names, 20)}")
    found = _matched(cases, known, table)
    return [
        Case(case.source, case.load_image, case.load_mask, row.group, case.kind)
        for case, row in zip(cases, found, strict=True)
        if row.part == part
    ]


def _matched(cases: Sequence[Case], known: Mapping[str, Row], table: Path) -> list[Row]:
    """Find each case's row: sources are the same below some folder, which all cases have in common."""
    if not cases:
        return []
    parts = PurePosixPath(cases[0].source).parts
    for depth in range(len(parts)):
        if "/".join(parts[depth:]).lstrip("/") in known:
            prefix = parts[:depth]
            below = [_below(case.source, prefix) for case in cases]
            if all(source in known for source in below):
                return [known[source] for source in below]
    unknown = [
        case.source for case in cases if PurePosixPath(case.source).name not in {PurePosixPath(s).name for s in known}
    ]
    raise DataError(
        f"{table}: is the split of other images; it does not know {shown(unknown or [case.source for case in cases], 3)}. Split "
        "this data set again, or give the table that was made of it."
    )


def _below(source: str, prefix: tuple[str, ...]) -> str:
    parts = PurePosixPath(source).parts
    return "/".join(parts[len(prefix) :]).lstrip("/") if parts[: len(prefix)] == prefix else ""


def _relative(source: str, folder: Path) -> str:
    path = PurePosixPath(source)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else source
