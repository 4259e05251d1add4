"""The command ``consilium experiment``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console, RenderableType

from consilium.common.settings import read_toml
from consilium.server.shipped import find_experiment

ABLATION: Final = "ablation"
"""The ``kind`` of a file that is no grid."""

Scale = Literal["full", "small", "tiny"]


class ScaleName(StrEnum):
    """How much of an experiment."""

    FULL = "full"
    SMALL = "small"
    TINY = "tiny"


def experiment(
    file: Annotated[Path, typer.Argument(help="settings, TOML; the paper's are also found by name: table6.toml")],
    scale: Annotated[
        ScaleName, typer.Option(help="full: as written; small: hours on two cores; tiny: phantoms, a minute or two")
    ] = ScaleName.FULL,
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of a data set, or NAME=SET:FOLDER to put another in its place; may be repeated"),
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="folder; runs/experiments/NAME[-SCALE] by default")] = None,
    artefacts: Annotated[
        Path | None, typer.Option(help="where teachers, masks and students are kept; shared, experiments share them")
    ] = None,
) -> None:
    """Run a grid of teachers, transferal sets, students and exclusion, and render the paper's tables from it; or an ablation.

    Started again on the same folder, it goes on where it was.
    """
    path = find_experiment(file)
    work = _ablation if read_toml(path).get("kind") == ABLATION else _grid
    console = Console()
    root, tables, warnings = work(path, scale.value, tuple(data or ()), run, artefacts, console)
    for table in tables:
        console.print(table)
    for warning in dict.fromkeys(warnings):
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Page: {(root / 'index.html').resolve()}", highlight=False, soft_wrap=True)


Done = tuple[Path, list[RenderableType], list[str]]
"""The folder, the tables for a terminal, and what is to be noted."""


def _grid(
    path: Path, scale: Scale, data: tuple[str, ...], run: Path | None, artefacts: Path | None, console: Console
) -> Done:
    from consilium.server.experiment.page import console_table, write_pages
    from consilium.server.experiment.run import run as run_experiment
    from consilium.server.experiment.settings import load

    settings = load(path, scale, data)
    root = run or _folder(settings.name, scale)
    work, rows = run_experiment(settings, root, artefacts=artefacts, console=console)
    return root, [console_table(table) for table in write_pages(work, rows, root)], work.warnings


def _ablation(
    path: Path, scale: Scale, data: tuple[str, ...], run: Path | None, artefacts: Path | None, console: Console
) -> Done:
    from consilium.server.ablation.page import write_pages
    from consilium.server.ablation.run import run as run_ablation
    from consilium.server.ablation.settings import load
    from consilium.server.experiment.page import console_table

    settings = load(path, scale, data)
    root = run or _folder(settings.name, scale)
    work, rows = run_ablation(settings, root, artefacts=artefacts, console=console)
    return root, [console_table(table) for table in write_pages(work, rows, root)], work.warnings


def _folder(name: str, scale: Scale) -> Path:
    return Path("runs") / "experiments" / (name if scale == "full" else f"{name}-{scale}")
