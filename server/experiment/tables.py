"""Results in the form of the paper's tables 2 to 7, with the paper's numbers beside ours where the data are the same.

What was not measured is a dash.
"""

import re
from collections.abc import Container, Iterable, Sequence
from statistics import fmean
from typing import Final

from consilium.common.errors import DataError
from consilium.server.experiment.form import Form
from consilium.server.experiment.notes import cell_notes, count_note, data_notes, notes_of, sizes_tested, with_count
from consilium.server.experiment.paper_numbers import KTC, NETWORKS, SCRATCH, Printed, find, number
from consilium.server.experiment.render import NONE, Cell, Table
from consilium.server.experiment.rows import Row, Variant
from consilium.server.experiment.scores import Place, Score, Scores, Selected, selected

_TABLES_2_3: Final = {"XXX Breast Lesion-2": "2", "Baheya Breast Lesion": "3"}
_TABLES_4_5: Final = {"Baheya Breast Lesion": "4", "Thyroid Nodule": "5"}
_TABLE_6_TRANSFERAL: Final = "Baheya Breast Lesion"
_TEACHER: Final = "DeepLabv3+"
"""The paper's single teacher of tables 2 to 5 and 7."""
_PUPIL: Final = "DeepLabv3+"
"""Its student of table 6."""


def all_tables(
    rows: Iterable[Row],
    form: Form | None = None,
    *,
    selections: Iterable[Selected] = (),
    tables: Container[int] = range(2, 8),
) -> list[Table]:
    """Give every table there is something for.

    One in the form of tables 2 and 3 for each single teacher and test set; of tables 4 and 5 for each teacher and test set
    with fine-tuned students; of table 6 for each group of teachers and transferal set; of table 7 for each teacher or group.

    Parameters
    ----------
    rows
        The results.
    form
        What the tables look like.
    selections
        What exclusion leaves where no row tells it, because no student was trained.
    tables
        The paper's tables whose form is wanted; 2 and 3 are one form, and so are 4 and 5.

    Raises
    ------
    DataError
        If one cell has two different results for one seed.
    """
    form, scores = form or Form(), Scores(rows)
    distilled = [row for row in scores.rows if row.variant == Variant.DISTILLED]
    single = dict.fromkeys((row.teachers, row.test) for row in distilled if "+" not in row.teachers)
    tuned = dict.fromkeys((row.teachers, row.test) for row in scores.rows if row.variant == Variant.FINE_TUNED)
    with_tuned = {test for _, test in tuned}
    scratch = dict.fromkeys(("", row.test) for row in scores.rows if row.variant == Variant.SCRATCH)
    tuned |= {place: None for place in scratch if place[1] not in with_tuned}
    many = dict.fromkeys((row.teachers, row.transferal) for row in distilled if "+" in row.teachers)
    counts = selected(scores.rows) | set(selections)
    made: list[Table] = []
    if 2 in tables or 3 in tables:
        made += [single_teacher(scores, teachers, test, form) for teachers, test in single]
    if 4 in tables or 5 in tables:
        made += [fine_tuning(scores, teachers, test, form) for teachers, test in tuned]
    if 6 in tables:
        made += [many_teachers(scores, teachers, transferal, form) for teachers, transferal in many]
    if 7 in tables:
        made += [exclusion_counts(counts, teachers, form) for teachers in sorted({one.teachers for one in counts})]
    return made


