"""What a federation costs over a plain script that does the same work in one process.

Data and teachers are made once. Then `consilium simulate` (a SuperLink, SuperNodes and gateways with TLS and node keys, as
processes of their own) and the plain script (`_plain_study.py`) run from the same prepared folder, turn and turn about,
each as a command with the same number of threads for every network it runs. Both sides' Dice must agree.

The start-up is told on its own: what the ledger holds for the stage `start`, and the look at data and teachers that are
there already. The rest of the command's wall time is compared: with the ServerApp's start, the student's ONNX file, the
report and the shutdown of all processes, none of which the plain script has.

    python benchmarks/orchestration.py
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from _measure import alternate, parser, print_machine, print_table, print_target, timed

from consilium.common.settings import parse
from consilium.server.board import STAGE_LABELS
from consilium.server.run_folder import RunFolder
from consilium.server.simulate import DATA_LABEL
from consilium.server.simulation import SimulatedStudy, prepare, site_home

TARGET = 1.10
POINTS_APART = 0.1
"""Of Dice, in percent: more, and the two sides did not do the same."""
HOSPITALS = {
    "north": ("unet", 8),
    "east": ("attention-unet", 8),
    "south": ("sdu-net", 16),
    "west": ("panoptic-fpn", 16),
}
"""The teacher of each: network and width, as in the demo."""
FEDERATION = ("consilium.server.cli", "simulate")
BEFORE = ("data", "teachers", "start")


def settings_of(given: Namespace) -> dict[str, Any]:
    """The study, in TOML's spelling."""
    training = {"image-budget": given.teacher_budget, "batch": 8, "learning-rate": 2e-3, "threads": given.threads}
    sites = {
        name: {
            "hospital": name,
            "images": 24 if given.tiny else 80,
            "network": {"name": network, "width": width},
            "training": training,
        }
        for name, (network, width) in list(HOSPITALS.items())[: given.sites]
    }
    return {
        "name": "orchestration",
        "preset": "paper",  # the plain script knows no other
        "seed": 7,
        "sites": list(sites),
        "image": {"size": given.size, "channels": 1},
        "collect": {"chunk": given.chunk},
        "exclusion": {"alpha": 0.0, "beta": 8.0},  # teachers are trained too briefly for the paper's
        "student": {
            "network": {"name": "deeplabv3plus", "encoder": "resnet18", "width": 4 if given.tiny else 32},
            "training": {"image-budget": given.budget, "batch": 8, "learning-rate": 1e-3, "threads": given.threads},
        },
        "simulation": {
            "source": "phantoms",
            "transferal-images": given.images,
            "test-images": 4 if given.tiny else 25,
            "min-images": 1,
            "sites": sites,
        },
    }


@dataclass
class Bench:
    """One prepared federation, and the two ways to run it."""

    settings: Path
    prepared: Path
    work: Path
    engine: str
    threads: int
    runs: int = 0

    def federation(self) -> dict[str, Any]:
        """Run `consilium simulate` on a copy; gives wall, stage seconds and scores."""
        folder = self._copy()
        command = [
            sys.executable,
            "-P",
            "-m",
            *FEDERATION,
            str(self.settings),
            "--run",
            str(folder),
            "--engine",
            self.engine,
        ]
        wall, heard = _run(command)
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        scores = {"ensemble": metrics["ensemble"]["pooled_dice"], "student": metrics["student"]["pooled_dice"]}
        for name, site in metrics["sites"].items():
            scores[f"{name} pooled"] = site["teacher"]["pooled_dice"]
            scores[f"{name} teacher"] = site["teacher"]["local_dice"]
            scores[f"{name} student"] = site["student"]["local_dice"]
        shutil.rmtree(folder)
        means = {what: score["mean"] / 100 for what, score in scores.items()}
        outside = around(metrics["seconds"], heard, wall)
        kept = metrics["images"]["kept"]
        return {"wall": wall, "seconds": metrics["seconds"], "outside": outside, "scores": means, "kept": kept}

    def plain(self) -> dict[str, Any]:
        """Run the plain script on a copy; gives the same."""
        folder = self._copy()
        result = self.work / "plain.json"
        script = Path(__file__).with_name("_plain_study.py")
        wall, _ = _run([sys.executable, str(script), str(folder), str(self.threads), str(result)])
        shutil.rmtree(folder)
        return {"wall": wall, **json.loads(result.read_text("utf-8"))}

    def _copy(self) -> Path:
        self.runs += 1
        return Path(shutil.copytree(self.prepared, self.work / f"run-{self.runs}"))


def _run(command: list[str]) -> tuple[float, dict[str, float]]:
    """Run a command; gives its seconds, and after how many it first printed each line."""
    began, heard = time.perf_counter(), dict[str, float]()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            heard.setdefault(line.strip(), time.perf_counter() - began)
    if process.returncode:
        raise SystemExit("\n".join([f"{' '.join(command[1:6])} failed:", *list(heard)[-40:]]))
    return time.perf_counter() - began, heard


def around(seconds: dict[str, float], heard: dict[str, float], wall: float) -> dict[str, float]:
    """What passes outside of stages, from the progress lines (told at most 0.5 s late)."""
    ended = heard[f"{STAGE_LABELS['report']}: done"]
    parts = {"the command's own start": heard[f"{DATA_LABEL}: started"], "after the report": wall - ended}
    start = heard.get(f"{STAGE_LABELS['start']}: started")
    if start is not None:
        parts["from submitting to the first stage"] = (
            heard[f"{STAGE_LABELS['describe']}: started"] - start - seconds.get("start", 0.0)
        )
    rest = wall - sum(seconds.values()) - sum(parts.values())
    return parts | {"between stages": rest}


