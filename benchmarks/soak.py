"""Kill anything, again and again, in one run, and compare the end with that of a run nobody disturbed.

A federation over loopback (SuperLink, superexec, ServerApp, and for each site its gateway, SuperNode and resident ClientApp) runs
a study from `collect` to `report`, while one of its processes after the other, drawn at random, gets a SIGKILL; the command
itself too. Where the command ends it is started again, as its user would. At the end

- `pseudo_masks.u8`, `selection.csv` and `student.safetensors` must have the same bytes as those of an undisturbed run in one
  process;
- the ledger must show that no site was asked for what it had answered, and every site's audit log must be unbroken;
- every site's audit log tells how many answers were lost on their way, which is at most the chunks in flight for each kill.

    python benchmarks/soak.py --kills 20 --seed 1
"""

import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from _measure import parser, print_machine, print_table, print_target
from orchestration import prepare_once

from consilium.clients import audit
from consilium.common.errors import StateError
from consilium.server.ledger import Ledger
from consilium.server.run_folder import RunFolder
from consilium.server.simulation import site_home

FACTS = ("pseudo_masks.u8", "selection.csv", "student/student.safetensors")
VICTIMS = {
    "SuperLink": "consilium.server.superlink",
    "superexec": "flower-superexec",
    "ServerApp": "flwr-serverapp",
    "SuperNode": "flower-supernode",
    "resident ClientApp": "consilium.clients.resident",
    "site with its gateway": "consilium.clients.cli start",
    "the command itself": "consilium.server.cli simulate",
}
"""What each is called here, and what its command line has."""
KEEPER = "consilium.common.processes"
POLL_S = 0.3


def settings_of(given: Namespace) -> dict[str, Any]:
    """The study, in TOML's spelling."""
    sites = {
        name: {
            "hospital": name,
            "images": 12,
            "network": {"name": "unet", "width": 4},
            "training": {"image-budget": 48, "batch": 8, "learning-rate": 3e-3, "threads": 1},
        }
        for name in ("north", "east", "south")[: given.sites]
    }
    return {
        "name": "soak",
        "seed": 3,
        "sites": list(sites),
        "image": {"size": 64},
        "collect": {"chunk": given.chunk, "chunks-in-flight": 4, "deadline-s": 1800.0, "connect-s": 300.0, "retries": 20},
        "exclusion": {"alpha": 0.0, "beta": 8.0},
        "student": {
            "network": {"name": "deeplabv3plus", "encoder": "tu-test_efficientnet", "width": 8},
            "training": {
                "image-budget": given.budget,
                "batch": 8,
                "learning-rate": 2e-3,
                "threads": 1,
                "checkpoint-every-s": 1.0,
            },
        },
        "simulation": {
            "source": "phantoms",
            "transferal-images": given.images,
            "test-images": 4,
            "sites": sites,
        },
    }


@dataclass
class Kill:
    """One kill: of what, in which stage, and after how many seconds the study was further than before."""

    victim: str
    stage: str
    at: float
    recovered_s: float | None = None


@dataclass
class Soak:
    """A study that is disturbed."""

    settings: Path
    folder: Path
    log: Path
    rng: random.Random
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0

    def run(self, kills: int, pause_s: tuple[float, float], limit_s: float, victims: list[str] | None = None) -> None:
        """Run the study to its end, with so many kills on the way; in the order of ``victims`` where it is given."""
        planned = list(victims or [])
        limit = time.monotonic() + limit_s
        with self.log.open("ab") as log, _child() as holder:
            next_kill = time.monotonic() + self.rng.uniform(*pause_s)
            before = self._progress()
            while time.monotonic() < limit:
                if holder.process is None or holder.process.poll() is not None:
                    if holder.process is not None and holder.process.returncode == 0:
                        return
                    self.starts += 1
                    holder.process = subprocess.Popen(self._command(), stdout=log, stderr=subprocess.STDOUT)
                time.sleep(POLL_S)
                now, here = time.monotonic(), self._progress()
                if here != before:
                    before = here
                    for kill in self.kills:
                        if kill.recovered_s is None:
                            kill.recovered_s = now - kill.at
                ready = not self.kills or self.kills[-1].recovered_s is not None or now - self.kills[-1].at > 120
                due = now >= next_kill and len(self.kills) < kills and here[0] not in ("", "start")
                if due and (ready or not victims) and (killed := self._kill(holder.process.pid, planned)):
                    self.kills.append(Kill(killed, here[0], time.monotonic()))
                    next_kill = time.monotonic() + self.rng.uniform(*pause_s)
        raise SystemExit(f"the study did not end within {limit_s:.0f} s; see {self.log} and {self.folder / 'log'}")

    def _command(self) -> list[str]:
        module = ["consilium.server.cli", "simulate", str(self.settings), "--run", str(self.folder)]
        return [sys.executable, "-P", "-m", *module]

    def _kill(self, root: int, planned: list[str]) -> str:
        """Kill a process of the federation; gives what it was, empty if none of the wanted kind is there now."""
        found: dict[str, list[psutil.Process]] = {}
        with suppress(psutil.Error):
            command = psutil.Process(root)
            for process in [command, *command.children(recursive=True)]:
                with suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    kind = next((name for name, part in VICTIMS.items() if part in line and KEEPER not in line), None)
                    if kind:
                        found.setdefault(kind, []).append(process)
        kinds = sorted(found)
        kind = planned[0] if planned else self.rng.choice(kinds) if kinds else ""
        if kind not in found:
            return ""
        with suppress(psutil.Error):
            self.rng.choice(sorted(found[kind], key=lambda process: process.pid)).send_signal(signal.SIGKILL)
            if planned:
                planned.pop(0)
            return kind
        return ""

    def _progress(self) -> tuple[str, int, int]:
        """The stage that goes on, its steps, and the answers so far; the ledger is only read."""
        with suppress(sqlite3.Error):
            database = sqlite3.connect(f"file:{self.folder / 'ledger.sqlite'}?mode=ro", uri=True)
            try:
                stages = database.execute("SELECT name, done FROM stage ORDER BY rowid").fetchall()
                [(answers,)] = database.execute("SELECT COUNT(*) FROM answer")
                return (*(stages[-1] if stages else ("", 0)), answers)
            finally:
                database.close()
        return "", 0, 0

    def differences(self, reference: Path) -> list[str]:
        """What is not as it must be."""
        wrong = [f"{name} differs" for name in FACTS if _bytes(self.folder / name) != _bytes(reference / name)]
        ledger = Ledger.open(self.folder / "ledger.sqlite")
        try:
            wrong += [f"{site} was asked again for chunk {chunk}" for site, chunk in ledger.asked_again()]
        finally:
            ledger.close()
        for site in sorted(path.name for path in (self.folder / "sites").iterdir()):
            try:
                audit.verify(self._audit(site))
            except StateError as error:
                wrong.append(str(error))
        return wrong

    def _audit(self, site: str) -> Path:
        return site_home(RunFolder(self.folder), site) / "audit.jsonl"

    def answers(self) -> list[tuple[str, int, int]]:
        """Of each site: masks it sent, and masks the coordinator has."""
        ledger = Ledger.open(self.folder / "ledger.sqlite")
        try:
            has = {site: images for site, (images, _, _) in ledger.answers().items()}
        finally:
            ledger.close()
        return [(site, audit.Audit(self._audit(site)).masks_gone(), count) for site, count in has.items()]


