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

from consilium.common.errors import ConsentError, ConsiliumError, DataError, SettingsError

if TYPE_CHECKING:
    from consilium.clients.check import Checked
    from consilium.clients.review import Listed
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

SettingsFile = Annotated[
    Path, typer.Argument(metavar="SITE.toml", help="The site's settings; its folder holds the site.")
]


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
    home = _load(settings)
    from consilium.clients.settings import trained_result

    result = trained_result(home)
    if result is None:
        from consilium.clients.train import train_teacher

        with _progress(home.settings.name, as_json=progress_json) as on_step:
            result = train_teacher(home, on_step)
    if progress_json:
        _say(json.dumps({"done": True, **result}))
        return
    tested = (
        f"Dice {result['dice-mean']:.1f} % on {result['test-images']} test images"
        if result["test-images"]
        else "no test images"
    )
    _say(
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
    home = _load(settings)
    from consilium.clients.train import fine_tune_teacher

    with _progress(home.settings.name, as_json=progress_json) as on_step:
        tuned = fine_tune_teacher(home, images=images, force=force, on_step=on_step)
    if progress_json:
        _say(json.dumps({"done": True, **tuned.facts()}))
        return
    use = (
        f'To use it, set teacher.folder = "{home.fine_tuned_teacher.relative_to(home.folder)}" in {settings}.'
        if tuned.better == "after"
        else "It is not better: keep the teacher as it is."
    )
    _say(
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
    home = _load(settings)
    from consilium.clients import check as checking

    with _counting(f"asking the teacher of {home.settings.name}") as on_images:
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
        _say(f"teacher.temperature = {found.best:g} is set in {settings}")
    else:
        _say(f"To use it: --write-temperature, or teacher.temperature = {found.best:g} in {settings}")


@app.command(epilog="Example: consilium-site start hospital/site.toml")
def start(
    settings: SettingsFile,
    supernode: Annotated[
        bool, typer.Option("--supernode/--no-supernode", help="Connect to the coordinator, if [connection] is given.")
    ] = True,
) -> None:
    """Start the site: its gateway and, where a connection is given, its SuperNode. Ctrl-C ends both."""
    home = _load(settings)
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
            _say(ready)
        while not ending.wait(0.5):
            if node is not None:
                node.check()
    _say(f"{name} has stopped")


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
    _say(
        f"{joined.request.name} is set up in {joined.path.parent}. It takes part once the coordinator has accepted this file; "
        "send it, nothing in it is secret:"
    )
    _say(f"  {joined.path}")
    _say("The key's fingerprint, to compare by telephone:")
    _say(f"  {joined.request.key_fingerprint}")
    for note in joined.notes:
        _say(f"To do: {note}")
    _say(
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

    findings = examine(_load(settings), image)
    _say(report(findings, as_json=as_json))
    if not is_well(findings):
        raise typer.Exit(1)


@app.command(epilog="Example: consilium-site describe hospital/site.toml")
def describe(settings: SettingsFile) -> None:
    """Show the site's teacher, how many labelled images it holds, and what its policy allows."""
    home = _load(settings)
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


StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Its name, the first digits of its digest, or a request file.")
]


@app.command(
    epilog="Examples: consilium-site review hospital/site.toml\n\nconsilium-site review hospital/site.toml breast-2026"
)
def review(
    settings: SettingsFile,
    study: Annotated[
        str,
        typer.Argument(
            metavar="[STUDY]", help="Its name, the first digits of its digest, or a request file; none: list all."
        ),
    ] = "",
) -> None:
    """See which studies were shown to this site, and of one: who asks, for what, and which images.

    Writes pictures of the shared images, and of those that look like the site's own training images: they are not answered.
    """
    home = _load(settings)
    from rich.console import Console
    from rich.table import Table

    from consilium.clients import review as reviews
    from consilium.common.identity import fingerprint

    console = Console()
    if not study:
        shown = reviews.listed(home)
        if not shown:
            console.print(f"No study was shown to {home.settings.name} yet.")
            return
        table = Table(title=f"studies shown to {home.settings.name}")
        for column in ("study", "digest", "images here", "signed by", "state"):
            table.add_column(column, overflow="fold")
        for one in shown:
            held = f"{len(one.shown.images.held())} of {len(one.shown.manifest.images)}"
            state = one.state + (f" until {one.until}" if one.until else "")
            table.add_row(one.shown.study.name, one.digest[:12], held, fingerprint(one.shown.signer), state)
        console.print(table)
        return
    one = _find(home, study)
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in reviews.in_words(home, one):
        table.add_row(*row)
    console.print(table)
    looked = reviews.look(home, one)
    _say(f"{looked.held} of {looked.images} images are here: {looked.folder / 'images.png'}")
    if looked.near:
        _say(
            f"{len(looked.near)} of them look like your own training images and are NOT answered: "
            f"{looked.folder / 'near-duplicates.png'}"
        )
    elif not looked.own:
        _say("No training images are packed here ([data]), so none of them could be told to be your own.")
    elif home.settings.policy.near_duplicate < 1:
        _say(f"None of them looks like one of your own {looked.own} training images.")


@app.command(epilog="Example: consilium-site approve hospital/site.toml breast-2026 --until 2027-03-31")
def approve(
    settings: SettingsFile,
    study: StudyName,
    until: Annotated[
        str, typer.Option(metavar="DATE", help="Last day, in UTC, like 2027-03-31; 90 days from now by default.")
    ] = "",
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Approve though not all of the study's images are here to be seen.")
    ] = False,
) -> None:
    """Consent to a study on its catalogue, until a day, signed with the site's own consent key.

    Review it first. What the policy does not allow stays forbidden.
    """
    home = _load(settings)
    from datetime import UTC, date, datetime, timedelta

    from consilium.clients.consent import DEFAULT_DAYS, ConsentBook
    from consilium.common.identity import fingerprint

    today = datetime.now(UTC).date()
    try:
        last = date.fromisoformat(until) if until else today + timedelta(days=DEFAULT_DAYS)
    except ValueError:
        raise SettingsError(f"--until is a day like 2027-03-31; got {until!r}") from None
    if last < today:
        raise SettingsError(f"--until is today or later; got {last}")
    one = _find(home, study)
    held, images = len(one.shown.images.held()), len(one.shown.manifest.images)
    if held < images and not unseen:
        raise SettingsError(
            f"{held} of the {images} images of {one.shown.study.name} are here. The coordinator sends them while it starts the "
            "study; wait for them and review them, or approve with --unseen"
        )
    book = ConsentBook(home.consents, home.settings.name)
    _, key = book.decide(one.shown.request, one.shown.signer, "approved", last)
    _say(
        f"{home.settings.name} consents to {one.shown.study.name} ({one.digest[:12]}) of {fingerprint(one.shown.signer)} until "
        f"{last}, signed with {fingerprint(key)}. It holds from now on; consilium-site revoke ends it."
    )


@app.command(epilog="Example: consilium-site revoke hospital/site.toml breast-2026")
def revoke(settings: SettingsFile, study: StudyName) -> None:
    """End the consent to a study at once, or decline one; a running gateway refuses from its next answer on.

    What has left has left: consilium-site audit says what that is.
    """
    home = _load(settings)
    from datetime import UTC, datetime

    from consilium.clients.consent import ConsentBook

    one = _find(home, study)
    book = ConsentBook(home.consents, home.settings.name)
    book.decide(one.shown.request, one.shown.signer, "revoked", datetime.now(UTC).date())
    _say(f"{home.settings.name} does not take part in {one.shown.study.name} ({one.digest[:12]}) from now on")


@app.command(epilog="Example: consilium-site answer hospital/site.toml first-west.request --out first-west.answer")
def answer(
    settings: SettingsFile,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What `consilium exchange export` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="The answer file; named like REQUEST, with .answer, here by default.")
    ] = None,
) -> None:
    """Answer a request file, for a site without a network path: soft masks, sealed and signed, in one file to carry back.

    Consent, policy, budget and audit log are those of a connected site. The exit status is 3, which is no fault, if nobody has
    consented yet. Interrupted, the same command goes on, and gives no image a second mask.
    """
    home = _load(settings)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from consilium.clients import exchange
    from consilium.clients.site import open_site

    out = out or Path(request.with_suffix(".answer").name)
    with _counting(f"{home.settings.name} answers") as on_images:
        done = exchange.answer(home, open_site(home), request, out, on_images)
    _say(
        f"{home.settings.name}: {done.masks} masks, sealed, in {out}; {done.abstained} images are not answered. Carry it back "
        "to the coordinator; nobody on the way can read it."
    )
    _say("It is signed with this key, to compare by telephone:")
    _say(f"  {done.signer}")


