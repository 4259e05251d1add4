"""A federation on one machine: local teachers, a SuperLink, SuperNodes and gateways, one student.

The sites are what they are in a hospital: processes started by command, each in a home of its own, which this module
never imports. Only where their data comes from is simulated.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import tomli_w
from flwr.app import Context, RecordDict
from rich.console import Console

from consilium.common.errors import MachineError
from consilium.common.files import write_text
from consilium.common.identity.node_keys import make_node_key, read_node_public_key
from consilium.common.identity.signing import signing_key
from consilium.common.processes import Child, ProcessGroup
from consilium.common.settings import read_toml
from consilium.common.study import RunConfig
from consilium.server import follow_up
from consilium.server.app import RUN_FOLDER_KEY, main
from consilium.server.board import STAGE_LABELS, Board, following, measured_memory
from consilium.server.inline import in_memory_grid
from consilium.server.ledger import Ledger, stop_of
from consilium.server.run_folder import SIMULATION_LOCK, RunFolder
from consilium.server.simulation import SITES, Engine, SimulatedStudy, prepare, site_home
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

    def make_ready(board: Board) -> Mapping[str, float]:
        began = time.monotonic()
        board.show(DATA_LABEL, 0, 1)
        prepare(run, settings)
        board.show(DATA_LABEL, 1, 1)
        data_s = time.monotonic() - began
        labels = {
            name: f"{name} trains its teacher ({site.network.name})" for name, site in settings.simulation.sites.items()
        }
        _at_sites(run, settings, board, labels, "train", "--progress-json")
        return {"data": data_s, "teachers": time.monotonic() - began - data_s}

    return _run(run, settings, engine, console, make_ready)


def simulate_follow_up(settings: SimulatedStudy, root: Path, engine: Engine, console: Console) -> dict[str, Any]:
    """Run the study that follows a simulated one, in `follow_up_folder`; gives its metrics, as `simulate` does.

    The sites are those of the first study, in their homes; each answers with the student as it fine-tuned it. One that knows
    only some of the study's labels answers with its teacher, as before.

    Raises
    ------
    ConsiliumError
        As `simulate`; also if no site fine-tuned the first study's student.
    """
    first, run = RunFolder(root), RunFolder(follow_up_folder(root))
    key = signing_key(first.root / "coordinator" / "signing.pem")
    made = follow_up.follow(first, run, follow_up.default_name(settings.study), key)
    second = settings.model_copy(update={"name": made.study.name, "student": made.study.student})
    homes = run.root / SITES
    if not homes.exists():
        homes.symlink_to(Path("..") / SITES)  # so that the run folder can be moved as a whole

    def make_ready(board: Board) -> Mapping[str, float]:
        began = time.monotonic()
        labels = {
            name: f"{name} takes its fine-tuned student for its teacher"
            for name in made.fine_tuned
            if settings.labels_of(name) == settings.labels
        }
        _at_sites(run, second, board, labels, "adopt", settings.name)
        return {"adopt": time.monotonic() - began}

    return _run(run, second, engine, console, make_ready)


def follow_up_folder(root: Path) -> Path:
    """The run folder of the study that follows a simulated one."""
    return root / "follow-up"


def _run(
    run: RunFolder,
    settings: SimulatedStudy,
    engine: Engine,
    console: Console,
    make_ready: Callable[[Board], Mapping[str, float]],
) -> dict[str, Any]:
    """Make the sites ready, which gives the seconds of its parts, then run the study."""
    start = {"processes": _with_processes, "inline": _inline, "ray": _with_ray}[engine]
    with run.locked(SIMULATION_LOCK), Board(console) as board, measured_memory() as memory:
        console.print(NOBODY_IS_ASKED, highlight=False, soft_wrap=True)
        seconds = make_ready(board)
        with following(board, run.ledger):
            start(run, settings, board)
    metrics: dict[str, Any] = json.loads(run.metrics.read_text("utf-8"))
    metrics["peak_rss_mb"] = round(memory.peak_mb, 1)
    metrics["seconds"] = {**{part: round(spent, 3) for part, spent in seconds.items()}, **metrics["seconds"]}
    write_text(run.metrics, json.dumps(metrics, indent=2) + "\n")
    return metrics


def _at_sites(run: RunFolder, settings: SimulatedStudy, board: Board, labels: Mapping[str, str], *command: str) -> None:
    """Let sites do something by a command of their own, a few side by side; what each does, by name, is for the display.

    The command's first word comes before the site's settings file, the others behind it. A line of JSON that it prints with
    ``step`` and ``steps`` is its progress.
    """
    waiting = list(labels)
    running: dict[str, tuple[Child, int]] = {}
    with ProcessGroup() as group:
        while waiting or running:
            while waiting and len(running) < settings.simulation.training_at_a_time:
                name = waiting.pop(0)
                home = site_home(run, name)
                log = home / "log" / f"{command[0]}.log"
                told = log.stat().st_size if log.exists() else 0
                words = [*SITE_COMMAND, command[0], str(home / "site.toml"), *command[1:]]
                running[name] = (Child(f"`consilium-site {command[0]}` of {name}", words, log), told)
                group.add(running[name][0])
                board.show(labels[name], 0, 1)
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
                    board.show(labels[name], min(heard["step"], steps - 1), steps, note)
                if status is not None:
                    del running[name]
                    if status:
                        raise MachineError(f"{child.name} failed; its log {child.log} ends:\n{child.tail()}")
                    board.show(labels[name], 1, 1)


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
        "sites-folder": str(run.root / SITES),
    }


def _with_ledger(run: RunFolder, act: Callable[[Ledger], None]) -> None:
    ledger = Ledger.open(run.ledger)
    try:
        act(ledger)
    finally:
        ledger.close()
