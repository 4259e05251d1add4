"""``consilium provision``, ``federation``, ``coordinator`` and ``doctor``: what whoever runs a federation types."""

import json
import logging
import signal
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.errors import ConsiliumError, MachineError

if TYPE_CHECKING:
    from consilium.server.federation import Federation

federation_app = typer.Typer(
    help="Who takes part: provision a federation, and add, accept, renew and revoke its sites.", no_args_is_help=True
)
coordinator_app = typer.Typer(help="The running federation.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="the federation's folder")]
NameArgument = Annotated[str, typer.Argument(metavar="SITE", help="the site's name")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.command("provision", epilog="Example:  consilium provision federation.toml --out federation/")(provision)
    app.command("doctor", epilog="Examples:  consilium doctor;  consilium doctor federation/ --json")(doctor)
    app.add_typer(federation_app, name="federation")
    app.add_typer(coordinator_app, name="coordinator")


@federation_app.command(epilog="Example:  consilium federation provision federation.toml --out federation/")
def provision(
    settings: Annotated[
        Path,
        typer.Argument(
            metavar="FEDERATION.toml", help="settings; docs/deploy.md shows the least, configs/federation.toml all"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder to make; it holds private keys, back it up")],
    force: Annotated[
        bool,
        typer.Option("--force", help="put a federation that is there aside and make a new one; all sites join again"),
    ] = False,
) -> None:
    """Make certificates, the signing key, and a kit for every site of a settings file."""
    from consilium.server import provision as making
    from consilium.server.federation import utc_now

    made = making.provision(settings, out, utc_now(), force=force)
    console = Console()
    _tell(
        console,
        f"{made.settings.name} is provisioned in {made.folder}; it holds private keys: keep it, and back it up.",
    )
    _facts(console, made)
    for record in made.records():
        _tell_kit(console, made.kit(record.name), record.name)
    if not made.settings.sites:
        _tell(console, f"No site yet; add one with: consilium federation add {out} NAME")
    _tell(console, f"Then: consilium coordinator start {out}")


@federation_app.command(epilog="Example:  consilium federation show federation/")
def show(
    folder: FolderArgument, as_json: Annotated[bool, typer.Option("--json", help="as JSON, for programs")] = False
) -> None:
    """Show certificates, sites, fingerprints, when they run out, and who is connected."""
    from consilium.server.federation import open_federation, utc_now

    federation, now, console = open_federation(folder), utc_now(), Console()
    online = _online(folder)
    if as_json:
        sites = [
            {
                "name": record.name,
                "state": record.state(now),
                "takes_part": record.takes_part(now),
                "connected": None if online is None else record.name in online,
                "key": record.key_fingerprint,
                "key_until": record.key_until and record.key_until.isoformat(),
                "invited_until": record.invited_until and record.invited_until.isoformat(),
                "labels": list(record.labels),
            }
            for record in federation.records()
        ]
        told = {
            "name": federation.settings.name,
            "coordinator_runs": online is not None,
            "certificate_until": federation.server_facts().ends.isoformat(),
            "authority_until": federation.authority_facts().ends.isoformat(),
            "authority": federation.authority_facts().fingerprint,
            "signer": federation.signer,
            "sites": sites,
        }
        typer.echo(json.dumps(told, indent=2))
        return
    _facts(console, federation)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Site", "State", "Until", "Connected", "Labels", "Key"):
        table.add_column(column, overflow="fold", no_wrap=column in ("Site", "Until"))
    for record in federation.records():
        until = record.key_until or record.invited_until
        connected = "—" if online is None else "yes" if record.name in online else "no"
        row = (
            record.name,
            record.state(now),
            f"{until:%Y-%m-%d}" if until else "",
            connected,
            ", ".join(record.labels),
            record.key_fingerprint,
        )
        table.add_row(*map(Text, row))
    console.print(table)
    if online is None:
        _tell(console, f"The coordinator does not run; start it with: consilium coordinator start {folder}")


@federation_app.command(epilog="Example:  consilium federation add federation/ west --labels lesion")
def add(
    folder: FolderArgument,
    name: NameArgument,
    labels: Annotated[str, typer.Option(help="what its masks show, with commas; the federation's by default")] = "",
) -> None:
    """Invite a further site, or one that was revoked again: makes its kit."""
    from consilium.common.settings import split_commas
    from consilium.server.federation import open_federation, utc_now

    given = split_commas(labels)
    kit = open_federation(folder).add(name, given if isinstance(given, list) else [], utc_now())
    _tell_kit(Console(), kit, name)


@federation_app.command(epilog="Example:  consilium federation accept federation/ north.join")
def accept(
    folder: FolderArgument,
    requests: Annotated[list[Path], typer.Argument(metavar="NAME.join...", help="what sites sent back")],
) -> None:
    """Check the join files of sites, and let their keys in; a running coordinator does so within seconds."""
    from consilium.common.joining import read_join
    from consilium.server.federation import open_federation, utc_now

    federation, console, refused = open_federation(folder), Console(), []
    for path in requests:
        try:
            accepted = federation.accept(read_join(path), utc_now())
        except ConsiliumError as error:
            if len(requests) == 1:
                raise
            refused.append(f"{path}: {error}")
            continue
        record = accepted.record
        said = "is accepted" if accepted.is_new else "was accepted before"
        _tell(console, f"{record.name} {said}, until {record.key_until:%Y-%m-%d}. Its key, to compare by telephone:")
        _tell(console, f"  {record.key_fingerprint}")
    if refused:
        for line in refused:
            _tell(Console(stderr=True), line)
        raise typer.Exit(1)


@federation_app.command(
    epilog="Examples:  consilium federation renew federation/          the SuperLink's key and certificate\n\n"
    "consilium federation renew federation/ north    a kit with which north changes its key"
)
def renew(
    folder: FolderArgument,
    name: Annotated[
        str, typer.Argument(metavar="[SITE]", help="the site; without it, the SuperLink's certificate")
    ] = "",
) -> None:
    """Renew the SuperLink's key and certificate, or a site's key.

    Names and addresses are read from FOLDER/federation.toml again. A site gets a new kit and joins with --new-key; its present
    key is good until the new one is accepted.
    """
    from consilium.server.federation import open_federation, utc_now

    federation, console = open_federation(folder), Console()
    if name:
        _tell_kit(console, federation.renew_site(name, utc_now()), name, "--new-key")
        return
    facts = federation.renew_server(utc_now())
    _tell(console, f"A new certificate for {', '.join(facts.names)}, valid until {facts.ends:%Y-%m-%d}.")
    _tell(console, "A coordinator that runs takes it up within seconds; the sites have nothing to do.")


@federation_app.command(epilog="Example:  consilium federation revoke federation/ north")
def revoke(folder: FolderArgument, name: NameArgument) -> None:
    """Let a site in no more. Its key never comes back; `add` invites the site again, with a new key."""
    from consilium.server.federation import open_federation, utc_now

    record = open_federation(folder).revoke(name, utc_now())
    _tell(Console(), f"{record.name} is {record.state(utc_now())}; a running coordinator drops it within seconds.")


@coordinator_app.command(epilog="Example:  consilium coordinator start federation/")
def start(folder: FolderArgument) -> None:
    """Run the federation's SuperLink until Ctrl-C or SIGTERM; it is started again if it dies.

    With TLS, node authentication, a database, no installation of dependencies and no telemetry. Sites accepted or revoked
    meanwhile are taken up within seconds. Studies are submitted with `consilium run STUDY.toml --coordinator FOLDER`.
    """
    from consilium.server.coordinator import serve
    from consilium.server.federation import open_federation, utc_now

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    federation = open_federation(folder)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ending.set())
    console = Console()
    serve(federation, ending, lambda line: _tell(console, f"{utc_now().astimezone():%H:%M:%S}  {line}"), utc_now)


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="the federation's folder; without it, this machine alone")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, for programs")] = False,
) -> None:
    """Look whether all is well here: a line each, ok or what to do. The exit status is 1 if something is wrong."""
    from consilium.common.checks import is_well, report
    from consilium.server.doctor import examine

    findings = examine(folder)
    typer.echo(report(findings, as_json=as_json))
    if not is_well(findings):
        raise typer.Exit(1)


def _online(folder: Path) -> set[str] | None:
    """Names of the connected sites; None if no coordinator runs."""
    from consilium.server.coordinator import attach
    from consilium.server.federation import open_federation

    try:
        with attach(open_federation(folder)) as control:
            return {node.name for node in control.nodes() if node.online}
    except MachineError:
        return None


def _facts(console: Console, federation: "Federation") -> None:
    from consilium.server.federation import signer_fingerprint, utc_now

    authority, server, now = federation.authority_facts(), federation.server_facts(), utc_now()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    address = federation.settings.superlink.address
    for label, text in (
        ("sites connect to", address),
        ("certificate", f"valid until {_until(server.ends, server.days_left(now))}; {', '.join(server.names)}"),
        ("authority", f"valid until {_until(authority.ends, authority.days_left(now))}; {authority.fingerprint}"),
        ("signing key", f"{federation.signing_key}; {signer_fingerprint(federation)}"),
    ):
        table.add_row(label, Text(text))
    console.print(table)


def _until(ends: datetime, days: int) -> str:
    return f"{ends:%Y-%m-%d} ({days} days)" if days >= 0 else f"{ends:%Y-%m-%d}, PAST"


def _tell_kit(console: Console, kit: Path, name: str, option: str = "") -> None:
    _tell(console, f"Send {kit} to {name}, and to nobody else: it holds an invitation that is good once. There:")
    _tell(console, f"  consilium-site join {kit.name} --folder {name}{' ' * bool(option)}{option}")


def _tell(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True, highlight=False)
