"""The command ``consilium-site``: join, train a site's teacher, start the site, show what it is and how it is."""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from consilium.clients import consent_cli
from consilium.clients.command_line import SettingsFile, counting, load, say
from consilium.common.errors import ConsentError, ConsiliumError, DataError, SettingsError

if TYPE_CHECKING:
    from consilium.clients.check import Checked
    from consilium.clients.settings import SiteHome
    from consilium.clients.supernode import SuperNode
    from consilium.common.training.loop import Progress

# Settings, torch and rich are imported where they are used: --help must not wait for them.

_JSON_EVERY_S: Final = 0.5
_INTERRUPTED: Final = 130
_WAITS: Final = 3

app = typer.Typer(
    name="consilium-site",
    help="A hospital's side of Consilium: its teacher and its labelled images stay here; soft masks of shared images go out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command(epilog="Example: consilium-site train hospital/site.toml")
def train(
    settings: SettingsFile,
    progress_json: Annotated[
        bool, typer.Option("--progress-json", help="One JSON line every half second on standard output.")
    ] = False,
) -> None:
    """Train the site's teacher on its labelled images.

    Goes on where an interrupted training stopped; a teacher that is trained already is left alone.
    """
    home = load(settings)
    from consilium.clients.settings import trained_result

    result = trained_result(home)
    if result is None:
        from consilium.clients.train import train_teacher

        with _progress(home.settings.name, as_json=progress_json) as on_step:
            result = train_teacher(home, on_step)
    if progress_json:
        say(json.dumps({"done": True, **result}))
        return
    tested = (
        f"Dice {result['dice-mean']:.1f} % on {result['test-images']} test images"
        if result["test-images"]
        else "no test images"
    )
    say(
        f"{home.settings.name}: the teacher is trained on {result['train-images']} images; {tested}. It is in {home.teacher}"
    )


@app.command("fine-tune", epilog="Example: consilium-site fine-tune hospital/site.toml --images 50")
def fine_tune(
    settings: SettingsFile,
    images: Annotated[
        int | None, typer.Option(min=0, help="Labelled images to train on, 0 for all; fine-tune.images by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a fine-tuned teacher that is there already.")] = False,
    progress_json: Annotated[
        bool, typer.Option("--progress-json", help="One JSON line every half second on standard output.")
    ] = False,
) -> None:
    """Train a copy of the site's teacher on, on the site's own labelled images, and test both.

    The teacher itself stays as it is. The copy lies beside it; name its folder as teacher.folder to use it.
    """
    home = load(settings)
    from consilium.clients.train import fine_tune_teacher

    with _progress(home.settings.name, as_json=progress_json) as on_step:
        tuned = fine_tune_teacher(home, images=images, force=force, on_step=on_step)
    if progress_json:
        say(json.dumps({"done": True, **tuned.facts()}))
        return
    use = (
        f'To use it, set teacher.folder = "{home.fine_tuned_teacher.relative_to(home.folder)}" in {settings}.'
        if tuned.better == "after"
        else "It is not better: keep the teacher as it is."
    )
    say(
        f"{home.settings.name}: a copy of the teacher was fine-tuned on {len(tuned.chosen)} images. Dice on "
        f"{tuned.after.n} test images: {tuned.before.mean:.1f} % before, {tuned.after.mean:.1f} % after. It is in "
        f"{home.fine_tuned_teacher}\n{use}"
    )


@app.command(epilog="Example: consilium-site check hospital/site.toml")
def check(
    settings: SettingsFile,
    write_temperature: Annotated[
        bool,
        typer.Option("--write-temperature", help="Set teacher.temperature in SITE.toml, if a better one is found."),
    ] = False,
) -> None:
    """Test the site's teacher on its own labelled test images, and name what is wrong with its settings.

    Tells Dice, false alarms and misses, and the temperature that makes its probabilities true. A picture and the teacher card
    lie in the folder check/ afterwards. The exit status is 2 where something has to be mended.
    """
    home = load(settings)
    from consilium.clients import check as checking

    with counting(f"asking the teacher of {home.settings.name}") as on_images:
        checked = checking.check_teacher(home, on_images)
    _show_checked(home, checked)
    for finding in checked.findings:
        sys.stderr.write(f"\nWRONG ({finding.name}): {finding.seen}\n  to mend it: {finding.remedy}\n")
    if checked.findings:
        raise typer.Exit(2)
    found = checked.calibrated
    if found is None or not found.advised:
        return
    if write_temperature:
        checking.write_temperature(settings, found.best)
        say(f"teacher.temperature = {found.best:g} is set in {settings}")
    else:
        say(f"To use it: --write-temperature, or teacher.temperature = {found.best:g} in {settings}")


@app.command(epilog="Example: consilium-site adopt hospital/site.toml breast-2026")
def adopt(
    settings: SettingsFile,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or the first digits of its digest.")],
) -> None:
    """Answer with a study's student, as it was fine-tuned here, in place of the teacher: for a study that follows.

    Names it in SITE.toml, keeps a copy of the file as it was, and tests it like `check`: a study weighs the site by that.
    """
    load(settings)
    from consilium.clients.adopt import adopt as name_as_teacher

    made = name_as_teacher(settings, study)
    say(
        f"The student of {made.study}, fine-tuned here: Dice {made.before:.1f} % before, {made.after:.1f} % after, on the test "
        f"images of this site. {settings} names it as the teacher"
        + (f"; {made.former.name} is the file as it was." if made.former else " already.")
    )
    check(settings, write_temperature=False)
    say("It answers from the next start of the site on (consilium-site start).")


@app.command(epilog="Example: consilium-site start hospital/site.toml")
def start(
    settings: SettingsFile,
    supernode: Annotated[
        bool, typer.Option("--supernode/--no-supernode", help="Connect to the coordinator, if [connection] is given.")
    ] = True,
) -> None:
    """Start the site: its gateway and, where a connection is given, its SuperNode. Ctrl-C ends both."""
    home = load(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    ending = _end_on_signals()
    from consilium.clients.gateway import serve
    from consilium.clients.site import open_site

    name, mib = home.settings.name, home.settings.policy.max_message_mib
    with ExitStack() as running:
        site = open_site(home)
        gateway = running.enter_context(serve(site, home.gateway_address, max_message_mib=mib))
        running.callback(site.close)
        ready = f"{name} is ready: gateway at {gateway.address}"
        node = (
            running.enter_context(_supernode(home, gateway.address)) if supernode and home.settings.connection else None
        )
        if node is not None and home.settings.connection is not None:
            ready += f", connected to {home.settings.connection.superlink}"
            while not ending.is_set() and not node.connected():
                node.check()
                ending.wait(0.2)
        if not ending.is_set():
            say(ready)
        while not ending.wait(0.5):
            if node is not None:
                node.check()
    say(f"{name} has stopped")


@app.command(epilog="Example: consilium-site join north.tar.gz --folder north")
def join(
    kit: Annotated[Path, typer.Argument(metavar="KIT.tar.gz", help="What the coordinator sent.")],
    folder: Annotated[Path, typer.Option(help="The site's home; made if need be, for this user alone.")],
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a new key, for a renewal; the former is kept beside it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace settings or an authority that are there; the former are kept.")
    ] = False,
) -> None:
    """Join a federation: unpack a kit, make this site's key, and write the file to send back.

    The key is made here and never leaves. Done again with the same kit, it keeps the key.
    """
    from consilium.clients.join import join as join_with
    from consilium.clients.join import read_kit

    joined = join_with(read_kit(kit), folder, datetime.now(UTC), new_key=new_key, force=force)
    say(
        f"{joined.request.name} is set up in {joined.path.parent}. It takes part once the coordinator has accepted this file; "
        "send it, nothing in it is secret:"
    )
    say(f"  {joined.path}")
    say("The key's fingerprint, to compare by telephone:")
    say(f"  {joined.request.key_fingerprint}")
    for note in joined.notes:
        say(f"To do: {note}")
    say(
        f"Then look through site.toml and policy.toml, which says what may leave, in {joined.path.parent}; README.md there says "
        "what comes next."
    )


@app.command(epilog="Examples: consilium-site doctor north/site.toml;  consilium-site doctor north/site.toml --json")
def doctor(
    settings: SettingsFile,
    image: Annotated[
        Path | None, typer.Option(help="An image to try the teacher on, in place of the built-in one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Look whether all is well at this site: a line each, ok or what to do. The exit status is 1 if something is wrong."""
    from consilium.clients.doctor import examine
    from consilium.common.checks import is_well, report

    findings = examine(load(settings), image)
    say(report(findings, as_json=as_json))
    if not is_well(findings):
        raise typer.Exit(1)


@app.command(epilog="Example: consilium-site describe hospital/site.toml")
def describe(settings: SettingsFile) -> None:
    """Show the site's teacher, how many labelled images it holds, and what its policy allows."""
    home = load(settings)
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"site {home.settings.name}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for part in (_teacher_rows, _data_rows, _policy_rows):
        for row in part(home):
            table.add_row(*row)
        table.add_section()
    Console().print(table)


Rows = Iterator[tuple[str, str]]


def _teacher_rows(home: "SiteHome") -> Rows:
    from consilium.clients.teachers.settings import CheckpointSettings

    teacher = home.settings.teacher
    yield "labels", ", ".join(home.settings.labels)
    if not isinstance(teacher, CheckpointSettings):
        size = " x ".join(map(str, teacher.size)) if teacher.size else "native size"
        yield "teacher", f"{teacher.kind}, {size}, {teacher.channels} channels, {teacher.output}"
        return
    card = home.teacher / "card.json"
    kept = json.loads(card.read_text("utf-8")) if card.is_file() else {}
    network = kept.get("architecture", {}).get("name", teacher.network.name)  # a study's student brings its own
    yield "teacher", f"{network}, {teacher.size} x {teacher.size}, {teacher.channels} channels, {teacher.output}"
    if not kept:
        yield "trained", f"no; run consilium-site train {home.folder / 'site.toml'}"
        return
    count = kept.get("train-images")  # a student that a study left here has none of its own
    yield "trained", f"on {count} images, in {home.teacher}" if count else f"elsewhere; it is in {home.teacher}"
    if kept.get("test-images"):
        yield "Dice", f"{kept['dice-mean']:.2f} +- {kept['dice-std']:.2f} % on {kept['test-images']} test images"


def _data_rows(home: "SiteHome") -> Rows:
    from consilium.common.datasets import labelled

    for name, folder in (("training images", home.train_set), ("test images", home.test_set)):
        packed = labelled.open_packed(folder) if labelled.is_packed(folder) else None
        if packed is not None:
            yield name, f"{len(packed)}, of shape {'x'.join(map(str, packed.images.shape[1:]))}"
        else:
            yield name, f"not packed yet; to come from {home.source}" if home.source else f"none in {folder}"


def _policy_rows(home: "SiteHome") -> Rows:
    policy = home.settings.policy
    yield "allowed", ", ".join(policy.actions) or "nothing"
    yield "studies", ", ".join(policy.studies) or "any"
    yield "labels", ", ".join(policy.labels) or "all that the teacher knows"
    yield "levels of a mask", str(policy.levels)
    yield "images of a catalogue", f"at most {policy.max_images}"
    yield "masks in all", f"at most {policy.mask_budget}"
    yield "images behind a metric", f"at least {policy.min_images}"
    yield (
        "not answered",
        f"images that correlate with one of the training images above {policy.near_duplicate}"
        if policy.near_duplicate < 1
        else "no image: near duplicates of the training images ARE ANSWERED",
    )
    yield "trusted signers", "\n".join(policy.trusted_signers) or "none named: anyone may show a study"
    if policy.auto_approve:
        yield "consent", "EVERY STUDY IS APPROVED (auto-approve; for simulations only)"
    else:
        yield "consent", "a person's, to each study: consilium-site review"


def _show_checked(home: "SiteHome", checked: "Checked") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"teacher of {home.settings.name}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in (*_teacher_rows(home), *_checked_rows(checked)):
        table.add_row(*row)
    table.add_row("kept in", str(home.checks))
    Console().print(table)


def _checked_rows(checked: "Checked") -> Rows:
    yield "test images", str(checked.images)
    if checked.dice is None or checked.iou is None:
        return
    yield "Dice here", f"{checked.dice.mean:.1f} +- {checked.dice.std:.1f} %"
    yield "IoU", f"{checked.iou.mean:.1f} +- {checked.iou.std:.1f} %"
    yield "misses", f"{checked.misses} of {checked.shown} targets are not touched at all"
    yield (
        "false alarms",
        f"in {checked.alarms} of {checked.empty} without a target" if checked.empty else "no image to tell",
    )
    found = checked.calibrated
    if found is None or checked.findings:
        yield "calibration", "to be looked at when the teacher is right" if checked.findings else "none to tell"
        return
    yield "calibration error", f"{found.ece:.4f} at temperature {found.temperature:g}"
    advice = "" if found.advised else "; it is set" if found.is_set else ": no better on other images, leave it"
    yield "likeliest temperature", f"{found.best:g}, calibration error {found.ece_best:.4f}{advice}"


def _supernode(home: "SiteHome", gateway_address: str) -> "SuperNode":
    from consilium.clients.supernode import SuperNode, SuperNodeSettings

    connection = home.settings.connection
    if connection is None:
        raise SettingsError("a SuperNode needs a [connection] in the site's settings")
    files = {"connection.ca": home.folder / connection.ca, "connection.node-key": home.folder / connection.node_key}
    for what, path in files.items():
        if not path.is_file():
            raise SettingsError(
                f"{what}: there is no file {path}; put there what the coordinator sent, or mend the path"
            )
    return SuperNode(
        SuperNodeSettings(
            superlink_address=connection.superlink,
            ca_certificate=files["connection.ca"],
            node_key=files["connection.node-key"],
            node_config={"gateway": gateway_address},
            home=home.folder / "flower",
            log_folder=home.folder,
        ),
        name=f"{home.settings.name}'s",
    )


def _end_on_signals() -> threading.Event:
    """Turn SIGTERM and SIGINT into an event, so that everything is closed in order."""
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ending.set())
    return ending


OnStep = Callable[["Progress"], None]


@contextmanager
def _progress(name: str, *, as_json: bool) -> Iterator[OnStep | None]:
    """Show a training's progress: as JSON lines, as a bar on a terminal, or not at all."""
    if as_json:
        yield _json_lines()
        return
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"training the teacher of {name}", total=None)

        def on_step(at: "Progress") -> None:
            loss = "" if at.loss is None else f", loss {at.loss:.4f}"
            bar.update(task, completed=at.step, total=at.steps, description=f"training the teacher of {name}{loss}")

        yield on_step


def _json_lines() -> OnStep:
    last = float("-inf")

    def on_step(at: "Progress") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _JSON_EVERY_S or at.step == at.steps:
            last = now
            say(json.dumps({"step": at.step, "steps": at.steps, "loss": at.loss}))

    return on_step


consent_cli.add_to(app)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command; an error of this package is told in words, without a traceback.

    The exit status is 2 where settings, command line or data have to be mended, 3 where consent is wanting, 1 for any other
    error.
    """
    try:
        return app(args=arguments)
    except ConsentError as waiting:
        sys.stderr.write(f"{waiting}\n")
        sys.exit(_WAITS)
    except (SettingsError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except ConsiliumError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from the last checkpoint\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
