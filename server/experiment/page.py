"""What an experiment shows: tables as files, and one page with everything on it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import rich.table
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.text import Text

from consilium.server.disk import write_text
from consilium.server.experiment import render
from consilium.server.experiment.figures import entropy_histograms, exclusion_examples
from consilium.server.experiment.form import COUNTERPARTS, Counterpart, Form
from consilium.server.experiment.render import Table
from consilium.server.experiment.rows import Row
from consilium.server.experiment.run import Count, Experimenter
from consilium.server.experiment.scores import Selected
from consilium.server.experiment.settings import PHANTOMS, DataSettings, Experiment
from consilium.server.experiment.tables import all_tables


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


def console_table(table: Table) -> rich.table.Table:
    """The table for a terminal, where deviations stand below their means: seven columns fit into eighty letters."""
    shown = rich.table.Table(
        title=table.caption, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False
    )
    for place, column in enumerate(table.columns):
        header = column.replace("student ", "student\n")
        header = header.replace("-", "-\n") if len(column) > len("DeepLabv3+") else header
        shown.add_column(header, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        texts = (f"{cell.text} [{cell.paper}]" if cell.paper else cell.text for cell in row)
        lines = (text.replace(" ±", "\n±").replace(" [", "\n[") for text in texts)
        shown.add_row(*(Text(text, "bold" if cell.best else "") for text, cell in zip(lines, row, strict=True)))
    return shown


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
