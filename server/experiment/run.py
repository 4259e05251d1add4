"""An experiment from its first cell to its tables.

Cells are computed one after the other; what a cell needs is kept in a store, so that an experiment that was stopped, at
any moment, goes on where it was. The results are written anew after every cell.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from rich.console import Console

from consilium.common.errors import DataError
from consilium.common.files import write_text
from consilium.common.metrics import score
from consilium.common.wire import Score
from consilium.server.experiment import stages
from consilium.server.experiment.data import DataSet, labelled_few, prepare
from consilium.server.experiment.grid import Cell, CountCell, ScratchCell, StudentCell, TeacherCell, cells
from consilium.server.experiment.rows import Row, Variant, write_rows
from consilium.server.experiment.settings import Experiment
from consilium.server.experiment.stages import Masks, Model, Selection
from consilium.server.experiment.store import Store
from consilium.server.experiment.workplace import workplace

LEAK_LIMIT: Final = 0.05
"""Most of a test set, as a share, that may be among a model's labelled training images: published data sets repeat a few
images; more is a fault in the settings."""


@dataclass(frozen=True)
class Count:
    """What exclusion leaves of a transferal data set."""

    teachers: tuple[str, ...]
    transferal: str
    seed: int
    selection: Selection


@dataclass
class Experimenter:
    """Computes cells of an experiment.

    Parameters
    ----------
    settings, store
        What, and where it is kept.
    """

    settings: Experiment
    store: Store
    warnings: list[str] = field(default_factory=list)
    _data: dict[str, DataSet] = field(default_factory=dict)

    # --- what cells are made of

    def data(self, name: str) -> DataSet:
        """A data set, packed."""
        if name not in self._data:
            image = self.settings.image
            self._data[name] = prepare(
                self.store,
                name,
                self.settings.data[name],
                size=image.size,
                channels=image.channels,
                with_masks=name in self.settings.with_labels,
            )
        return self._data[name]

    def teacher(self, name: str, seed: int) -> Model:
        """A trained teacher. Each has a seed of its own, so that two of the same network differ."""
        one = self.settings.teachers[name]
        own = stages.seed_of(seed, name)
        what = f"teacher {name} learns {one.train_on}"
        return stages.teach(self.store, one.network, one.training, self.data(one.train_on), seed=own, what=what)

    def pseudo(self, teachers: Sequence[str], transferal: str, seed: int) -> Masks:
        """The pseudo masks of an ensemble."""
        chosen = {name: self.settings.teachers[name] for name in teachers}
        masks = [
            stages.annotate(self.store, self.teacher(name, seed), self.data(transferal), binary=one.output == "binary")
            for name, one in chosen.items()
        ]
        return stages.fuse(self.store, masks, [one.weight for one in chosen.values()])

    def selection(self, teachers: Sequence[str], transferal: str, seed: int) -> Selection:
        """What exclusion keeps."""
        pseudo = self.pseudo(teachers, transferal, seed)
        return stages.select(self.store, pseudo, alpha=self.settings.exclusion.alpha, beta=self.beta(teachers))

    def beta(self, teachers: Sequence[str]) -> float | None:
        """Most gray-level entropy in bits; None where every teacher is binary, as in the paper."""
        soft = any(self.settings.teachers[name].output == "soft" for name in teachers)
        return self.settings.exclusion.beta if soft else None

    def student(self, cell: StudentCell) -> Model | None:
        """A distilled student; None where every image was excluded."""
        data, one = self.data(cell.transferal), self.settings.students[cell.student]
        training = self.settings.transferal[cell.transferal].applied_to(one.training)
        kept = self.selection(cell.teachers, cell.transferal, cell.seed).kept if cell.exclusion else None
        if kept is not None and not len(kept):
            return None
        return stages.distil(
            self.store,
            data,
            self.pseudo(cell.teachers, cell.transferal, cell.seed),
            one.model_copy(update={"training": training}),
            seed=cell.seed,
            kept=kept,
        )

    def few(self, name: str, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The labelled images of a fine-tuning, and those it is tested on."""
        data, count = self.data(name), self.settings.fine_tune[name].images
        few, rest = labelled_few(data.groups, count, seed)
        if len(few) < count or not len(rest):
            raise DataError(
                f"fine-tune.{name} needs {count} labelled images and others to test on; {name} has {len(data)} in all"
            )
        return few, rest

    def tuned(self, model: Model, name: str, seed: int) -> Model:
        """A model fine-tuned on the few labelled images."""
        few, _ = self.few(name, seed)
        training = self.settings.fine_tune[name].training
        return stages.fine_tune(self.store, model, training, self.data(name), few, seed=seed)

    # --- cells

    def rows(self, cell: Cell) -> list[Row]:
        """Compute a cell, and give what it adds to the results."""
        match cell:
            case TeacherCell():
                return self._teacher_rows(cell)
            case ScratchCell():
                return self._scratch_rows(cell)
            case StudentCell():
                return self._student_rows(cell)
            case CountCell():
                self.selection(cell.teachers, cell.transferal, cell.seed)
                return []

    def counts(self) -> Iterator[Count]:
        """What exclusion leaves, for every ensemble, transferal data set and seed."""
        for seed in self.settings.seeds:
            for teachers in self.settings.fused:
                for transferal in self.settings.transferal:
                    yield Count(teachers, transferal, seed, self.selection(teachers, transferal, seed))

    def _teacher_rows(self, cell: TeacherCell) -> list[Row]:
        model = self.teacher(cell.teacher, cell.seed)
        learned = self.data(self.settings.teachers[cell.teacher].train_on)
        for test in dict.fromkeys((*self.settings.tests, *self.settings.fine_tune)):
            self._refuse_leak(cell.teacher, learned, self.data(test))
        for name, tuning in self.settings.fine_tune.items():
            if tuning.teachers:
                self.tuned(model, name, cell.seed)
        blank = self._row(cell, Variant.TEACHER, (cell.teacher,))
        return [
            self._scored(blank, test, stages.evaluate(self.store, model, self.data(test)), model)
            for test in self.settings.tests
        ]

    def _scratch_rows(self, cell: ScratchCell) -> list[Row]:
        training = self.settings.fine_tune[cell.data].scratch
        if training is None:
            return []
        network, data = self.settings.students[cell.student].network, self.data(cell.data)
        few, rest = self.few(cell.data, cell.seed)
        model = stages.from_scratch(self.store, network, training, data, few, seed=cell.seed)
        values = stages.evaluate(self.store, model, data, rest)
        row = replace(self._row(cell, Variant.SCRATCH, ()), student=network.name)
        return [self._scored(row, cell.data, values, model)]

    def _student_rows(self, cell: StudentCell) -> list[Row]:
        model = self.student(cell)
        if model is None:
            self.warnings.append(f"{cell.name}: every image was excluded, so there is no student")
            return []
        chosen = self.selection(cell.teachers, cell.transferal, cell.seed) if cell.exclusion else None
        count = len(self.data(cell.transferal))
        blank = replace(
            self._row(cell, Variant.DISTILLED, cell.teachers),
            transferal=cell.transferal,
            student=model.network.name,
            exclusion=cell.exclusion,
            images_before=count,
            images_after=count if chosen is None else len(chosen.kept),
        )
        rows = []
        for test in self.settings.tests:
            values = stages.evaluate(self.store, model, self.data(test))
            teachers = [
                stages.evaluate(self.store, self.teacher(name, cell.seed), self.data(test)) for name in cell.teachers
            ]
            rows.append(self._compared(self._scored(blank, test, values, model), teachers))
        for name, tuning in self.settings.fine_tune.items():
            data, (_, rest) = self.data(name), self.few(name, cell.seed)
            tuned = self.tuned(model, name, cell.seed)
            row = replace(blank, variant=Variant.FINE_TUNED)
            row = self._scored(row, name, stages.evaluate(self.store, tuned, data, rest), tuned, rest)
            if tuning.teachers:
                models = [self.tuned(self.teacher(one, cell.seed), name, cell.seed) for one in cell.teachers]
                row = self._compared(row, [stages.evaluate(self.store, one, data, rest) for one in models])
            rows.append(row)
        return rows

    # --- rows

    def _row(self, cell: Cell, variant: Variant, teachers: Sequence[str]) -> Row:
        return Row(
            cell=cell.name,
            seed=cell.seed,
            teachers="+".join(teachers),
            teacher_networks="+".join(self.settings.teachers[name].network.name for name in teachers),
            transferal="",
            student="",
            exclusion=False,
            variant=variant,
            test="",
            n=0,
            dice_mean=0.0,
            dice_std=0.0,
            teacher_mean=None,
            teacher_std=None,
            images_before=None,
            images_after=None,
            transductive=False,
            seconds=0.0,
        )

    def _scored(
        self,
        row: Row,
        test: str,
        values: npt.NDArray[np.float64],
        model: Model,
        indices: npt.NDArray[np.int64] | None = None,
    ) -> Row:
        """Complete a row with the scores on a test set, or on some of its images by position."""
        ids = self.data(test).ids
        tested = set(ids if indices is None else [ids[i] for i in indices])
        seen = bool(row.transferal) and not tested.isdisjoint(self.data(row.transferal).ids)
        found = _rounded(values)
        return replace(
            row,
            test=test,
            n=found.n,
            dice_mean=found.mean,
            dice_std=found.std,
            transductive=seen,
            seconds=model.artefact.seconds,
        )

    @staticmethod
    def _compared(row: Row, teachers: list[npt.NDArray[np.float64]]) -> Row:
        """Add the best single teacher's scores on the same images."""
        best = max(map(_rounded, teachers), key=lambda found: found.mean)
        return replace(row, teacher_mean=best.mean, teacher_std=best.std)

    def _refuse_leak(self, teacher: str, learned: DataSet, test: DataSet) -> None:
        known = set(learned.ids)
        shared = sum(one in known for one in test.ids)
        if shared > LEAK_LIMIT * len(test):
            raise DataError(
                f"a teacher is tested on images it was not trained on; {shared} of the {len(test)} images of {test.name} are "
                f"among those of {learned.name}, which {teacher} learns. Give them parts that do not overlap."
            )
        if shared:
            self.warnings.append(f"{shared} of {len(test)} images of {test.name} are repeated in {learned.name}")