@app.command(epilog="Example: consilium-site audit hospital/site.toml")
def audit(
    settings: SettingsFile,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")] = False,
) -> None:
    """Check the audit log's chain and tell what left this hospital, study by study.

    The exit status is not 0 if a line was changed or taken out; the line is named.
    """
    home = _load(settings)
    from consilium.clients import audit as log

    if not home.audit_log.is_file():
        raise SettingsError(
            f"{home.audit_log} is not there: this site was never asked for anything, or its log was moved"
        )
    told = log.what_left(home.audit_log)
    if as_json:
        _say(json.dumps({"site": home.settings.name, **told}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"what left {home.settings.name}")
    for column in ("study", "from", "to", "masks", "again", "not answered", "metrics", "students", "bytes", "refusals"):
        table.add_column(column, overflow="fold")
    for digest, one in told["studies"].items():
        refusals = ", ".join(f"{count} {code}" for code, count in sorted(one["refusals"].items())) or "none"
        counts = [str(one[key]) for key in ("masks", "repeats", "abstained", "metrics", "students")]
        table.add_row(digest[:12], one["first"][:16], one["last"][:16], *counts, f"{one['bytes']:,}", refusals)
    Console().print(table)
    _say(f"The chain of {told['lines']} lines is whole. Its end, to be noted elsewhere: {told['last']}")


def _find(home: "SiteHome", study: str) -> "Listed":
    """Find a study that was shown; a request file is shown now."""
    from consilium.clients import review as reviews
    from consilium.common.exchange import is_exchange_file

    if not is_exchange_file(Path(study)):
        return reviews.find(home, study)
    from consilium.clients import exchange

    request = exchange.show(home, Path(study)).request
    return next(one for one in reviews.listed(home) if one.shown.request == request)


Rows = Iterator[tuple[str, str]]


def _teacher_rows(home: "SiteHome") -> Rows:
    from consilium.clients.teachers.settings import CheckpointSettings

    teacher = home.settings.teacher
    yield "labels", ", ".join(home.settings.labels)
    if not isinstance(teacher, CheckpointSettings):
        size = " x ".join(map(str, teacher.size)) if teacher.size else "native size"
        yield "teacher", f"{teacher.kind}, {size}, {teacher.channels} channels, {teacher.output}"
        return
    yield (
        "teacher",
        f"{teacher.network.name}, {teacher.size} x {teacher.size}, {teacher.channels} channels, {teacher.output}",
    )
    card = home.teacher / "card.json"
    if not card.is_file():
        yield "trained", f"no; run consilium-site train {home.folder / 'site.toml'}"
        return
    kept = json.loads(card.read_text("utf-8"))
    yield "trained", f"on {kept.get('train-images', '?')} images, in {home.teacher}"
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


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show how many images are done, on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _load(settings: Path) -> "SiteHome":
    from consilium.clients.settings import load_site

    return load_site(settings)


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
            _say(json.dumps({"step": at.step, "steps": at.steps, "loss": at.loss}))

    return on_step


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


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
