"""A federation set up as docs/deploy.md says, command by command, each machine in a network namespace of its own.

The sites' teachers are Python functions that need no training, so that what must come out can be worked out by hand.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tomli_w
from PIL import Image

from consilium.common.catalogue import open_catalogue
from consilium.common.errors import StateError
from consilium.common.processes import Child, ProcessGroup
from consilium.common.settings import read_toml
from consilium.server.run_folder import RunFolder
from consilium.server.status import status
from tests.network_of_machines import Network

COORDINATOR: Final = "coordinator"
PORT: Final = 9443
SIZE: Final = 64
CHUNK: Final = 8
STUDY: Final = "first"
_BIN: Final = Path(sys.executable).parent
_COMMAND_S: Final = 150.0
_CONNECTED_S: Final = 90.0
_TEACHER: Final = """
import time

import numpy as np


def rolled(images):
    time.sleep({pause_s} * len(images))
    return np.roll(images, {rows}, axis=2) / 255
"""


@dataclass
class Federation:
    """A coordinator and sites.

    Parameters
    ----------
    network
        With a machine for each site, and one called coordinator.
    children
        Takes charge of what runs.
    folder
        Receives it all: ``images/``, ``federation/``, a home for every site, ``run/``, ``log/``.
    """

    network: Network
    children: ProcessGroup
    folder: Path

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(name for name in self.network.machines if name != COORDINATOR)

    @property
    def address(self) -> str:
        """Of the SuperLink, by name."""
        return f"{self.network.name(COORDINATOR)}:{PORT}"

    @property
    def federation(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "federation"

    @property
    def run(self) -> Path:
        """The study's run folder."""
        return self.folder / "run"

    def settings(self, site: str) -> Path:
        """A site's settings."""
        return self.folder / site / "site.toml"

    def ended(self, machine: str, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine to its end, whatever that is."""
        command = self.network.command(machine, program, *arguments)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_S, check=False, env=_environment()
        )

    def done(self, machine: str, program: str, *arguments: str | Path) -> str:
        """Run a command on a machine that must end well; gives what it printed."""
        ended = self.ended(machine, program, *arguments)
        if ended.returncode:
            raise RuntimeError(f"{program} {' '.join(map(str, arguments))} on {machine}: {ended.stdout}{ended.stderr}")
        return ended.stdout

    def started(self, machine: str, program: str, *arguments: str | Path) -> Child:
        """Start a command on a machine; its output goes to ``log/``."""
        log = self.folder / "log" / f"{len(self.children.children)}-{machine}.log"
        command = self.network.command(machine, program, *arguments)
        return self.children.add(Child(f"{program} on {machine}", command, log, environment=_environment()))

    def at_all_sites(self, act: Callable[[str], Any]) -> dict[str, Any]:
        """Do something at every site, side by side."""
        with ThreadPoolExecutor(len(self.sites)) as pool:
            return dict(zip(self.sites, pool.map(act, self.sites), strict=True))

    def join(self, pause_s: float) -> None:
        """Provision; have every site join, with a teacher that takes its time for an image; accept them."""
        settings = {"name": "trial", "superlink": {"address": self.address}, "sites": {name: {} for name in self.sites}}
        (self.folder / "federation.toml").write_text(tomli_w.dumps(settings))
        self.done(COORDINATOR, "consilium", "provision", self.folder / "federation.toml", "--out", self.federation)

        def join(site: str) -> Path:
            home = self.folder / site
            kit = self.federation / "kits" / f"{site}.tar.gz"
            self.done(site, "consilium-site", "join", kit, "--folder", home)
            (home / "teacher.py").write_text(_TEACHER.format(pause_s=pause_s, rows=self.sites.index(site)))
            teacher = {"kind": "callable", "function": "teacher:rolled", "code": ".", "output": "probabilities"}
            (home / "site.toml").write_text(tomli_w.dumps(read_toml(home / "site.toml") | {"teacher": teacher}))
            return home / f"{site}.join"

        joined = self.at_all_sites(join)
        self.done(COORDINATOR, "consilium", "federation", "accept", self.federation, *joined.values())

    def start(self) -> None:
        """Start the coordinator and the sites, and wait until all are connected."""
        everyone = f"({len(self.sites)} of {len(self.sites)})"
        coordinator = self.started(COORDINATOR, "consilium", "coordinator", "start", self.federation)
        for site in self.sites:
            self.started(site, "consilium-site", "start", self.settings(site))
        coordinator.wait_until(lambda: everyone in coordinator.tail(), _CONNECTED_S)

    def build_catalogue(self, images: int) -> None:
        """Make images of noise, and the study's catalogue of them."""
        rng = np.random.default_rng(7)
        (self.folder / "images").mkdir()
        for number in range(images):
            pixels = rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
            Image.fromarray(pixels).save(self.folder / "images" / f"{number:03d}.png")
        arguments = ("--run", self.run, "--key", self.federation / "signing.pem", "--size", str(SIZE))
        self.done(COORDINATOR, "consilium", "catalogue", "build", self.folder / "images", *arguments)

    def write_study(self, collect: dict[str, float]) -> None:
        """Write ``study.toml``, with a student that is trained in no time."""
        training = {"image-budget": 16, "batch": 8, "threads": 1}
        study = {
            "name": STUDY,
            "sites": list(self.sites),
            "image": {"size": SIZE},
            "collect": {"chunk": CHUNK, **collect},
            "exclusion": {"alpha": 0.0, "beta": 8.0},
            "student": {"onnx": False, "network": {"name": "unet", "width": 4}, "training": training},
        }
        (self.folder / "study.toml").write_text(tomli_w.dumps(study))

    def run_command(self) -> tuple[str | Path, ...]:
        """What starts the study."""
        return ("consilium", "run", self.folder / "study.toml", "--run", self.run, "--coordinator", self.federation)

    def consent(self) -> None:
        """Have the person at every site approve."""
        self.at_all_sites(lambda site: self.done(site, "consilium-site", "approve", self.settings(site), STUDY))

    def stop(self) -> None:
        """End all that runs, side by side."""
        for child in self.children.children:
            child.terminate()
        self.children.stop()

    # --- how it goes

    def glance(self) -> "Glance":
        """Look at the study as ``consilium status --json`` does."""
        try:
            return Glance(status(self.run))
        except StateError:  # it is just being made
            return Glance({"status": "not-begun", "stages": {}, "sites": {}})

    def expected_pseudo_masks(self) -> npt.NDArray[np.uint8]:
        """What must come out: the mean over the sites' rolled images, rounded, a half down; uint8 (n, 1, H, W)."""
        pixels = np.asarray(open_catalogue(RunFolder(self.run).catalogue).pixels, np.int64)
        total = sum(np.roll(pixels, rows, axis=2) for rows in range(len(self.sites)))
        return np.ceil(total / len(self.sites) - 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Glance:
    """What ``consilium status --json`` tells."""

    told: dict[str, Any]

    @property
    def collecting(self) -> bool:
        """Whether masks are being collected now."""
        return (
            self.told["status"] == "running" and not self.told["stages"].get("collect", {"finished": True})["finished"]
        )

    @property
    def collected(self) -> int:
        """Images that are collected."""
        done: int = self.told["stages"].get("collect", {"done": 0})["done"]
        return done

    def answered(self, site: str) -> int:
        """Images that a site has answered."""
        count: int = self.told["sites"].get(site, {"images": {"answered": 0}})["images"]["answered"]
        return count

    def away(self, sites: Sequence[str]) -> bool:
        """Whether some sites are all shown as not connected."""
        return all(self.told["sites"].get(site, {}).get("connected") is False for site in sites)


def _environment() -> dict[str, str]:
    """Without proxies: there are none in the network. With this interpreter's commands first."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"PATH": os.pathsep.join([str(_BIN), os.environ.get("PATH", os.defpath)])}
