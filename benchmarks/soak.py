"""Kill anything, again and again, in one run, and compare the end with that of a run nobody disturbed.

A federation over loopback (SuperLink, superexec, ServerApp, and for each site its gateway, SuperNode and resident ClientApp) runs
a study from `collect` to `report`, while one of its processes after the other, drawn at random, gets a SIGKILL; the command
itself too, and all at once. Two SuperNodes in every ten victims only hang (SIGSTOP): the site must be shown as away while the
other sites have nothing left to answer; then one goes on (SIGCONT), and the other is killed after all. Where the command ends it
is started again, as its user would. At the end

- `pseudo_masks.u8`, `selection.csv` and `student.safetensors` must have the same bytes as those of an undisturbed run in one
  process;
- the ledger must show that no site was asked for what it had answered, and every site's audit log must be unbroken;
- every site's audit log tells how many answers were lost on their way, which is at most the chunks in flight for each kill.

    python benchmarks/soak.py --kills 24 --seed 1
"""

import os
import random
import re
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
SITE_PROCESSES = {
    "SuperNode": "flower-supernode",
    "resident ClientApp": "consilium.clients.resident",
    "site with its gateway": "consilium.clients.cli start",
}
VICTIMS = {
    "SuperLink": "consilium.server.guarded_superlink",
    "superexec": "flower-superexec",
    "ServerApp": "flwr-serverapp",
    **SITE_PROCESSES,
    "the command itself": "consilium.server.cli simulate",
}
"""What each is called here, and what its command line has."""
EVERYTHING = "all at once"
HANGING = "SuperNode that hangs"
HANGING_TO_DEATH = "SuperNode that hangs, then dies"
HOW_IT_ENDS = {HANGING: signal.SIGCONT, HANGING_TO_DEATH: signal.SIGKILL}
"""Stopped while masks are collected; and what it gets once the site is shown as away."""
ALL_VICTIMS = (*VICTIMS, EVERYTHING, *HOW_IT_ENDS)
RESTARTED_S, SITE_BACK_S, SITE_REPORTED_S = 15.0, 90.0, 60.0
"""Targets: of the coordinator's processes, and of a site's."""
KEEPER = "consilium.common.processes"
POLL_S = 0.3
COLLECTING = "collect"
BLOWS_AT_ONCE = 0.2
"""Share of the kills that are followed by the next at once, wherever the study is then."""
PATIENCE_S = 150.0


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
        "preset": "paper",
        "sites": list(sites),
        "image": {"size": 64},
        "collect": {
            "chunk": given.chunk,
            "chunks-in-flight": 4,
            "deadline-s": 1800.0,
            "connect-s": 300.0,
            "retries": 20,
        },
        "exclusion": {"alpha": 0.0, "beta": 8.0},
        "student": {
            "onnx": False,
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


@dataclass(frozen=True)
class Glance:
    """What the ledger says at a moment: the stage that goes on, its steps, by site answers and unanswered asks, who is away."""

    stage: str = ""
    done: int = 0
    answers: tuple[tuple[str, int], ...] = ()
    unanswered: tuple[tuple[str, int], ...] = ()
    away: frozenset[str] = frozenset()

    def of(self, site: str) -> int:
        """Answers of a site."""
        return dict(self.answers).get(site, 0)

    def others_owe(self, site: str) -> int:
        """Answers that are awaited of the other sites."""
        return sum(count for name, count in self.unanswered if name != site)


@dataclass(frozen=True)
class Process:
    """A process of the federation."""

    kind: str
    site: str
    pid: int


@dataclass
class Kill:
    """One kill: of what, in which stage, and after how many seconds what was the case."""

    victim: str
    site: str
    pid: int
    glance: Glance
    at: float
    again_s: float | None = None  # its successor runs
    further_s: float | None = None  # and the study is further than then
    reported_s: float | None = None  # the site is shown as away
    back_s: float | None = None  # the site answered again
    others_owed: int | None = None  # answers that the other sites had not given when it was shown as away
    alone: bool = True  # neither at once after another, nor followed at once by one
    followed: bool = False
    collecting: bool = True

    @property
    def made_good(self) -> bool:
        """Whether all is as it was before, or the next one is to come at once."""
        back = self.back_s is not None or not self.site or not self.collecting
        return self.followed or (self.further_s is not None and back)

    def look(self, here: Glance, alive: list[Process], now: float) -> None:
        """Note what is so by now."""
        self.collecting = here.stage == COLLECTING
        if self.victim in HOW_IT_ENDS:
            return self._look_at_who_hangs(here, now)
        kind = "the command itself" if self.victim == EVERYTHING else self.victim
        if self.again_s is None:
            if not any((one.kind, one.site) == (kind, self.site) and one.pid != self.pid for one in alive):
                return self._look_for_the_site(here, now)
            self.again_s, self.glance = now - self.at, here
        if self.further_s is None and (here.stage, here.done, here.answers) != (
            self.glance.stage,
            self.glance.done,
            self.glance.answers,
        ):
            self.further_s = now - self.at
        if self.site and self.back_s is None and here.of(self.site) > self.glance.of(self.site):
            self.back_s = now - self.at
        return self._look_for_the_site(here, now)

    def _look_at_who_hangs(self, here: Glance, now: float) -> None:
        self._look_for_the_site(here, now)
        if self.again_s is None and (self.reported_s is not None or now - self.at > PATIENCE_S):
            with suppress(ProcessLookupError):
                os.kill(self.pid, HOW_IT_ENDS[self.victim])
            self.again_s, self.glance, self.others_owed = now - self.at, here, here.others_owe(self.site)
        if self.again_s is not None and self.back_s is None and here.of(self.site) > self.glance.of(self.site):
            self.further_s = self.back_s = now - self.at

    def _look_for_the_site(self, here: Glance, now: float) -> None:
        if self.site and self.reported_s is None and self.back_s is None and self.site in here.away:
            self.reported_s = now - self.at


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
        """Run the study to its end, with so many kills on the way.

        The victims are those given, in their order, or all kinds equally often, in a random order. The first dies when masks are
        being collected; each of the others when the one before is made good, or at once after it (`BLOWS_AT_ONCE`).
        """
        planned = list(victims or self._deck(kills))
        limit = time.monotonic() + limit_s
        with self.log.open("ab") as log, _child() as holder:
            next_kill: float | None = None
            while time.monotonic() < limit:
                if holder.process is None or holder.process.poll() is not None:
                    if holder.process is not None and holder.process.returncode == 0:
                        return
                    self.starts += 1
                    holder.process = subprocess.Popen(self._command(), stdout=log, stderr=subprocess.STDOUT)
                time.sleep(POLL_S)
                now, here, alive = time.monotonic(), self._glance(), processes_of(holder.process.pid)
                for kill in self.kills:
                    kill.look(here, alive, now)
                if self.kills and not self.kills[-1].made_good and now - self.kills[-1].at < PATIENCE_S:
                    continue
                if next_kill is None:
                    next_kill = now + self.rng.uniform(*pause_s) if here.stage == COLLECTING or self.kills else None
                elif now >= next_kill and planned and (killed := self._kill(alive, here, planned)):
                    planned.remove(killed.victim)
                    at_once = killed.victim not in HOW_IT_ENDS and self.rng.random() < BLOWS_AT_ONCE
                    killed.followed = not victims and bool(planned) and at_once
                    killed.alone = not killed.followed and not (self.kills and self.kills[-1].followed)
                    next_kill = now if killed.followed else None
                    self.kills.append(killed)
        raise SystemExit(f"the study did not end within {limit_s:.0f} s; see {self.log} and {self.folder / 'log'}")

    def _deck(self, kills: int) -> list[str]:
        """All kinds of victims, equally often."""
        deck: list[str] = []
        while len(deck) < kills:
            deck += self.rng.sample(ALL_VICTIMS, len(ALL_VICTIMS))
        return deck[:kills]

    def _command(self) -> list[str]:
        module = ["consilium.server.cli", "simulate", str(self.settings), "--run", str(self.folder)]
        return [sys.executable, "-P", "-m", *module]

    def _kill(self, alive: list[Process], here: Glance, planned: list[str]) -> Kill | None:
        """Kill the next that is planned, a process of the federation or all; None if none of that kind is there now.

        Who hangs is missed by nobody unless it is asked something: these have to wait for masks being collected.
        """
        victim = next((one for one in planned if here.stage == COLLECTING or one not in HOW_IT_ENDS), "")
        kind = {EVERYTHING: "the command itself"} | dict.fromkeys(HOW_IT_ENDS, "SuperNode")
        found = [one for one in alive if one.kind == kind.get(victim, victim)] if victim else []
        if not found:
            return None
        chosen = self.rng.choice(found)
        for process in alive if victim == EVERYTHING else [chosen]:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP if victim in HOW_IT_ENDS else signal.SIGKILL)
        return Kill(victim, chosen.site, chosen.pid, here, time.monotonic())

    def _glance(self) -> Glance:
        """Look into the ledger, which is only read."""
        with suppress(sqlite3.Error):
            database = sqlite3.connect(f"file:{self.folder / 'ledger.sqlite'}?mode=ro", uri=True)
            try:
                stages = database.execute("SELECT name, done FROM stage ORDER BY rowid").fetchall()
                answers = database.execute("SELECT site, COUNT(*) FROM answer GROUP BY site ORDER BY site").fetchall()
                unanswered = database.execute(
                    "SELECT site, COUNT(*) FROM ask WHERE answered_at IS NULL GROUP BY site ORDER BY site"
                ).fetchall()
                away = {site for (site,) in database.execute("SELECT site FROM seen WHERE NOT connected")}
                stage = stages[-1] if stages else ("", 0)
                return Glance(*stage, tuple(answers), tuple(unanswered), frozenset(away))
            finally:
                database.close()
        return Glance()

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


