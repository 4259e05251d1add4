"""A federation on one machine: local teachers, a SuperLink, SuperNodes and gateways, one student.

The sites are what they are in a hospital: processes started by command, each in a home of its own, which this module
never imports. Only where their data comes from is simulated.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import tomli_w
from flwr.app import Context, RecordDict
from rich.console import Console

from consilium.common.errors import MachineError
from consilium.common.identity import make_node_key, read_node_public_key
from consilium.common.processes import Child, ProcessGroup
from consilium.common.settings import read_toml
from consilium.common.study import RunConfig
from consilium.server.app import RUN_FOLDER_KEY, main
from consilium.server.board import STAGE_LABELS, Board, following, measured_memory
from consilium.server.inline import in_memory_grid
from consilium.server.ledger import Ledger, stop_of
from consilium.server.run_folder import SIMULATION_LOCK, RunFolder
from consilium.server.simulation import Engine, SimulatedStudy, prepare, site_home
from consilium.server.submit import submit_and_wait, wait_until_free
from consilium.server.superlink import SuperLink

CLIENT_APP: Final = "consilium.clients.app"
SITE_COMMAND: Final = (sys.executable, "-P", "-m", "consilium.clients.cli")
DATA_LABEL: Final = "images are read, packed and signed"
NOBODY_IS_ASKED: Final = (
    "[bold]NOBODY IS ASKED:[/] the sites of a simulation approve every study by themselves (policy.auto-approve). At a hospital "
    "a person does (consilium-site review, approve)."
)
START_LABEL: Final = STAGE_LABELS["start"]


def simulate(settings: SimulatedStudy, root: Path, engine: Engine, console: Console) -> dict[str, Any]:
    """Run a whole study on this machine; gives its metrics, as in ``metrics.json``.

    Started again on the same folder it goes on where it was.

    Raises
    ------
    ConsiliumError
        Whatever stopped it, with what to do; no process is left behind.
    """
    run = RunFolder(root)
    run.create(settings.study)
    start = {"processes": _with_processes, "inline": _inline, "ray": _with_ray}[engine]
    with run.locked(SIMULATION_LOCK), Board(console) as board, measured_memory() as memory:
        console.print(NOBODY_IS_ASKED, highlight=False, soft_wrap=True)
        began = time.monotonic()
        board.show(DATA_LABEL, 0, 1)
        prepare(run, settings)
        board.show(DATA_LABEL, 1, 1)
        data_s = time.monotonic() - began
        _train_teachers(run, settings, board)
        teachers_s = time.monotonic() - began - data_s
        with following(board, run.ledger):
            start(run, settings, board)
    metrics: dict[str, Any] = json.loads(run.metrics.read_text("utf-8"))
    metrics["peak_rss_mb"] = round(memory.peak_mb, 1)
    metrics["seconds"] = {"data": round(data_s, 3), "teachers": round(teachers_s, 3), **metrics["seconds"]}
    run.metrics.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    return metrics


def _train_teachers(run: RunFolder, settings: SimulatedStudy, board: Board) -> None:
    """Let every site train its teacher by its own command, a few side by side."""
    waiting = list(settings.sites)
    running: dict[str, tuple[Child, int]] = {}
    with ProcessGroup() as group:
        while waiting or running:
            while waiting and len(running) < settings.simulation.training_at_a_time:
                name = waiting.pop(0)
                home = site_home(run, name)
                log = home / "log" / "train.log"
                told = log.stat().st_size if log.exists() else 0
                command = [*SITE_COMMAND, "train", str(home / "site.toml"), "--progress-json"]
                running[name] = (Child(f"the training of {name}'s teacher", command, log), told)
                group.add(running[name][0])
                board.show(_training_label(settings, name), 0, 1)
            time.sleep(0.3)
            for name, (child, told) in list(running.items()):
                status = child.exit_status()
                with child.log.open("rb") as log_file:
                    log_file.seek(told)
                    last = [line for line in log_file.read().splitlines() if line.startswith(b'{"step"')][-1:]
                if status is None and last:
                    heard = json.loads(last[0])
                    note = "" if heard.get("loss") is None else f"loss {heard['loss']:.3f}"
                    steps = heard["steps"]
                    board.show(_training_label(settings, name), min(heard["step"], steps - 1), steps, note)
                if status is not None:
                    del running[name]
                    if status:
                        raise MachineError(f"{child.name} failed; its log {child.log} ends:\n{child.tail()}")
                    board.show(_training_label(settings, name), 1, 1)


def _training_label(settings: SimulatedStudy, name: str) -> str:
    return f"{name} trains its teacher ({settings.simulation.sites[name].network.name})"


def _with_processes(run: RunFolder, settings: SimulatedStudy, board: Board) -> None:
    """Flower's deployment engine: a SuperLink, and a SuperNode and gateway for every site, with TLS and node keys."""
    count = len(settings.online) + 1
    board.show(START_LABEL, 0, count)
    began = time.monotonic()
    with SuperLink.start(run.root / "superlink", log_folder=run.root / "log") as link, ProcessGroup() as sites:
        board.show(START_LABEL, 1, count)
        link.control.stop_unfinished()  # of a former start that was killed: it would go on beside this one
        commands: dict[str, list[str]] = {}
        for started, name in enumerate(settings.online, 2):
            home = site_home(run, name)
            key = home / "node-key"
            if not key.exists():
                make_node_key(key)
            link.control.register(read_node_public_key(key.with_name(f"{key.name}.pub")), name)
            document = read_toml(home / "site.toml") | {
                "connection": {
                    "superlink": link.local_address,
                    "ca": str(link.certificates.authority),
                    "node-key": str(key),
                }
            }
            (home / "site.toml").write_text(tomli_w.dumps(document), "utf-8")
            commands[f"site {name}"] = [*SITE_COMMAND, "start", str(home / "site.toml")]
            sites.add(Child(f"site {name}", commands[f"site {name}"], home / "log" / "site.log"))
            board.show(START_LABEL, started, count)
        link.control.wait_for_nodes(set(settings.online), settings.collect.connect_s)
        _with_ledger(run, lambda ledger: ledger.finish("start", time.monotonic() - began))

        def revive() -> None:
            link.revive()
            for child in sites.children:
                if child.exit_status() is not None:
                    child.stop()
                    sites.discard(child)
                    sites.add(Child(child.name, commands[child.name], child.log))

        try:
            wait_until_free(run)
            submit_and_wait(run, link.control, {RUN_FOLDER_KEY: str(run.root)}, meanwhile=revive)
        finally:
            link.retire()
            for child in sites.children:
                child.terminate()  # all at once; leaving the block waits for them


