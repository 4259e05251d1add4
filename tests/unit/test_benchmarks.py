"""Every benchmark runs, on a few small images; what it measures there means nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
OPTIONS = {
    "catalogue_build": [],
    "exclusion_speed": [],
    "fuzz": [],
    "lying_site": [],
    "mask_size": [],
    "orchestration": ["--engine", "inline"],
    "server_memory": [],
    "student_recipe": [],
    "training_step": [],
}
TRIED_ELSEWHERE = {"network", "soak"}  # in tests/federation/test_network.py and test_kills.py


def test_every_benchmark_is_tried_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")} == (
        set(OPTIONS) | TRIED_ELSEWHERE
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_a_benchmark_runs_and_prints_a_table_and_its_target(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--tiny", *OPTIONS[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "\n|--" in done.stdout
    assert "\ntarget: " in done.stdout
