"""The command ``consilium experiment``."""

from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from consilium.common.errors import SettingsError


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
    """Run a grid of teachers, transferal sets, students and exclusion, and render the paper's tables from it.

    Started again on the same folder, it goes on where it was.
    """
    from consilium.server.experiment.page import console_table, write_pages
    from consilium.server.experiment.run import run as run_experiment
    from consilium.server.experiment.settings import load

    settings = load(find_experiment(file), scale.value, tuple(data or ()))
    suffix = "" if scale is ScaleName.FULL else f"-{scale.value}"
    root = run or Path("runs") / "experiments" / f"{settings.name}{suffix}"
    console = Console()
    work, rows = run_experiment(settings, root, artefacts=artefacts, console=console)
    for table in write_pages(work, rows, root):
        console.print(console_table(table))
    for warning in dict.fromkeys(work.warnings):
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Page: {(root / 'index.html').resolve()}", highlight=False, soft_wrap=True)


def find_experiment(path: Path) -> Path:
    """Find an experiment's file: as a path, else by name among the shipped ones."""
    if path.is_file():
        return path
    shipped = Path(str(files("consilium.configs"))) / "paper" / path.name
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(entry.name for entry in shipped.parent.glob("*.toml")))
    raise SettingsError(f"{path}: there is no such experiment, and none of that name is shipped ({known})")
