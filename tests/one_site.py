"""The smallest study there is: `tests/tiny.toml` with one site, run in one process, and what must come out wherever it is run."""

import os
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from consilium.common.settings import parse, read_toml
from consilium.server.simulate import simulate
from consilium.server.simulation import SimulatedStudy

ROOT: Final = Path(__file__).parents[1]
TINY: Final = ROOT / "tests" / "tiny.toml"
BIN: Final = Path(sys.executable).parent
FACTS: Final = ("pseudo_masks.u8", "selection.csv", "student/student.safetensors")


def one_site(*, short: bool = False, **changes: object) -> SimulatedStudy:
    """The settings, with some tables replaced; ``short`` trains for a few steps, and its masks mean nothing."""
    document = read_toml(TINY) | {"sites": ["north"], "fine-tune": {"sites": []}} | changes
    north = document["simulation"]["sites"]["north"]
    if short:
        document["student"]["training"]["image-budget"], north["training"]["image-budget"] = 32, 16
    document["simulation"]["sites"] = {"north": north}
    return parse(SimulatedStudy, document, "one site")


def simulate_quietly(settings: SimulatedStudy, folder: Path) -> Path:
    """Run a study in this process; gives its run folder."""
    with Path(os.devnull).open("w") as nowhere:
        simulate(settings, folder, "inline", Console(file=nowhere))
    return folder


def differing(one: Path, other: Path) -> list[str]:
    """Facts of two run folders that are not the same bytes."""
    return [name for name in FACTS if (one / name).read_bytes() != (other / name).read_bytes()]
