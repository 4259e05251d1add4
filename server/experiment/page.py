"""What an experiment shows: tables as files, and one page with everything on it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import rich.table
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.text import Text

from consilium.server.experiment import render
from consilium.server.experiment.form import COUNTERPARTS, Counterpart, Form
from consilium.server.experiment.render import Table
from consilium.server.experiment.rows import Row, Variant
from consilium.server.experiment.run import Count, Experimenter
from consilium.server.experiment.scores import Scores
from consilium.server.experiment.settings import PHANTOMS, DataSettings, Experiment
from consilium.server.experiment.store import write_text
from consilium.server.experiment.tables import all_tables, exclusion_counts

_KINDS: Final = {
    2: "single-teacher",
    3: "single-teacher",
    4: "fine-tuned",
    5: "fine-tuned",
    6: "many-teachers",
    7: "exclusion",
}
"""How the names of tables begin, by the paper's number."""


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
    folder = root / "tables"
    folder.mkdir(exist_ok=True)
    for table in made:
        write_text(folder / f"{table.name}.md", render.markdown(table))
        write_text(folder / f"{table.name}.html", str(render.html(table)))
        write_text(folder / f"{table.name}.tex", render.latex(table))
    write_text(root / "index.html", _page(work, made))
    return made


def tables_of(settings: Experiment, rows: Sequence[Row], counts: Iterable[Count]) -> list[Table]:
    """Give the tables an experiment asks for; all there is something for, where it names none."""
    form = form_of(settings)
    kinds = {_KINDS[number] for number in settings.tables} or set(_KINDS.values())
    found = [table for table in all_tables(rows, form) if any(table.name.startswith(kind) for kind in kinds)]
    if "exclusion" not in kinds:
        return [_without_repeats(table) for table in found]
    counted = [_counted(settings, count) for count in counts]  # not only where a student was trained on what was left
    held = Scores(counted)
    listed = [exclusion_counts(held, teachers, form) for teachers in dict.fromkeys(row.teachers for row in counted)]
    found = [table for table in found if not table.name.startswith("exclusion")]
    return [_without_repeats(table) for table in (*found, *listed)]


def _without_repeats(table: Table) -> Table:
    """Say once what is to be said of several data sets of one kind."""
    return replace(table, notes=tuple(dict.fromkeys(table.notes)))


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
    label = name if known.label == name else f"{name} ({known.label})"
    return replace(known, label=label, paper="")


def console_table(table: Table) -> rich.table.Table:
    """The table for a terminal."""
    shown = rich.table.Table(title=table.caption, title_justify="left", title_style="bold")
    for place, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        texts = [f"{cell.text} [{cell.paper}]" if cell.paper else cell.text for cell in row]
        shown.add_row(*(Text(text, "bold" if cell.best else "") for text, cell in zip(texts, row, strict=True)))
    return shown


def _counted(settings: Experiment, count: Count) -> Row:
    networks = (settings.teachers[name].network.name for name in count.teachers)
    return Row(
        cell="",
        seed=count.seed,
        teachers="+".join(count.teachers),
        teacher_networks="+".join(networks),
        transferal=count.transferal,
        student="",
        exclusion=True,
        variant=Variant.DISTILLED,
        test="",
        n=0,
        dice_mean=0.0,
        dice_std=0.0,
        teacher_mean=None,
        teacher_std=None,
        images_before=len(count.selection.reasons),
        images_after=len(count.selection.kept),
        transductive=False,
        seconds=0.0,
    )


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
        data=[(name, one, work.data(name)) for name, one in work.settings.data.items()],
        notes=list(dict.fromkeys(work.warnings)),
    )
