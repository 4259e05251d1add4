"""The command ``consilium``: what a coordinator types. It translates and calls."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from consilium.common.errors import ConsiliumError, DataError, SettingsError
from consilium.common.settings import load, parse, read_toml
from consilium.common.study import Study
from consilium.server.experiment_cli import experiment

if TYPE_CHECKING:
    from consilium.server.study_run import StudyRun

app = typer.Typer(
    help="Hospitals teach one segmentation model through soft masks of shared images.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
catalogue_app = typer.Typer(help="The signed list of shared images.", no_args_is_help=True)
app.add_typer(catalogue_app, name="catalogue")
app.command(epilog="Example:  consilium experiment table6.toml --scale tiny")(experiment)

StudyFile = Annotated[Path, typer.Argument(help="settings, TOML; the shipped ones are also found by name: demo.toml")]
RunOption = Annotated[Path | None, typer.Option("--run", help="run folder; runs/NAME of the study by default")]
RunArgument = Annotated[Path, typer.Argument(help="run folder")]


class EngineName(StrEnum):
    """How a simulated federation runs."""

    PROCESSES = "processes"
    RAY = "ray"
    INLINE = "inline"


EngineOption = Annotated[
    EngineName, typer.Option(help="processes: SuperLink and SuperNodes; ray: many virtual sites; inline: one process")
]


@app.command(epilog="Example:  consilium demo --run runs/demo")
def demo(run: RunOption = None, engine: EngineOption = EngineName.PROCESSES) -> None:
    """Watch four hospitals teach one student, on synthetic ultrasound; about four minutes on two cores."""
    simulate(Path("demo.toml"), run=run, engine=engine)


@app.command(
    epilog="Example:  consilium simulate breast-ultrasound.toml --data Dataset_BUSI_with_GT --transferal DDTI/image"
)
def simulate(
    study: StudyFile,
    run: RunOption = None,
    engine: EngineOption = EngineName.PROCESSES,
    data: Annotated[Path | None, typer.Option(help="labelled data set's folder; overrides simulation.data")] = None,
    transferal: Annotated[Path | None, typer.Option(help="unlabelled images; overrides simulation.transferal")] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV of near-duplicate groups; overrides simulation.groups")
    ] = None,
) -> None:
    """Run a whole federation on this machine: teachers, soft masks, student, report.

    Started again on the same run folder, it goes on where it was.
    """
    from consilium.server.simulation import SimulatedStudy

    path = find_settings(study)
    document = read_toml(path)
    for key, value in (("data", data), ("transferal", transferal), ("groups", groups)):
        if value is not None:
            document.setdefault("simulation", {})[key] = str(value.resolve())
    settings = parse(SimulatedStudy, document, str(path))
    root = run or Path("runs") / settings.name

    from consilium.server.report.tables import console_table
    from consilium.server.simulate import simulate as run_simulation

    console = Console()
    metrics = run_simulation(settings, root, engine.value, console)
    console.print(console_table(metrics))
    console.print(f"Report: {(root / 'report.html').resolve()}", highlight=False, soft_wrap=True)


@catalogue_app.command(
    "build", epilog="Example:  consilium catalogue build images/ --run runs/study --size 384 --key coordinator.pem"
)
def catalogue_build(
    images: Annotated[Path, typer.Argument(help="folder of unlabelled images: PNG, JPEG, TIFF, BMP, DICOM")],
    run: Annotated[Path, typer.Option("--run", help="run folder; the catalogue goes to its catalogue/")],
    key: Annotated[Path, typer.Option(help="the coordinator's Ed25519 signing key; made if it is not there")],
    name: Annotated[str, typer.Option(help="the catalogue's name")] = "transferal",
    size: Annotated[int, typer.Option(help="height and width in pixels; the study's image.size")] = 384,
    channels: Annotated[int, typer.Option(help="1 (gray) or 3 (RGB); the study's image.channels")] = 1,
) -> None:
    """Bring images to canonical form, list them by SHA-256, pack them and sign the list."""
    from rich.progress import track

    from consilium.common.catalogue import CatalogueImage, build
    from consilium.common.identity import fingerprint, load_signing_key, make_signing_key, public_key_of
    from consilium.common.images import image_files, iter_images
    from consilium.server.run_folder import RunFolder

    if channels not in (1, 3):
        raise SettingsError(f"--channels is 1 or 3; got {channels}")
    console = Console()
    signing = load_signing_key(key) if key.exists() else make_signing_key(key)
    found = image_files(images)
    read = track(iter_images(found, size, channels), "reading", len(found), console=console)
    made = build(RunFolder(run).catalogue, name, (CatalogueImage(pixels, str(path)) for path, pixels in read), signing)
    console.print(f"{len(made)} images ({len(found) - len(made)} repeated) in {made.folder}", highlight=False)
    console.print(f"catalogue hash   {made.hash}", highlight=False)
    console.print(f"signed with key  {public_key_of(signing).hex()}", highlight=False)
    console.print(f"fingerprint      {fingerprint(public_key_of(signing))}", highlight=False)


@app.command("run", epilog="Example:  consilium run study.toml --run runs/study --superlink my-superlink")
def run_study(
    study: StudyFile,
    run: RunOption = None,
    superlink: Annotated[str, typer.Option(help="connection of Flower's own config.toml")] = "",
) -> None:
    """Submit a study to a running SuperLink, and follow it.

    The run folder must hold the catalogue, and be on the machine whose superexec runs the ServerApp. The connection is one
    that `flwr` knows; see `flwr config list`.
    """
    from consilium.server.submit import submit_and_follow

    settings = load(Study, find_settings(study))
    submit_and_follow(settings, run or Path("runs") / settings.name, superlink, Console())
    report(run or Path("runs") / settings.name)


@app.command(epilog="Example:  consilium distill runs/demo")
def distill(run: RunArgument) -> None:
    """Select images and train the student from the soft masks collected in a run folder; needs no site."""
    with _opened(run) as study:
        if not (held := study.ledger.stage("collect")) or not held.finished:
            raise DataError(f"{run}: soft masks are not all collected yet; go on with `consilium run` or `simulate`")
        from consilium.server.board import Board, following

        with Board(Console()) as board, following(board, study.folder.ledger):
            study.distill(study.select())
            study.test()
    report(run)


@app.command(epilog="Example:  consilium evaluate runs/demo")
def evaluate(run: RunArgument) -> None:
    """Score teachers, ensemble and student again on the coordinator's own test images."""
    with _opened(run) as study:
        if not (study.folder.test_set / "index.csv").is_file():
            raise DataError(f"{run}: the coordinator holds no labelled test images here ({study.folder.test_set})")
        study.ledger.reopen("test")
        study.test()
    report(run)


