"""Submitting a study to a SuperLink that is running already: through Flower's own command, or a coordinator's folder."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from consilium.common.catalogue import open_catalogue
from consilium.common.errors import ConsiliumError, MachineError, SettingsError, StateError, StudyError
from consilium.common.study import RunConfig, Study
from consilium.server import labelled_set
from consilium.server.app import RUN_FOLDER_KEY
from consilium.server.board import Board, following
from consilium.server.bundle import write_bundle
from consilium.server.control import Control
from consilium.server.coordinator import attach
from consilium.server.federation import open_federation, utc_now
from consilium.server.ledger import stop_of
from consilium.server.run_folder import LOCK, RunFolder

POLL_S: Final = 3.0
STOPPING_S: Final = 60.0
SUBMISSIONS: Final = 20
BEATS_MISSED: Final = 5
RAISED: Final = "ServerApp failed with exception"
"""Flower's words for one that was not killed."""


def submit_and_follow(study: Study, root: Path, superlink: str, console: Console) -> None:
    """Submit a study and show how it goes, until it ends.

    Parameters
    ----------
    study
        Its settings are frozen in the run folder.
    root
        The run folder; holds the catalogue, and lies on the machine where the ServerApp runs.
    superlink
        A connection of Flower's ``config.toml``; empty for its default.

    Raises
    ------
    SettingsError
        If catalogue and study do not fit together.
    StudyError
        What stopped the study; `WaitingError` if it waits for people.
    """
    run = _prepared(study, root, console)
    bundle = write_bundle(run.root / "bundle", {RUN_FOLDER_KEY: ""})
    config = f"{RUN_FOLDER_KEY}={json.dumps(str(run.root))}"
    number = str(_flwr("run", str(bundle), *([superlink] if superlink else []), "--run-config", config)["run-id"])
    with Board(console) as board, following(board, run.ledger):
        while True:
            listed = _flwr("list", *([superlink] if superlink else []), "--run-id", number)["runs"][0]
            if listed["status"].startswith("finished"):
                break
            time.sleep(POLL_S)
    if stop := stop_of(run.ledger):
        raise stop
    if listed["status"] != "finished:completed":
        raise StudyError(f"the run ended as {listed['status']}; `flwr log {number}` shows why")


def submit_to_coordinator(study: Study, root: Path, folder: Path, console: Console) -> None:
    """Submit a study to the coordinator that runs on a federation's folder, on this machine, and show how it goes.

    Parameters
    ----------
    study, root, console
        As in `submit_and_follow`.
    folder
        Of the federation.

    Raises
    ------
    SettingsError
        If the study names sites that have not joined, or its catalogue is not signed by this federation.
    MachineError
        If no coordinator runs on the folder.
    StudyError
        What stopped the study; `WaitingError` if it waits for people.
    """
    federation = open_federation(folder)
    federation.require_sites(study.online, utc_now())
    run = RunFolder(root)
    signer = open_catalogue(run.catalogue).signer.hex()
    if signer != federation.signer:
        raise SettingsError(
            f"the sites take catalogues that are signed by this federation, and {run.catalogue} is signed by another key "
            f"({signer[:16]}...): build it with --key {federation.signing_key}, into a new run folder"
        )
    with attach(federation) as control:
        run = _prepared(study, root, console)
        wait_until_free(run, lambda text: console.print(text, highlight=False))
        with Board(console) as board, following(board, run.ledger):
            submit_and_wait(run, control, {RUN_FOLDER_KEY: str(run.root)})


def submit_and_wait(
    run: RunFolder,
    control: Control,
    config: RunConfig,
    *,
    virtual_sites: int = 0,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Submit a study to a SuperLink and wait for its end; interrupted, it stops the run.

    A ServerApp that ended without a word was killed: the study is submitted again, and goes on where it was. ``meanwhile`` is
    called about every second.

    Raises
    ------
    StudyError
        What stopped the study.
    """
    bundle = write_bundle(run.root / "bundle", dict.fromkeys(config, ""))
    log = run.root / "log"
    for _ in range(SUBMISSIONS):
        number = control.submit(bundle, config, virtual_sites=virtual_sites)
        try:
            status = control.wait(number, meanwhile=_watch(run, control, number, meanwhile))
        except BaseException:
            with contextlib.suppress(ConsiliumError):  # what is told is what stopped the waiting
                control.stop_run(number)
            raise
        log.mkdir(exist_ok=True)
        (log / "serverapp.log").write_text(control.run_log(number), "utf-8")
        if stop := stop_of(run.ledger):
            raise stop
        if status.completed:
            return
        if status.details.startswith(RAISED):
            raise StudyError(f"{status.details}\nIts log is in {log}")
    raise StudyError(
        f"the ServerApp ended {SUBMISSIONS} times without a word ({status.details}); is there memory enough? Its log is in {log}"
    )


def _watch(run: RunFolder, control: Control, number: int, meanwhile: Callable[[], None]) -> Callable[[], None]:
    """Also stop a run whose ServerApp has let go of the run folder: Flower itself notices in a minute that it is gone."""
    begun, missed = False, 0

    def look() -> None:
        nonlocal begun, missed
        meanwhile()
        held = run.in_use(LOCK)
        begun |= held
        missed = 0 if held or not begun else missed + 1
        if missed == BEATS_MISSED:
            with contextlib.suppress(ConsiliumError):  # it may be ending by itself just now
                control.stop_run(number)

    return look


def wait_until_free(run: RunFolder, tell: Callable[[str], None] = lambda _text: None) -> None:
    """Wait for a run that was stopped just now: its ServerApp hears of it with its next heartbeat, within half a minute."""
    deadline = time.monotonic() + STOPPING_S
    told = False
    while True:
        try:
            with run.locked():
                return
        except StateError:
            if time.monotonic() > deadline:
                raise
        if not told:
            tell("waiting for the former run of this study to end")
            told = True
        time.sleep(0.5)


def _prepared(study: Study, root: Path, console: Console) -> RunFolder:
    """The run folder with the study's settings frozen in it, once they fit its catalogue."""
    run = RunFolder(root)
    catalogue = open_catalogue(run.catalogue)
    manifest = catalogue.manifest
    if (manifest.size, manifest.channels) != (study.image.size, study.image.channels):
        raise SettingsError(
            f"the catalogue in {run.catalogue} holds images of {manifest.size} pixels and {manifest.channels} channels; the "
            f"study asks for {study.image.size} and {study.image.channels}: build the catalogue again, or change the study"
        )
    labelled_set.require(run, study, catalogue)
    run.create(study)
    if not run.sealing_offer.exists():
        console.print(
            f"{run.catalogue} offers no key to seal soft masks to: sites whose policy asks for one refuse, the others' masks "
            f"travel in clear. `consilium catalogue seal {run.root} --key KEY` makes one.",
            highlight=False,
            soft_wrap=True,
        )
    return run


def _flwr(*arguments: str) -> dict[str, Any]:
    """Run a command of Flower's, and read the JSON it prints."""
    command = [sys.executable, "-P", "-m", "flwr.cli.app", *arguments, "--format", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told: dict[str, Any] = json.loads(ended.stdout[ended.stdout.index("{") :])
    except ValueError:
        raise MachineError(f"`flwr {arguments[0]}` failed: {(ended.stderr or ended.stdout).strip()[-600:]}") from None
    if not told.get("success", True):
        raise MachineError(f"`flwr {arguments[0]}` failed: {told.get('error-message', told)}")
    return told