def prepare_once(settings: Path, folder: Path) -> None:
    """Make data and catalogue, and let every site train its teacher."""
    study = parse(SimulatedStudy, tomllib.loads(settings.read_text("utf-8")), "benchmark")
    run = RunFolder(folder)
    run.create(study.study)
    prepare(run, study)
    for site in study.sites:
        _run([sys.executable, "-P", "-m", "consilium.clients.cli", "train", str(site_home(run, site) / "site.toml")])


def beyond(run: dict[str, Any]) -> float:
    """Seconds of a federation's command beyond its start-up."""
    return float(run["wall"] - sum(run["seconds"].get(stage, 0.0) for stage in BEFORE))


def check_same_work(federation: dict[str, Any], plain: dict[str, Any]) -> None:
    """End the benchmark if the two sides did not do the same; all that is random is seeded on both."""
    apart = 100 * max(abs(federation["scores"][what] - value) for what, value in plain["scores"].items())
    print(f"kept images: {federation['kept']} and {plain['kept']}; Dice differs by at most {apart:.3f} points\n")
    if federation["kept"] != plain["kept"] or apart > POINTS_APART:
        raise SystemExit("the two sides did not do the same work")


def main() -> int:
    """Prepare, measure and print."""
    options = parser(__doc__)
    options.add_argument("--engine", choices=("processes", "ray", "inline"), default="processes")
    options.add_argument("--images", type=int, default=512, help="transferal images")
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--sites", type=int, default=4, choices=range(1, 5))
    options.add_argument("--budget", type=int, default=6000, help="images the student sees")
    options.add_argument(
        "--teacher-budget", type=int, default=1600, help="images each teacher sees, before anything is measured"
    )
    options.add_argument("--chunk", type=int, default=64)
    options.add_argument(
        "--threads", type=int, default=1, help="CPU threads of every network, on both sides; 0 is torch's choice"
    )
    options.add_argument("--rounds", type=int, default=2, help="runs of each side")
    given = options.parse_args()
    if given.tiny:
        given.images, given.size, given.sites, given.budget, given.teacher_budget, given.rounds = 16, 48, 1, 16, 64, 1
    print_machine()
    with tempfile.TemporaryDirectory() as root:
        work = Path(root)
        settings = work / "study.toml"
        settings.write_text(tomli_w.dumps(settings_of(given)), "utf-8")
        took = timed(lambda: prepare_once(settings, work / "prepared"))
        print(
            f"prepared in {took:.0f} s: {given.images} transferal images of {given.size}, {given.sites} teachers\n",
            flush=True,
        )
        bench = Bench(settings, work / "prepared", work, given.engine, given.threads)
        runs: dict[str, list[dict[str, Any]]] = {"consilium": [], "plain": []}

        def side(name: str, run: Any) -> Any:
            def once() -> float:
                runs[name].append(run())
                return beyond(runs[name][-1])

            return once

        seconds = alternate(
            {"consilium": side("consilium", bench.federation), "plain": side("plain", bench.plain)}, given.rounds
        )
    print_runs(runs)
    print_stages(runs)
    check_same_work(runs["consilium"][0], runs["plain"][0])
    ratio = statistics.median(seconds["consilium"]) / statistics.median(seconds["plain"])
    print(f"engine {given.engine}, threads {given.threads or 'as torch chooses'}")
    print_target(
        f"at most {TARGET:.2f} of the plain script's wall time beyond the start-up (here {ratio:.3f})", ratio <= TARGET
    )
    return 0


def print_runs(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Every run: the whole command, what is start-up, the rest."""
    print_table(
        ("run", "wall, s", "start-up, s", "data and teachers looked at, s", "beyond, s"),
        [
            (
                f"{name} {number}",
                f"{run['wall']:.1f}",
                f"{run['seconds'].get('start', 0.0):.1f}",
                f"{run['seconds'].get('data', 0.0) + run['seconds'].get('teachers', 0.0):.1f}",
                f"{beyond(run):.1f}",
            )
            for name, held in runs.items()
            for number, run in enumerate(held, 1)
        ],
    )


def print_stages(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Where the time beyond the start-up goes: medians."""

    def median(name: str, stage: str) -> float:
        return statistics.median([float(run["seconds"].get(stage, 0.0)) for run in runs[name]])

    rows = [(stage, median("consilium", stage), median("plain", stage)) for stage in runs["consilium"][0]["seconds"]]
    rows = [row for row in rows if row[0] not in BEFORE]
    for part in runs["consilium"][0]["outside"]:
        rows.append((part, statistics.median([float(run["outside"][part]) for run in runs["consilium"]]), 0.0))
    own = statistics.median([float(run["wall"] - sum(run["seconds"].values())) for run in runs["plain"]])
    rows.append(("the plain script's own start", 0.0, own))
    print_table(
        ("stage", "consilium, s", "plain, s", "more, s"),
        [(stage, f"{ours:.1f}", f"{theirs:.1f}", f"{ours - theirs:+.1f}") for stage, ours, theirs in rows],
    )


if __name__ == "__main__":
    sys.exit(main())
