"""What stands below a table: how its cells were made, and where its data are not the paper's."""

from collections.abc import Iterable, Sequence

from consilium.server.experiment.form import Form
from consilium.server.experiment.paper_numbers import find
from consilium.server.experiment.render import NONE, Cell
from consilium.server.experiment.rows import Row
from consilium.server.experiment.scores import Score


def with_count(form: Form, rows: Sequence[Row], test: str) -> str:
    """A test set and how many images it has; the most and fewest where splits differ from seed to seed."""
    counts = {row.n for row in rows if row.test == test}
    return form.label(test) + (f" (n = {_range(counts)})" if counts else "")


def notes_of(
    form: Form, scores: Sequence[Score], lines: Sequence[Sequence[Cell]], rows: Sequence[Row], names: Iterable[str]
) -> list[str]:
    """What a reader must know of the cells, and of the data in them."""
    used = list(dict.fromkeys(names))
    notes = []
    if (seeds := max((score.seeds for score in scores), default=0)) > 1:
        notes.append(
            f"Means over {seeds} seeds, where no other number is given. The deviation over images is the root of the "
            "seeds' mean variance; s is the sample standard deviation of the seeds' means."
        )
    if any(score.transductive for score in scores):
        notes.append("† Transductive: test images are among the transferal images; their pseudo masks were learned.")
    notes += [*cell_notes(form, lines), *data_notes(form, used)]
    return notes + [note for name in used for note in _transferal_note(form, rows, name)]


def cell_notes(form: Form, lines: Sequence[Sequence[Cell]]) -> list[str]:
    """What dashes and brackets in a table mean."""
    cells = [cell for line in lines for cell in line]
    notes = [f"{NONE} not measured."] if any(cell.text == NONE for cell in cells) else []
    if any(cell.paper for cell in cells):
        notes.append(
            "In square brackets: the paper's number, where the data are the same. Its teachers were trained on images of its "
            "own hospital, which are not public."
        )
    elif form.with_paper:
        notes.append("No number of the paper stands beside these: they are of other images or networks.")
    return notes


def data_notes(form: Form, names: Iterable[str]) -> list[str]:
    """How the data sets differ from the paper's."""
    told = (form.data[name].difference for name in names if name in form.data)
    return list(dict.fromkeys(filter(None, told)))


def _transferal_note(form: Form, rows: Sequence[Row], name: str) -> list[str]:
    """How many transferal images there are, where the paper has another number of them."""
    counts = {row.images_before for row in rows if row.transferal == name and row.images_before is not None}
    return count_note(form, name, "transferal", counts)


def sizes_tested(form: Form, rows: Sequence[Row], name: str, labelled: float = 0) -> list[str]:
    """How many test images there are, where the paper has another number; it tests on all but the labelled ones."""
    return count_note(form, name, "test", {row.n for row in rows if row.test == name}, labelled)


def count_note(form: Form, name: str, kind: str, counts: set[int], without: float = 0) -> list[str]:
    """That there are other numbers of images than in the paper; ``without`` are those it leaves out of its own."""
    printed = find("1", form.of_paper(name), "Image Number")
    if printed is None or not counts or counts == {printed.mean - without}:
        return []
    return [f"{form.label(name)}: {_range(counts)} {kind} images here, {printed.mean - without:,.0f} in the paper."]


def _range(counts: set[int]) -> str:
    return f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "")
