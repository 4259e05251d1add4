"""The cells of an experiment, in the order in which they are computed."""

from collections.abc import Iterator
from dataclasses import dataclass

from consilium.server.experiment.settings import Experiment


@dataclass(frozen=True)
class TeacherCell:
    """A teacher, tested as it is, and fine-tuned where that is asked for."""

    teacher: str
    seed: int

    @property
    def name(self) -> str:
        """Of the cell."""
        return f"{self.teacher}/{self.seed}"


@dataclass(frozen=True)
class ScratchCell:
    """A student trained with the labelled images of a data set alone."""

    student: str
    data: str
    seed: int

    @property
    def name(self) -> str:
        """Of the cell."""
        return f"scratch/{self.data}/{self.student}/{self.seed}"


@dataclass(frozen=True)
class StudentCell:
    """A student distilled from an ensemble on a transferal data set, and fine-tuned where that is asked for."""

    teachers: tuple[str, ...]
    transferal: str
    student: str
    exclusion: bool
    seed: int

    @property
    def name(self) -> str:
        """Of the cell."""
        words = ("+".join(self.teachers), self.transferal, self.student, "on" if self.exclusion else "off", self.seed)
        return "/".join(map(str, words))


@dataclass(frozen=True)
class CountCell:
    """What exclusion leaves of a transferal data set, for an experiment without students."""

    teachers: tuple[str, ...]
    transferal: str
    seed: int

    @property
    def name(self) -> str:
        """Of the cell."""
        return f"{'+'.join(self.teachers)}/{self.transferal}/{self.seed}"


Cell = TeacherCell | ScratchCell | StudentCell | CountCell


def cells(settings: Experiment) -> Iterator[Cell]:
    """Give every cell: seed by seed; teachers first, then students side by side on the same pseudo masks."""
    for seed in settings.seeds:
        for teacher in settings.teachers:
            yield TeacherCell(teacher, seed)
        for data, tuning in settings.fine_tune.items():
            if tuning.scratch is not None:
                yield from (ScratchCell(student, data, seed) for student in settings.students)
        for teachers in settings.fused:
            for transferal in settings.transferal:
                if not settings.students:
                    yield CountCell(teachers, transferal, seed)
                for exclusion in settings.exclusion.use:
                    for student in settings.students:
                        yield StudentCell(teachers, transferal, student, exclusion, seed)