@app.command(epilog="Example:  consilium report runs/demo")
def report(run: RunArgument) -> None:
    """Write metrics.json and report.html of a run folder, whatever state it is in, and print the table."""
    from consilium.server.report import write_report
    from consilium.server.report.tables import console_table

    console = Console()
    with _opened(run) as study:
        write_report(study)
        metrics: dict[str, Any] = json.loads(study.folder.metrics.read_text("utf-8"))
    console.print(console_table(metrics))
    console.print(f"Report: {(run / 'report.html').resolve()}", highlight=False, soft_wrap=True)


@contextmanager
def _opened(root: Path) -> "Iterator[StudyRun]":
    from consilium.server.app import open_run
    from consilium.server.run_folder import RunFolder

    RunFolder(root).open_study()
    with RunFolder(root).locked():
        _, study = open_run(root)
        try:
            yield study
        finally:
            study.ledger.close()


def find_settings(path: Path) -> Path:
    """Find a settings file: as a path, else by name among the shipped ones."""
    if path.is_file():
        return path
    shipped = Path(str(files("consilium.configs"))) / path.name
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(entry.name for entry in shipped.parent.glob("*.toml")))
    raise SettingsError(f"{path}: there is no such settings file, and none of that name is shipped ({known})")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"consilium {version('consilium')}, flwr {version('flwr')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="versions, and exit")
    ] = False,
) -> None:
    """Take the options that come before a command."""


def main() -> None:
    """Run the command; an expected error is told in words, without a traceback, and is not 0."""
    try:
        app()
    except ConsiliumError as error:
        Console(stderr=True).print(f"[bold red]consilium:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, SettingsError | DataError) else 1)
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped; the same command goes on from here", highlight=False)
        sys.exit(130)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