def processes_of(root: int) -> list[Process]:
    """The command's process and all below it, in order of their ids; keepers have no kind."""
    found = []
    with suppress(psutil.Error):
        command = psutil.Process(root)
        for process in [command, *command.children(recursive=True)]:
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                kind = next((name for name, part in VICTIMS.items() if part in line and KEEPER not in line), "")
                site = re.search(r"/sites/([^/]+)/", line) if kind in SITE_PROCESSES else None
                found.append(Process(kind, site[1] if site else "", process.pid))
    return sorted(found, key=lambda one: one.pid)


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
    options.add_argument("--kills", type=int, default=24)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--sites", type=int, default=2, choices=(1, 2, 3))
    options.add_argument("--images", type=int, default=560, help="transferal images")
    options.add_argument("--chunk", type=int, default=4)
    options.add_argument("--budget", type=int, default=24_000, help="images the student sees")
    options.add_argument(
        "--pause",
        type=float,
        nargs=2,
        default=(2.0, 6.0),
        help="seconds from one being made good to the next, at random",
    )
    options.add_argument("--limit", type=float, default=3600.0, help="seconds the study may take")
    options.add_argument(
        "--victims",
        nargs="+",
        choices=ALL_VICTIMS,
        help="kill these in this order, each when the one before is made good",
    )
    options.add_argument("--work", type=Path, help="keep everything here")
    given = options.parse_args()
    given.kills = len(given.victims) if given.victims else given.kills
    if given.tiny:
        given.victims = given.victims or ["SuperLink"]
        given.kills, given.images, given.budget, given.limit = len(given.victims), 60, 1000, 240.0
    print_machine()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        settings, reference = prepare(given, work)
        folder = Path(shutil.copytree(work / "prepared", work / "soak"))
        soak = Soak(settings, folder, work / "soak.log", random.Random(given.seed))  # noqa: S311 - no secret
        began = time.monotonic()
        try:
            soak.run(given.kills, tuple(given.pause), given.limit, given.victims)
        except BaseException:
            print_kills(soak.kills)  # a run that takes too long, or is interrupted, tells what it saw
            raise
        took = time.monotonic() - began
        wrong, answers = soak.differences(reference), soak.answers()
    print_kills(soak.kills)
    print_table(("site", "masks sent", "masks the coordinator has"), answers)
    print(
        f"seed {given.seed}: {len(soak.kills)} kills in {took:.0f} s, {soak.starts} starts of the command", flush=True
    )
    print("".join(f"WRONG: {fault}\n" for fault in wrong), end="")
    met = not wrong and len(soak.kills) >= given.kills
    print_target(f"{given.kills} kills, the same bytes, and nothing that was answered asked again", met)
    for rule, kept in targets(soak.kills):
        print_target(rule, kept)
    return 0 if met else 1


