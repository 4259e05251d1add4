"""The results of an ablation: one row for each scenario, seed, step, model and test part, kept as CSV."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError
from consilium.common.evaluation.statistics import RESAMPLES, bootstrap_intervals

POOLED: Final = "pooled"
"""The test part that is all sites' test images together."""
UNLABELLED: Final = "unlabelled"
"""The part that is the transferal images of the labelled data set."""


class Kind(StrEnum):
    """What was tested."""

    TEACHER = "teacher"
    """A site's own model."""
    ANSWERING = "answering"
    """What a site answers with in its teacher's place, in a step with a head start or a second study."""
    ENSEMBLE = "ensemble"
    """The fused masks of all teachers, by a step's fusion."""
    STUDENT = "student"
    """A step's student."""
    FEDAVG = "fedavg"
    """One network whose weights were averaged."""
    POOLED_DATA = "pooled-data"
    """The student's network, trained with all sites' labels in one place: what no federation may do."""
    TRUE_MASKS = "true-masks"
    """The same, trained with the true masks of the unlabelled images: what a fusion without a fault would give it."""


@dataclass(frozen=True)
class Row:
    """One result. The fields are the columns of the CSV; what does not apply is empty there.

    Attributes
    ----------
    scenario, seed
        Of the federation.
    step
        Of the ladder; empty for teachers and baselines.
    kind, model
        What was tested; of teachers and of what answers for them, whose.
    part
        On what: ``pooled``, a site's own test, or ``unlabelled``.
    n, groups
        Images, and groups of near duplicates among them.
    dice_mean, dice_low, dice_high
        In percent; the interval, at 95 %, resamples groups.
    rival
        The teacher it is compared with: on a site's own test that site's, else the one that is best there.
    difference, difference_low, difference_high
        To the rival, image by image.
    images_before, images_after
        Transferal images before and after exclusion, of a step.
    seconds
        That the training of the model took.
    """

    scenario: str
    seed: int
    step: str
    kind: Kind
    model: str
    part: str
    n: int
    groups: int
    dice_mean: float
    dice_low: float
    dice_high: float
    rival: str
    difference: float
    difference_low: float
    difference_high: float
    images_before: int | None
    images_after: int | None
    seconds: float | None


@dataclass(frozen=True)
class Place:
    """Where a row belongs, apart from its part and numbers."""

    scenario: str
    seed: int
    step: str
    kind: Kind
    model: str = ""
    images_before: int | None = None
    images_after: int | None = None
    seconds: float | None = None


COLUMNS: Final = tuple(field.name for field in fields(Row))


def scored(
    place: Place,
    part: str,
    groups: Sequence[str],
    values: npt.NDArray[np.float64],
    rival: str,
    others: npt.NDArray[np.float64],
) -> Row:
    """Make a row.

    Parameters
    ----------
    place, part
        Where it belongs.
    groups
        Of the n images.
    values, others
        float64 (n,): Dice in [0, 1], and the rival's on the same images.
    rival
        Its name.
    """
    both = 100 * np.stack([values, values - others], axis=1)
    low, high = bootstrap_intervals(both, groups, np.random.default_rng(place.seed), RESAMPLES)
    own, gap = ([round(float(number[i]), 4) for number in (both.mean(axis=0), low, high)] for i in range(2))
    return Row(
        scenario=place.scenario,
        seed=place.seed,
        step=place.step,
        kind=place.kind,
        model=place.model,
        part=part,
        n=len(values),
        groups=len({group or f"\0{i}" for i, group in enumerate(groups)}),
        dice_mean=own[0],
        dice_low=own[1],
        dice_high=own[2],
        rival=rival,
        difference=gap[0],
        difference_low=gap[1],
        difference_high=gap[2],
        images_before=place.images_before,
        images_after=place.images_after,
        seconds=place.seconds,
    )


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a results CSV whole and at once."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_text(getattr(row, name)) for name in COLUMNS] for row in rows)
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Read a results CSV; `DataError` if it is none."""
    try:
        with path.open(newline="", encoding="utf-8") as table:
            return [_row(line) for line in csv.DictReader(table)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read as the results of an ablation, {', '.join(COLUMNS)}: {error}") from None


def _row(line: dict[str, str]) -> Row:
    values: dict[str, object] = {}
    for field in fields(Row):
        text = line[field.name]
        if field.type is str or field.type is Kind:
            values[field.name] = Kind(text) if field.type is Kind else text
        elif not text and field.type in (int | None, float | None):
            values[field.name] = None
        else:
            values[field.name] = int(text) if field.type in (int, int | None) else float(text)
    return Row(**values)  # type: ignore[arg-type]  # each read as its field's


def _text(value: object) -> object:
    return "" if value is None else value
