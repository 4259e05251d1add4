"""What an experiment shows: tables as files and for a terminal, and one page with everything on it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Group
from rich.text import Text

from consilium.common.files import write_text
from consilium.server.experiment import render
from consilium.server.experiment.figures import entropy_histograms, exclusion_examples
from consilium.server.experiment.form import COUNTERPARTS, Counterpart, Form
from consilium.server.experiment.render import Table
from consilium.server.experiment.rows import Row
from consilium.server.experiment.run import Count, Experimenter
from consilium.server.experiment.scores import Selected
from consilium.server.experiment.settings import PHANTOMS, DataSettings, Experiment
from consilium.server.experiment.tables import all_tables
from consilium.server.report import table as terminal

_LONG_WORD: Final = len("DeepLabv3+")
"""A longer word of a header goes on in a second line behind its hyphens."""
_ENDS: Final = re.compile(r" (?=[±[(])|(?<=[,)]) ")
"""Where a number's line may end: before a deviation, a bracket or the paper's number, and after a comma or a bracket."""


def write_pages(work: Experimenter, rows: Sequence[Row], root: Path) -> list[Table]:
    """Write ``tables/`` and ``index.html`` into an experiment's folder; gives the tables.

    Parameters
    ----------
    work
        The experiment; what it is asked for is there already, or is computed.
    rows
        Its results.
    root
        Its folder.
    """
    made = tables_of(work.settings, rows, list(work.counts()))
    write_tables(made, root)
    write_text(root / "index.html", _page(work, made))
    return made


def write_tables(made: Iterable[Table], root: Path) -> None:
    """Write ``tables/`` into an experiment's folder."""
    folder = root / "tables"
    folder.mkdir(exist_ok=True)
    for table in made:
        write_text(folder / f"{table.name}.md", render.markdown(table))
        write_text(folder / f"{table.name}.html", str(render.html(table)))
        write_text(folder / f"{table.name}.tex", render.latex(table))


def tables_of(settings: Experiment, rows: Sequence[Row], counts: Iterable[Count]) -> list[Table]:
    """Give the tables an experiment asks for; all there is something for, where it names none."""
    selections = [
        Selected("+".join(one.teachers), one.transferal, one.seed, len(one.selection.reasons), len(one.selection.kept))
        for one in counts
    ]
    return all_tables(rows, form_of(settings), selections=selections, tables=settings.tables or range(2, 8))


def form_of(settings: Experiment) -> Form:
    """What the tables of an experiment look like: what it asks for has its place, measured or not."""
    return Form(
        transferal=tuple(settings.transferal),
        students=tuple(dict.fromkeys(student.network.name for student in settings.students.values())),
        tests=settings.tests,
        exclusion=settings.exclusion.use,
        data={name: counterpart(name, one) for name, one in settings.data.items()},
    )


def counterpart(name: str, data: DataSettings) -> Counterpart:
    """What a data set of an experiment is to the paper. A part of one is not the paper's whole."""
    known = COUNTERPARTS.get(data.data_set, Counterpart(name))
    whole = data.part == (0.0, 1.0) and not data.limit
    if whole and data.data_set != PHANTOMS:
        return known
    label = known.label if known.label.casefold() == name else f"{name} ({known.label})"
    return replace(known, label=label, paper="")


def console_table(table: Table) -> Group:
    """The table and its notes for a terminal of any width: deviations and intervals stand below their means."""
    columns = tuple(column if column in table.spare else _header(column) for column in table.columns)
    rows = tuple(
        (terminal.Cell(_whole(first.text), first.best), *map(_number, numbers)) for first, *numbers in table.rows
    )
    shown = terminal.Table(_whole(table.caption), columns, rows, spare=table.spare)
    return Group(Text(""), shown, *(Text(note, style="dim") for note in table.notes))


def _header(column: str) -> str:
    return " ".join(word.replace("-", "-\n") if len(word) > _LONG_WORD else word for word in column.split())


def _whole(text: str) -> str:
    """Words with the number of images, ``(n = 6)``, as one word."""
    return text.replace("(n = ", "(n=")


def _number(cell: render.Cell) -> terminal.Cell:
    text = f"{cell.text} [{cell.paper}]" if cell.paper else cell.text
    return terminal.Cell(_ENDS.sub("\n", text), cell.best)


def _figures(work: Experimenter) -> list[tuple[str, Markup]]:
    """Figures 1 and 3 for each ensemble, of the first seed: headings and fragments of HTML."""
    settings, seed = work.settings, work.settings.seeds[0]
    alpha, size = settings.exclusion.alpha, settings.image.size
    made = list[tuple[str, Markup]]()
    for teachers in settings.fused if settings.transferal else ():
        beta, by = work.beta(teachers), f"by the pseudo masks of {', '.join(teachers)}"
        found = {name: work.selection(teachers, name, seed).found for name in settings.transferal}
        made.append((f"Gray-level entropy {by}", entropy_histograms(found, alpha=alpha, beta=beta, size=size)))
        for name, one in found.items():
            masks = work.pseudo(teachers, name, seed).masks
            pictures = exclusion_examples(work.data(name).images, masks, one, alpha=alpha, beta=beta)
            made.append((f"Exclusion from {name} {by}", pictures))
    return made


def _page(work: Experimenter, made: Sequence[Table]) -> str:
    environment = Environment(
        loader=PackageLoader("consilium.server.experiment", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html.j2").render(
        settings=work.settings,
        tables=[(table.name, Markup(render.html(table))) for table in made],  # noqa: S704 - render.html escapes
        figures=_figures(work) if 7 in work.settings.tables or not work.settings.tables else [],
        data=[(name, one, work.data(name)) for name, one in work.settings.data.items()],
        notes=list(dict.fromkeys(work.warnings)),
    )