def _with_ray(run: RunFolder, settings: SimulatedStudy, board: Board) -> None:
    """Flower's simulation engine: as many virtual sites as the study names, on Ray, in a process for every core."""
    board.show(START_LABEL, 0, 1)
    began = time.monotonic()
    with SuperLink.start(run.root / "superlink-ray", log_folder=run.root / "log", virtual=True) as link:
        link.control.stop_unfinished()
        _with_ledger(run, lambda ledger: ledger.finish("start", time.monotonic() - began))
        wait_until_free(run)
        submit_and_wait(
            run,
            link.control,
            _site_config(run, settings),
            virtual_sites=len(settings.sites),
            meanwhile=link.revive,
        )


def _inline(run: RunFolder, settings: SimulatedStudy, board: Board) -> None:
    """The same apps in this process, over an in-memory grid."""
    del board
    config = _site_config(run, settings)
    app = importlib.import_module(CLIENT_APP).app  # by name, as Flower loads it: this side never imports the other
    with in_memory_grid(app, config, settings.sites) as grid:
        main(grid, Context(1, 1, {}, RecordDict(), {RUN_FOLDER_KEY: str(run.root)}))
    if stop := stop_of(run.ledger):
        raise stop


def _site_config(run: RunFolder, settings: SimulatedStudy) -> RunConfig:
    return {
        RUN_FOLDER_KEY: str(run.root),
        "sites": ",".join(settings.sites),
        "sites-folder": str(run.root / "sites"),
    }


def _with_ledger(run: RunFolder, act: Callable[[Ledger], None]) -> None:
    ledger = Ledger.open(run.ledger)
    try:
        act(ledger)
    finally:
        ledger.close()