@dataclass
class _Holder:
    process: "subprocess.Popen[bytes] | None" = None


@contextmanager
def _child() -> Iterator[_Holder]:
    """A command that is ended with the block."""
    holder = _Holder()
    try:
        yield holder
    finally:
        if holder.process is not None and holder.process.poll() is None:
            holder.process.kill()
            holder.process.wait()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def prepare(given: Namespace, work: Path) -> tuple[Path, Path]:
    """Make the data, train the teachers and run the study undisturbed; gives its settings and its folder."""
    settings = work / "study.toml"
    settings.write_text(tomli_w.dumps(settings_of(given)), "utf-8")
    prepare_once(settings, work / "prepared")
    shutil.copytree(work / "prepared", work / "undisturbed")
    command = ["simulate", str(settings), "--run", str(work / "undisturbed"), "--engine", "inline"]
    subprocess.run([sys.executable, "-P", "-m", "consilium.server.cli", *command], check=True, capture_output=True)
    return settings, work / "undisturbed"


def main() -> int:
    """Prepare, kill, compare."""
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--sites", type=int, default=2, choices=(1, 2, 3))
    options.add_argument("--images", type=int, default=400, help="transferal images")
    options.add_argument("--chunk", type=int, default=4)
    options.add_argument("--budget", type=int, default=20_000, help="images the student sees")
    options.add_argument("--pause", type=float, nargs=2, default=(3.0, 15.0), help="seconds between kills, at random")
    options.add_argument("--limit", type=float, default=3600.0, help="seconds the study may take")
    options.add_argument(
        "--victims", nargs="+", choices=list(VICTIMS), help="kill these, in this order, each when the one before is made good"
    )
    options.add_argument("--work", type=Path, help="keep everything here")
    given = options.parse_args()
    given.kills = len(given.victims) if given.victims else given.kills
    if given.tiny:
        given.victims = given.victims or ["SuperLink"]
        given.kills, given.images, given.budget, given.limit = len(given.victims), 64, 3000, 400.0
    print_machine()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        settings, reference = prepare(given, work)
        folder = Path(shutil.copytree(work / "prepared", work / "soak"))
        soak = Soak(settings, folder, work / "soak.log", random.Random(given.seed))
        began = time.monotonic()
        soak.run(given.kills, tuple(given.pause), given.limit, given.victims)
        took = time.monotonic() - began
        wrong, answers = soak.differences(reference), soak.answers()
    print_kills(soak.kills)
    print_table(("site", "masks sent", "masks the coordinator has"), answers)
    print(f"seed {given.seed}: {len(soak.kills)} kills in {took:.0f} s, {soak.starts} starts of the command", flush=True)
    print("".join(f"WRONG: {fault}\n" for fault in wrong), end="")
    met = not wrong and len(soak.kills) >= given.kills
    print_target(f"{given.kills} kills, the same bytes, and nothing that was answered asked again", met)
    return 0 if met else 1


def print_kills(kills: list[Kill]) -> None:
    """What was killed how often, and how long it took until the study was further."""
    rows = []
    for victim in VICTIMS:
        those = [kill for kill in kills if kill.victim == victim]
        seconds = [kill.recovered_s for kill in those if kill.recovered_s is not None]
        stages = ", ".join(sorted({kill.stage for kill in those}))
        middle, most = (statistics.median(seconds), max(seconds)) if seconds else (float("nan"), float("nan"))
        rows.append((victim, len(those), f"{middle:.1f}", f"{most:.1f}", stages))
    print_table(("killed", "times", "progress after, s: median", "most", "in stages"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