def single_teacher(scores: Scores, teacher: str, test: str, form: Form) -> Table:
    """Give the form of tables 2 and 3: one teacher's students on one test set, and each transferal set's KTC."""
    here = [row for row in scores.rows if (row.variant, row.teachers, row.test) == (Variant.DISTILLED, teacher, test)]
    students, transferals, stars = _axes(here, form)
    own = scores.teacher(Place(Variant.DISTILLED, test, teacher))
    table = _TABLES_2_3.get(form.of_paper(test), "")
    grid = _Grid(scores)
    lines: list[tuple[Cell, ...]] = []
    for transferal in transferals:
        block = [
            [grid.at(Place(Variant.DISTILLED, test, teacher, transferal, student, star)) for student in students]
            for star in stars
        ]
        best = _best(score for line in block for score in line)
        printed = find(table, form.of_paper(transferal), KTC)
        share = f"{100 * best / own.mean:.2f}" if best is not None and own and own.mean else NONE
        for place, (star, line) in enumerate(zip(stars, block, strict=True)):
            beside = [find(table, form.of_paper(transferal), _network(student), star) for student in students]
            ktc = Cell("") if place else Cell(share, f"{printed.mean:.2f}" if printed else "")
            lines.append((Cell(form.label(transferal, star)), *grid.cells(line, beside, [best] * len(line)), ktc))
    notes = [
        _teacher_note("Teacher", here, own, find("section 5.1", form.of_paper(test), _TEACHER), grid),
        "KTC: the transferal set's best student (bold) over the teacher, in percent; of the cells that are there.",
    ]
    if any(line[-1].paper == "106.66" for line in lines):
        notes.append("The paper's KTC of 106.66 is a misprint: its own cells give 105.66.")
    return Table(
        _name("single-teacher", teacher, test),
        f"Dice (± standard deviation over images, %) on {with_count(form, here, test)} of students trained on the pseudo masks "
        "of one teacher, as in the paper's tables 2 and 3. * images without a salient target were excluded.",
        ("Transferal data set", *map(_network, students), KTC),
        tuple(lines),
        (*notes, *notes_of(form, grid.found, lines, here, (*transferals, test)), *sizes_tested(form, here, test)),
    )


def fine_tuning(scores: Scores, teacher: str, test: str, form: Form) -> Table:
    """Give the form of tables 4 and 5: fine-tuned students against students from scratch on the same labelled images."""
    here = [row for row in scores.rows if (row.variant, row.teachers, row.test) == (Variant.FINE_TUNED, teacher, test)]
    scratch = [row for row in scores.rows if (row.variant, row.test) == (Variant.SCRATCH, test)]
    students, transferals, stars = _axes([*here, *scratch], form)
    table = _TABLES_4_5.get(form.of_paper(test), "")
    grid = _Grid(scores)
    kinds: list[tuple[str, bool] | None] = [None, *((transferal, star) for transferal in transferals for star in stars)]
    block = [
        [
            grid.at(Place(Variant.FINE_TUNED, test, teacher, kind[0], student, kind[1]))
            if kind
            else grid.at(Place(Variant.SCRATCH, test, student=student))
            for student in students
        ]
        for kind in kinds
    ]
    best = [_best(column) for column in zip(*block, strict=True)]
    lines = []
    for kind, line in zip(kinds, block, strict=True):
        row, star = (form.of_paper(kind[0]), kind[1]) if kind else (SCRATCH, None)
        beside = [find(table, row, _network(student), star) for student in students]
        label = form.label(*kind) if kind else "From scratch"
        lines.append((Cell(label), *grid.cells(line, beside, best)))
    own = scores.teacher(Place(Variant.FINE_TUNED, test, teacher))
    printed = find("section 5.2", form.of_paper(test), _TEACHER)
    return Table(
        _name("fine-tuned", teacher, test),
        f"Dice (± standard deviation over images, %) on {with_count(form, [*here, *scratch], test)} of students fine-tuned, or "
        "trained from scratch, on the same labelled images, as in the paper's tables 4 and 5. * images without a salient "
        "target were excluded.",
        ("Transferal data set", *map(_network, students)),
        tuple(lines),
        (
            _teacher_note(
                f"{'Best teacher' if '+' in teacher else 'Teacher'}, fine-tuned on the same images",
                here,
                own,
                printed,
                grid,
            ),
            "Bold: the best of each column.",
            *notes_of(form, grid.found, lines, here, (*transferals, test)),
            *sizes_tested(
                form, [*here, *scratch], test, labelled=number("section 5.2", "fine-tuning", "labelled").mean
            ),
        ),
    )