def print_kills(kills: list[Kill]) -> None:
    """What was killed how often, and how long it took until what was the case."""
    rows = []
    for victim in ALL_VICTIMS:
        those = [kill for kill in kills if kill.victim == victim]
        alone = [kill for kill in those if kill.alone]
        if not those:
            continue
        stages = ", ".join(sorted({kill.glance.stage for kill in those}))
        columns = [[getattr(kill, name) for kill in alone] for name in ("again_s", "further_s", "reported_s", "back_s")]
        rows.append((victim, len(those), *(_middle_and_most(column) for column in columns), stages))
    head = ("killed", "times", "runs again", "study further", "site shown as away", "site answers again", "in stages")
    print("Seconds after the kill, median and most, of those that another did not follow at once:\n")
    print_table(head, rows)


def _middle_and_most(seconds: list[float | None]) -> str:
    known = [second for second in seconds if second is not None]
    return f"{statistics.median(known):.1f}, {max(known):.1f}" if known else ""


def targets(kills: list[Kill]) -> list[tuple[str, bool]]:
    """What must hold of the times."""
    kills = [kill for kill in kills if kill.alone]
    own = [kill for kill in kills if kill.victim in ("SuperLink", "superexec", "ServerApp")]
    slow = [kill.further_s - kill.again_s for kill in own if kill.further_s is not None and kill.again_s is not None]
    hung = [kill for kill in kills if kill.victim in HOW_IT_ENDS]
    back = [kill.back_s for kill in kills if kill.back_s is not None and kill not in hung]
    again = [kill.back_s - kill.again_s for kill in hung if kill.back_s is not None and kill.again_s is not None]
    away = [PATIENCE_S if kill.reported_s is None else kill.reported_s for kill in hung]
    owed = sum(kill.others_owed or 0 for kill in hung)
    rules = [
        (f"{what} within {limit:g} s ({max(seconds):.1f} at most, of {len(seconds)})", max(seconds) <= limit)
        for what, seconds, limit in (
            ("the study goes on after a SuperLink, superexec or ServerApp runs again", slow, RESTARTED_S),
            ("a site answers again after one of its processes was killed", back, SITE_BACK_S),
            ("a site whose SuperNode hangs is shown as away", away, SITE_REPORTED_S),
            ("it answers again after the SuperNode goes on, or was killed", again, SITE_BACK_S),
        )
        if seconds
    ]
    told = f"by then the other sites have answered all that they were asked ({owed} answers were missing)"
    return [*rules, (told, owed == 0)] if hung else rules


if __name__ == "__main__":
    raise SystemExit(main())
