"""Submitting a study to a SuperLink that is running already, through Flower's own command."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from consilium.common.catalogue import open_catalogue
from consilium.common.errors import MachineError, SettingsError, StudyError
from consilium.common.study import Study
from consilium.server.app import RUN_FOLDER_KEY
from consilium.server.board import Board, following
from consilium.server.bundle import write_bundle
from consilium.server.ledger import failure_of
from consilium.server.run_folder import RunFolder

POLL_S: Final = 3.0


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
        What stopped the study.
    """
    run = RunFolder(root)
    manifest = open_catalogue(run.catalogue).manifest
    if (manifest.size, manifest.channels) != (study.image.size, study.image.channels):
        raise SettingsError(
            f"the catalogue in {run.catalogue} holds images of {manifest.size} pixels and {manifest.channels} channels; the "
            f"study asks for {study.image.size} and {study.image.channels}: build the catalogue again, or change the study"
        )
    run.create(study)
    bundle = write_bundle(run.root / "bundle", {RUN_FOLDER_KEY: ""})
    config = f"{RUN_FOLDER_KEY}={json.dumps(str(run.root))}"
    number = str(_flwr("run", str(bundle), *([superlink] if superlink else []), "--run-config", config)["run-id"])
    with Board(console) as board, following(board, run.ledger):
        while True:
            listed = _flwr("list", *([superlink] if superlink else []), "--run-id", number)["runs"][0]
            if listed["status"].startswith("finished"):
                break
            time.sleep(POLL_S)
    if listed["status"] != "finished:completed":
        raise StudyError(
            failure_of(run.ledger) or f"the run ended as {listed['status']}; `flwr log {number}` shows why"
        )


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