def many_teachers(scores: Scores, teachers: str, transferal: str, form: Form) -> Table:
    """Give the form of table 6: several teachers, and the students of all of them together, by test set.

    Raises
    ------
    DataError
        If a row does not name one network for each teacher.
    """
    here = [
        row
        for row in scores.rows
        if (row.variant, row.teachers, row.transferal) == (Variant.DISTILLED, teachers, transferal)
    ]
    told = here[0].teacher_networks if here else ""
    names, networks = teachers.split("+"), told.split("+")
    if len(names) != len(networks):
        raise DataError(f"a row names one network for each teacher; got teachers {teachers}, networks {told or NONE}")
    alone = {network for network in networks if networks.count(network) == 1}
    tests = form.ordered(form.tests, (row.test for row in here))
    students = sorted({(row.student, row.exclusion) for row in here})
    of_paper = form.of_paper(transferal) == _TABLE_6_TRANSFERAL and sorted(networks) == sorted(tuple(NETWORKS)[:4])
    grid = _Grid(scores)
    lines = []
    for test in tests:
        line = [grid.at(Place(Variant.TEACHER, test, name)) for name in names]
        line += [grid.at(Place(Variant.DISTILLED, test, teachers, transferal, *student)) for student in students]
        columns = [network if network in alone else "" for network in networks]
        columns += [student if _network(student) == _PUPIL and not star else "" for student, star in students]
        row = form.of_paper(test) if of_paper else ""
        beside = [find("6", row, _network(column)) for column in columns]
        lines.append((Cell(with_count(form, here, test)), *grid.cells(line, beside, [_best(line)] * len(line))))
    return Table(
        _name("many-teachers", teachers, transferal),
        f"Dice (± standard deviation over images, %) of {len(names)} teachers and of students trained on their mean pseudo masks "
        f"of {form.label(transferal)}, as in the paper's table 6. * images without a salient target were excluded.",
        (
            "Test data set",
            *(
                _network(kind) if kind in alone else f"{_network(kind)} ({name})"
                for name, kind in zip(names, networks, strict=True)
            ),
            *(f"student {_network(student)}" + "*" * star for student, star in students),
        ),
        tuple(lines),
        (
            "Bold: the best of each row.",
            *notes_of(form, grid.found, lines, here, (transferal, *tests)),
            *(note for test in tests for note in sizes_tested(form, here, test)),
        ),
    )


def exclusion_counts(selections: Iterable[Selected], teachers: str, form: Form) -> Table:
    """Give the form of table 7: how many transferal images are left after exclusion; the mean over the seeds.

    Raises
    ------
    DataError
        If one seed has two different numbers.
    """
    here = sorted(one for one in set(selections) if one.teachers == teachers)
    transferals = form.ordered(form.transferal, (one.transferal for one in here))
    lines, notes = [], list[str]()
    for transferal in transferals:
        counts = [one for one in here if one.transferal == transferal]
        if len({one.seed for one in counts}) != len(counts):
            raise DataError(
                f"one seed's pseudo masks of {transferal} by {teachers} leave one number of images; got "
                + ", ".join(f"{one.images_after} of {one.images_before} (seed {one.seed})" for one in counts)
            )
        own = _means(counts)
        columns = ("Images before Exclusion", "Images after Exclusion")
        row = "" if "+" in teachers else form.of_paper(transferal)  # the paper's table is its single teacher's
        printed = [number.mean for name in columns if (number := find("7", row, name))]
        lines.append(
            (
                Cell(form.label(transferal)),
                *(Cell(*pair) for pair in zip(_counted(own), _counted(printed) if printed else [""] * 3, strict=True)),
            )
        )
        notes += count_note(form, transferal, "transferal", {one.images_before for one in counts})
    seeds = len({one.seed for one in here})
    return Table(
        _name("exclusion", teachers),
        f"Transferal images before and after exclusion by the pseudo masks of {teachers}, as in the paper's table 7.",
        ("Transferal data set", "Images before exclusion", "Images after exclusion", "Kept"),
        tuple(lines),
        (
            *([f"Means over {seeds} seeds."] if seeds > 1 else []),
            *cell_notes(form, lines),
            *data_notes(form, transferals),
            *notes,
        ),
    )


