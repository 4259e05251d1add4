"""Results by place, averaged over seeds.

The mean of the seeds' means; the root of their mean variance over test images, so that it stays the paper's kind of
deviation; and how far the seeds' means lie apart, by itself.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from consilium.common.errors import DataError
from consilium.server.experiment.rows import Row, Variant


class Place(NamedTuple):
    """Where a score belongs; what does not apply is empty."""

    variant: Variant
    test: str
    teachers: str = ""
    transferal: str = ""
    student: str = ""
    starred: bool = False


@dataclass(frozen=True)
class Score:
    """Dice in percent over ``seeds`` seeds; ``spread`` is the sample deviation of their means, 0 for one seed."""

    mean: float
    std: float
    seeds: int
    spread: float
    transductive: bool = False


class Selected(NamedTuple):
    """How many transferal images one seed's pseudo masks leave after exclusion."""

    teachers: str
    transferal: str
    seed: int
    images_before: int
    images_after: int


def selected(rows: Iterable[Row]) -> set[Selected]:
    """What the rows of students say of exclusion."""
    return {
        Selected(row.teachers, row.transferal, row.seed, row.images_before, row.images_after)
        for row in rows
        if row.exclusion and row.images_before is not None and row.images_after is not None
    }


class Scores:
    """The rows by place, averaged over seeds."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: Final = tuple(rows)
        self._held: Final = defaultdict[Place, list[Row]](list)
        for row in self.rows:
            self._held[_place(row)].append(row)

    def at(self, place: Place) -> Score | None:
        """The score of a place, or None where nothing was measured; `DataError` where one seed has two results."""
        rows = self._held.get(place, [])
        return _average(
            [(row.seed, row.dice_mean, row.dice_std) for row in rows], place, any(row.transductive for row in rows)
        )

    def teacher(self, place: Place) -> Score | None:
        """The teacher beside the students of a test set: from its own rows, and from those of its students."""
        own = [
            (row.seed, row.dice_mean, row.dice_std)
            for row in self._held.get(place._replace(variant=Variant.TEACHER), [])
        ]
        told = [
            (row.seed, row.teacher_mean, row.teacher_std)
            for row in self.rows
            if (row.variant, row.teachers, row.test) == (place.variant, place.teachers, place.test)
            and row.teacher_mean is not None
            and row.teacher_std is not None
        ]
        return _average([*(own if place.variant == Variant.DISTILLED else ()), *told], place)


def _place(row: Row) -> Place:
    if row.variant == Variant.SCRATCH:
        return Place(row.variant, row.test, student=row.student)
    if row.variant == Variant.TEACHER:
        return Place(row.variant, row.test, row.teachers)
    return Place(row.variant, row.test, row.teachers, row.transferal, row.student, row.exclusion)


def _average(results: Sequence[tuple[int, float, float]], place: Place, transductive: bool = False) -> Score | None:
    """Average (seed, mean, std) of one place."""
    by_seed: dict[int, tuple[float, float]] = {}
    for seed, mean, std in results:
        held = by_seed.setdefault(seed, (mean, std))
        if max(abs(held[0] - mean), abs(held[1] - std)) > 0.005:  # half of the last digit shown
            named = ", ".join(str(part) for part in place if part)
            raise DataError(
                f"a cell has one result for each seed; {named} has {held[0]:.2f} ± {held[1]:.2f} and {mean:.2f} ± {std:.2f} for "
                f"seed {seed}. Remove the rows of one of the two runs."
            )
    if not by_seed:
        return None
    means = [mean for mean, _ in by_seed.values()]
    std = math.sqrt(statistics.fmean(std**2 for _, std in by_seed.values()))
    spread = statistics.stdev(means) if len(means) > 1 else 0.0
    return Score(statistics.fmean(means), std, len(means), spread, transductive)
