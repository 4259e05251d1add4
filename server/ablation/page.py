"""What an ablation shows: tables as files, the ladder as a picture, and one page with everything on it."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from consilium.common.files import write_text
from consilium.server.ablation.figure import ladder, standalone
from consilium.server.ablation.rows import Row
from consilium.server.ablation.run import Ablator
from consilium.server.ablation.tables import all_tables
from consilium.server.ablation.targets import targets
from consilium.server.experiment import render
from consilium.server.experiment.page import write_tables
from consilium.server.experiment.render import Table


def write_pages(work: Ablator, rows: Sequence[Row], root: Path) -> list[Table]:
    """Write ``tables/``, ``ladder.svg`` and ``index.html`` into an ablation's folder; gives the tables."""
    settings = work.settings
    first = settings.scenario[0]
    found = targets(rows, first.name, settings.judged, settings.step[0].name)
    made = all_tables(settings, rows, found)
    write_tables(made, root)
    drawn = ladder([row for row in rows if row.scenario == first.name], settings.steps_of(first))
    write_text(root / "ladder.svg", standalone(drawn))
    environment = Environment(
        loader=ChoiceLoader(  # the style sheet is the grids'
            [PackageLoader("consilium.server.ablation", "."), PackageLoader("consilium.server.experiment", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("index.html.j2").render(
        settings=settings,
        tables=[Markup(render.html(table)) for table in made],  # noqa: S704 - render.html escapes
        ladder=drawn,
        recipes=[
            (step.name, settings.below(step.name), step.model_dump(exclude_defaults=True)) for step in settings.step
        ],
        notes=list(dict.fromkeys(work.warnings)),
    )
    write_text(root / "index.html", page)
    return made
