"""The results of an experiment: one row for each cell, variant, test set and seed, kept as CSV."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Final

from consilium.common.errors import DataError


class Variant(StrEnum):
    """What was tested."""

    DISTILLED = "distilled"
    """A student trained on pseudo masks (Algorithm 1)."""
    FINE_TUNED = "fine-tuned"
    """The same student, trained on with labels of the target task (Algorithm 2)."""
    SCRATCH = "scratch"
    """A student trained with those labels only."""
    TEACHER = "teacher"
    """A teacher itself."""


@dataclass(frozen=True)
class Row:
    """One result. The fields are the columns of the CSV; what does not apply is empty there.

    Attributes
    ----------
    cell
        The experiment's own name of the cell.
    seed
        Of the training.
    teachers, teacher_networks
        Names and networks, joined by ``+``, in one order. Empty for a student from scratch.
    transferal
        The data set whose pseudo masks the student learned from; empty where there is none.
    student
        The student's network; empty for a teacher.
    exclusion
        Whether images without a salient target were left out; ``on`` or ``off``.
    variant, test
        What was tested, and on which data set.
    n
        Test images.
    dice_mean, dice_std
        In percent, over the test images; the population standard deviation.
    teacher_mean, teacher_std
        The same of the teacher, where there is one, on the same images; of several, of the best. For a fine-tuned student: of
        the teacher fine-tuned as it was.
    images_before, images_after
        Transferal images before and after exclusion.
    transductive
        Whether test images are among the transferal images; ``yes`` or ``no``.
    seconds
        That the cell took.
    """

    cell: str
    seed: int
    teachers: str
    teacher_networks: str
    transferal: str
    student: str
    exclusion: bool
    variant: Variant
    test: str
    n: int
    dice_mean: float
    dice_std: float
    teacher_mean: float | None
    teacher_std: float | None
    images_before: int | None
    images_after: int | None
    transductive: bool
    seconds: float


COLUMNS: Final = tuple(field.name for field in fields(Row))
_WORDS: Final = {"exclusion": ("off", "on"), "transductive": ("no", "yes")}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a results CSV whole and at once."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_text(name, getattr(row, name)) for name in COLUMNS] for row in rows)
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Read a results CSV.

    Raises
    ------
    DataError
        Naming the columns that are missing, or every value that is not what its column holds, with its line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as table:
            reader = csv.DictReader(table)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            lines = list(reader) if not missing else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table of results: {error}") from None
    if missing:
        raise DataError(
            f"{path}: a table of results has the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing"
        )
    faults: list[str] = []
    rows = [_row(line, f"line {number}", faults) for number, line in enumerate(lines, start=2)]
    if faults:
        raise DataError(f"{path}: " + "; ".join(faults))
    return [row for row in rows if row is not None]


def _row(line: dict[str, str | None], where: str, faults: list[str]) -> Row | None:
    values: dict[str, object] = {}
    for field in fields(Row):
        text = line[field.name] or ""  # None where the line is short
        try:
            values[field.name] = _value(field.name, field.type, text)
        except (ValueError, TypeError):
            faults.append(f"{where}, {field.name}: {_rule(field.name, field.type)}; got {text!r}")
    return Row(**values) if len(values) == len(COLUMNS) else None  # type: ignore[arg-type]  # each read as its field's


def _value(name: str, kind: object, text: str) -> object:
    if name in _WORDS:
        return bool(_WORDS[name].index(text))
    if kind is str:
        return text
    if kind is Variant:
        return Variant(text)
    if not text and kind in (float | None, int | None):
        return None
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise ValueError(text)
    return int(text) if kind in (int, int | None) else number


def _rule(name: str, kind: object) -> str:
    if name in _WORDS:
        return " or ".join(_WORDS[name])
    if kind is Variant:
        return "one of " + ", ".join(Variant)
    return "a whole number from 0" if kind in (int, int | None) else "a number from 0"


def _text(name: str, value: object) -> object:
    if name in _WORDS:
        return _WORDS[name][bool(value)]
    return "" if value is None else value