def run(
    settings: Experiment, root: Path, *, artefacts: Path | None = None, console: Console | None = None
) -> tuple[Experimenter, list[Row]]:
    """Compute every cell of an experiment that is not there yet, and write the results; gives them.

    Parameters
    ----------
    settings
        The experiment.
    root
        Its folder.
    artefacts
        The store, where it is not the folder's own: experiments that share one share their teachers and students.
    console
        Told how far it is.

    Raises
    ------
    ConsiliumError
        Whatever stopped it, with what to do; what was computed is kept.
    """
    todo = list(cells(settings))
    with workplace(settings, root, len(todo), artefacts=artefacts, console=console) as place:
        work = Experimenter(settings, place.store)
        rows = place.compute(todo, work.rows, write_rows, _found)
        write_text(root / "selections.csv", _selections(work.counts()))
    return work, rows


def _found(rows: Sequence[Row]) -> str:
    """What a cell found, for people."""
    return ", ".join(f"{row.test} {row.dice_mean:.1f} ± {row.dice_std:.1f}" for row in rows)


def _selections(counts: Iterator[Count]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ("teachers", "transferal", "seed", "images_before", "images_after", "few_target_pixels", "high_entropy")
    )
    for count in counts:
        told = [str(reason) for reason in count.selection.reasons]
        few, high = (sum(word in reason for reason in told) for word in ("few-target-pixels", "high-entropy"))
        numbers = (len(told), len(count.selection.kept), few, high)
        writer.writerow(("+".join(count.teachers), count.transferal, count.seed, *numbers))
    return table.getvalue()


def _rounded(values: npt.NDArray[np.float64]) -> Score:
    found = score(values)
    return Score(mean=round(found.mean, 4), std=round(found.std, 4), n=found.n)