def _means(counts: Sequence[Selected]) -> list[float]:
    """Mean images before and after; empty where there are none."""
    if not counts:
        return []
    return [fmean(one.images_before for one in counts), fmean(one.images_after for one in counts)]


def _counted(numbers: Sequence[float]) -> list[str]:
    """Before, after, and the share kept."""
    if not numbers:
        return [NONE] * 3
    before, after = numbers
    return [f"{before:,.0f}", f"{after:,.0f}", f"{100 * after / before:.1f} %"]


class _Grid:
    """The scores of one table: looked up, and worded alike."""

    def __init__(self, scores: Scores) -> None:
        self._scores: Final = scores
        self.found: Final[list[Score]] = []

    def at(self, place: Place) -> Score | None:
        score = self._scores.at(place)
        if score:
            self.found.append(score)
        return score

    @property
    def seeds(self) -> int:
        """Most seeds of a cell."""
        return max((score.seeds for score in self.found), default=0)

    def cells(
        self, line: Sequence[Score | None], beside: Sequence[Printed | None], best: Sequence[float | None]
    ) -> list[Cell]:
        """Word scores; those that are the best as rounded are marked."""
        return [
            Cell(
                self.text(score),
                _printed(printed),
                score is not None and top is not None and f"{score.mean:.2f}" == f"{top:.2f}",
            )
            for score, printed, top in zip(line, beside, best, strict=True)
        ]

    def text(self, score: Score | None) -> str:
        """``mean ± std``, the seeds' spread where there are several, and the mark of a transductive test."""
        if score is None:
            return NONE
        spread = f"s {score.spread:.2f}" if score.seeds > 1 else ""
        fewer = f"{score.seeds} seed{'s' * (score.seeds > 1)}" if score.seeds < self.seeds else ""
        told = ", ".join(filter(None, (spread, fewer)))
        return f"{score.mean:.2f} ± {score.std:.2f}" + (f" ({told})" if told else "") + " †" * score.transductive


def _axes(rows: Sequence[Row], form: Form) -> tuple[list[str], list[str], list[bool]]:
    """Students, transferal sets and stars: those of the form, and those found."""
    students = list(dict.fromkeys((*form.students, *(row.student for row in rows))))
    learned = [row for row in rows if row.variant != Variant.SCRATCH]
    transferals = form.ordered(form.transferal, (row.transferal for row in learned))
    return students, transferals, sorted({*form.exclusion, *(row.exclusion for row in learned)})


def _best(scores: Iterable[Score | None]) -> float | None:
    return max((score.mean for score in scores if score), default=None)


def _network(name: str) -> str:
    return NETWORKS.get(name, name)


def _printed(number: Printed | None) -> str:
    if number is None:
        return ""
    return f"{number.mean:.2f}" + ("" if number.std is None else f" ± {number.std:.2f}")


def _words(rows: Sequence[Row], teachers: str) -> str:
    """The teachers' names and networks, for a sentence."""
    networks = rows[0].teacher_networks if rows else ""
    pairs = zip(teachers.split("+"), networks.split("+"), strict=False)
    return ", ".join(f"{name} ({_network(network)})" if network else name for name, network in pairs)


def _teacher_note(what: str, rows: Sequence[Row], score: Score | None, printed: Printed | None, grid: _Grid) -> str:
    beside = f" [{_printed(printed)}]" if printed else ""
    return f"{what}: {_words(rows, rows[0].teachers) if rows else NONE}, {grid.text(score)}{beside}."


def _name(kind: str, *parts: str) -> str:
    return "-".join(filter(None, (re.sub("[^A-Za-z0-9]+", "-", part).strip("-") for part in (kind, *parts))))
