"""The command ``consilium``: what a coordinator types. It translates and calls."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from consilium.common.errors import DataError, SettingsError, WaitingError
from consilium.common.settings import load, parse, read_toml
from consilium.common.study import Study
from consilium.server import federation_cli
from consilium.server.data_cli import data_app
from consilium.server.exchange_cli import exchange_app
from consilium.server.experiment_cli import experiment
from consilium.server.follow_up_cli import follow_up
from consilium.server.pretrain_cli import pretrain
from consilium.server.shipped import find_settings

if TYPE_CHECKING:
    from consilium.server.study_run import StudyRun

WAITS: Final = 3
"""Exit status of a study that waits for people: for consent, or for the answer file of an offline site."""

app = typer.Typer(
    help="Hospitals teach one segmentation model through soft masks of shared images.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
catalogue_app = typer.Typer(help="The signed list of shared images.", no_args_is_help=True)
app.add_typer(catalogue_app, name="catalogue")
app.add_typer(data_app, name="data")
app.add_typer(exchange_app, name="exchange")
app.command(epilog="Example:  consilium experiment table6.toml --scale tiny")(experiment)
app.command(
    "follow-up",
    epilog="Example:  consilium follow-up runs/first --run runs/second --name second --key federation/signing.pem",
)(follow_up)
app.command(epilog="Example:  consilium pretrain breast-ultrasound.toml --out runs/pretrained")(pretrain)

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
    then_follow_up: Annotated[
        bool,
        typer.Option(
            "--follow-up",
            help="then a second study, in RUN/follow-up: the sites answer with the student as each fine-tuned it",
        ),
    ] = False,
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

    if then_follow_up and not settings.tuning:
        raise SettingsError(
            f"{path}: --follow-up asks what the sites made of the student; name them in fine-tune.sites"
        )

    from consilium.server import simulate as running
    from consilium.server.report.tables import console_table

    console, done = Console(), [root]
    first = running.simulate(settings, root, engine.value, console)
    console.print(console_table(first))
    if then_follow_up:
        from consilium.server.report.two_studies import two_studies

        done.append(running.follow_up_folder(root))
        second = running.simulate_follow_up(settings, root, engine.value, console)
        console.print(console_table(second), two_studies(first, second))
    for folder in done:
        console.print(f"Report: {(folder / 'report.html').resolve()}", highlight=False, soft_wrap=True)


@catalogue_app.command(
    "build",
    epilog="Examples:  consilium catalogue build images/ --run runs/study --size 384 --key coordinator.pem;  "
    "several sets:  consilium catalogue build nerve=nerve-images/ breast=busi:Dataset_BUSI_with_GT --run ...;  "
    "for a stack:  consilium catalogue build images/ --labelled labelled/ --run ...",
)
def catalogue_build(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...",
            help="transferal sets: FOLDER, NAME=FOLDER or NAME=DATASET:FOLDER, of PNG, JPEG, TIFF, BMP, DICOM; masks are not "
            "looked at",
        ),
    ],
    run: Annotated[Path, typer.Option("--run", help="run folder; the catalogue goes to its catalogue/")],
    key: Annotated[Path, typer.Option(help="the coordinator's Ed25519 signing key; made if it is not there")],
    name: Annotated[str, typer.Option(help="the catalogue's name")] = "transferal",
    size: Annotated[int, typer.Option(help="height and width in pixels; the study's image.size")] = 384,
    channels: Annotated[int, typer.Option(help="1 (gray) or 3 (RGB); the study's image.channels")] = 1,
    workers: Annotated[int, typer.Option(help="threads that read images; 0: one for each core", min=0)] = 0,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help='a few labelled images, images/ and masks/, to fit fusion.method = "stack" on; the masks stay here'
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="what these masks show, the study's labels in its order; repeat it for several"),
    ] = None,
) -> None:
    """Bring images to canonical form, list them by SHA-256, pack them and sign the list.

    Killed at any time and started again, it goes on where it was.
    """
    from consilium.common.catalogue import build
    from consilium.common.datasets import label_folder
    from consilium.common.identity.signing import fingerprint, public_key_of, signing_key
    from consilium.server import labelled_set
    from consilium.server.board import image_progress
    from consilium.server.run_folder import RunFolder
    from consilium.server.seals import offer_key
    from consilium.server.transferal_sets import catalogue_images, parse

    if channels not in (1, 3):
        raise SettingsError(f"--channels is 1 or 3; got {channels}")
    console, folder = Console(), RunFolder(run)
    images = catalogue_images(map(parse, sets), size, channels)
    if label and not labelled:
        raise SettingsError("--label says what the masks of --labelled show; give that folder as well")
    names = tuple(label or Study.model_fields["labels"].default)
    known = label_folder.read(labelled, size, channels, names) if labelled else None
    images = [*labelled_set.catalogue_images(known), *images] if known else images
    signing = signing_key(key)
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.locked(), image_progress(console, "images are packed", len(images)) as show:
        if known and not (folder.catalogue / "manifest.json").exists():
            labelled_set.pack(folder, known, names)
        made = build(
            folder.catalogue, name, images, signing, shape=(channels, size, size), workers=workers, on_progress=show
        )
        offer_key(folder, made.hash, signing)
    console.print(
        f"{len(made)} images ({len(images) - len(made)} repeated) in {made.folder}", highlight=False, soft_wrap=True
    )
    for collection, count in made.collections.items():
        console.print(f"  {collection or 'without a name'}: {count} images", highlight=False)
    if known:
        count, place = len(made.indices("labelled")), folder.labelled_set
        console.print(f"  labelled: {count} images; their masks stay in {place}", highlight=False, soft_wrap=True)
    console.print(f"catalogue hash   {made.hash}", highlight=False, soft_wrap=True)
    console.print(f"signed with key  {public_key_of(signing).hex()}", highlight=False, soft_wrap=True)
    console.print(f"fingerprint      {fingerprint(public_key_of(signing))}", highlight=False, soft_wrap=True)


@catalogue_app.command("seal", epilog="Example:  consilium catalogue seal runs/study --key coordinator.pem")
def catalogue_seal(
    run: RunArgument,
    key: Annotated[Path, typer.Option(help="the coordinator's Ed25519 signing key, that of the catalogue")],
) -> None:
    """Offer the sites a key to seal their soft masks to; for a catalogue that was built without, or whose offer was lost."""
    from consilium.common.catalogue import open_catalogue
    from consilium.common.identity.signing import fingerprint, load_signing_key
    from consilium.server.run_folder import RunFolder
    from consilium.server.seals import offer_key

    folder, signing = RunFolder(run), load_signing_key(key)
    catalogue = open_catalogue(folder.catalogue)
    catalogue.require_key(signing)
    with folder.locked():
        public = offer_key(folder, catalogue.hash, signing)
    Console().print(f"masks are sealed to {fingerprint(public)}", highlight=False, soft_wrap=True)


@app.command(
    "run",
    epilog="Examples:  consilium run study.toml --run runs/study --coordinator federation/\n\n"
    "consilium run study.toml --run runs/study --superlink my-superlink",
)
def run_study(
    study: StudyFile,
    run: RunOption = None,
    superlink: Annotated[str, typer.Option(help="connection of Flower's own config.toml")] = "",
    coordinator: Annotated[
        Path | None, typer.Option(help="folder of a federation whose `consilium coordinator start` runs here")
    ] = None,
) -> None:
    """Submit a study to a running SuperLink, and follow it.

    The run folder must hold the catalogue, and be on the machine whose superexec runs the ServerApp. A connection is one
    that `flwr` knows; see `flwr config list`.

    Ends with 3, which is no fault, if too few sites have consented yet: their people see the study and its images now; or if the
    answer file of an offline site is not imported yet.
    """
    from consilium.server.submit import submit_and_follow, submit_to_coordinator

    if superlink and coordinator:
        raise SettingsError("give --superlink or --coordinator, not both")
    settings = load(Study, find_settings(study))
    folder = run or Path("runs") / settings.name
    if coordinator:
        submit_to_coordinator(settings, folder, coordinator, Console())
    else:
        submit_and_follow(settings, folder, superlink, Console())
    report(folder)


@app.command(epilog="Examples:  consilium status runs/demo --watch;  in a script:  consilium status runs/demo --json")
def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", help="go on showing it until the study ends")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines; with --watch a line for every change")] = False,
) -> None:
    """Show where a study is: every stage, every site, and what went wrong.

    Ends with 0 if the study is finished, goes on, waits for people or has not begun; with 1 if it failed or was interrupted.
    """
    from consilium.server.report.progress import follow_status
    from consilium.server.status import WRONG

    word = follow_status(run, Console(), watch=watch, as_json=as_json)
    if word in WRONG:
        raise typer.Exit(1)


@app.command(epilog="Example:  consilium distill runs/demo")
def distill(run: RunArgument) -> None:
    """Select images and train the student from the soft masks collected in a run folder; needs no site."""
    with _opened(run) as study:
        if not (held := study.ledger.stage("collect")) or not held.finished:
            raise DataError(f"{run}: soft masks are not all collected yet; go on with `consilium run` or `simulate`")
        from consilium.server.board import Board, following

        with Board(Console()) as board, following(board, study.folder.ledger):
            study.distill(study.select())
            study.export()
            study.test()
    report(run)


@app.command(
    epilog="Examples:  consilium evaluate runs/demo\n\n"
    "consilium evaluate runs/breast Dataset_BUSI_with_GT\n\n"
    "consilium evaluate predicted/ DDTI/mask --groups ddti.csv --out evaluated/"
)
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="RUN|PREDICTIONS", help="run folder, or a folder of masks")],
    truth: Annotated[
        Path | None,
        typer.Argument(
            help="folder of true masks, matched by file name; with a run folder it adds the images' own size"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="two folders of masks: where evaluation.csv and evaluation.json go")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="two folders of masks: CSV with an image and its patient or group a line")
    ] = None,
) -> None:
    """Evaluate a study's teachers, ensemble and student on its test images, or any folder of masks.

    Dice, IoU, precision, recall, distances between outlines, calibration; with intervals, tests against each teacher, worst
    site and lesion size. A run folder gets evaluation.csv and evaluation.json, and its report anew. Masks of a folder are
    soft (gray levels 0 to 255) or binary (0 and 255), and are brought to the size of the true masks.
    """
    if not (predictions / "study.toml").is_file():
        _evaluate_folders(predictions, truth, out, groups)
        return
    if out or groups:
        raise SettingsError(
            f"--out and --groups are for two folders of masks; the evaluation of a study stays in its folder ({predictions}), "
            "and the groups are those of its test images"
        )
    from consilium.common.evaluation.folders import truths_of_folder
    from consilium.server.report import write_report
    from consilium.server.report.evaluation import console_evaluation

    with _opened(predictions) as study:
        if not (study.folder.test_set / "index.csv").is_file():
            raise DataError(
                f"{predictions}: the coordinator holds no labelled test images here ({study.folder.test_set})"
            )
        native = truths_of_folder(truth) if truth else None
        study.ledger.reopen("test")
        study.test(native)
        write_report(study)
        summary = study.evaluation()
    console = Console()
    if summary:
        console.print(console_evaluation(summary))
    console.print(f"Report: {(predictions / 'report.html').resolve()}", highlight=False, soft_wrap=True)


def _evaluate_folders(predictions: Path, truth: Path | None, out: Path | None, groups: Path | None) -> None:
    from rich.progress import track

    from consilium.common.evaluation import folders

    if truth is None:
        raise SettingsError(
            f"{predictions} is not a run folder (study.toml is missing); to evaluate a folder of masks, give the folder of "
            "true masks as well"
        )
    console = Console()
    evaluated = folders.evaluate(
        predictions,
        truth,
        folders.read_groups(groups) if groups else {},
        lambda names: track(names, "measuring", console=console, transient=True),
    )
    for words, names in (
        ("predictions without a true mask, left out", evaluated.match.only_predictions),
        ("true masks without a prediction, left out and not counted as missed", evaluated.match.only_truth),
        ("images that the table of groups does not name, each a group of its own", evaluated.without_group),
    ):
        if names:
            console.print(f"[bold]{len(names)} {words}:[/] {_escaped(', '.join(names))}", highlight=False)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.csv").write_text(evaluated.table, "utf-8")
        (out / "evaluation.json").write_text(json.dumps(evaluated.summary, indent=2) + "\n", "utf-8")
    from consilium.server.report.evaluation import console_evaluation

    console.print(console_evaluation(evaluated.summary))
    if out:
        console.print(f"Table and summary: {out.resolve()}", highlight=False, soft_wrap=True)


@app.command("fine-tune", epilog="Example:  consilium fine-tune runs/demo --data clinic/ --images 50")
def fine_tune(
    student: Annotated[Path, typer.Argument(help="run folder, or a student's folder")],
    data: Annotated[Path, typer.Option(help="labelled images of the task: a folder with images/ and masks/")],
    images: Annotated[
        int | None, typer.Option(min=1, help="images to train on, the others are for the test; the study's by default")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a fine-tuned student that is there already")] = False,
) -> None:
    """Train a copy of the student on, on a few labelled images held here, and test both on the others (Algorithm 2)."""
    from rich.progress import Progress as Bar

    from consilium.server.fine_tune import fine_tune_student

    console = Console()
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("fine-tuning", total=None)
        tuned, folder = fine_tune_student(
            student,
            data,
            images=images,
            force=force,
            on_step=lambda at: bar.update(task, completed=at.step, total=at.steps),
        )
    before, after = tuned.before, tuned.after
    console.print(
        f"Fine-tuned on {len(tuned.chosen)} images. Dice on the other {after.n}: {before.mean:.1f} +- {before.std:.1f} % "
        f"before, {after.mean:.1f} +- {after.std:.1f} % after.",
        highlight=False,
        soft_wrap=True,
    )
    advice = "" if tuned.better == "after" else " It is not better than the student it was made from: use that one."
    console.print(f"The fine-tuned student: {folder.resolve()}.{advice}", highlight=False, soft_wrap=True)


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


federation_cli.add_to(app)


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
    except WaitingError as waiting:
        Console(stderr=True).print(_escaped(str(waiting)), highlight=False, soft_wrap=True)
        sys.exit(WAITS)
    except Exception as error:
        from consilium.server.disk import in_words

        told = in_words(error)
        if told is None:
            raise
        Console(stderr=True).print(f"[bold red]consilium:[/] {_escaped(str(told))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(told, SettingsError | DataError) else 1)
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped; the same command goes on from here", highlight=False)
        sys.exit(130)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
