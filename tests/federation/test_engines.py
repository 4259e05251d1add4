"""The same study on every engine: real SuperLink, SuperNodes, TLS and gateways; Flower's simulation; one process."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from consilium.common.settings import load, parse, read_toml
from consilium.server.run_folder import RunFolder
from consilium.server.simulate import simulate
from consilium.server.simulation import SimulatedStudy, prepare

TINY = Path(__file__).parents[1] / "tiny.toml"
CONSENSUS = read_toml(TINY) | {"preset": "consensus"}  # temperatures, views, weights and gate: all that could differ
FACTS = ("pseudo_masks.u8", "site_masks.u8", "selection.csv", "student/student.safetensors")


def run(folder: Path, engine: Any, **student: Any) -> dict[str, Any]:
    document = CONSENSUS | {"student": CONSENSUS["student"] | student}
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        return simulate(parse(SimulatedStudy, document, "tiny"), folder, engine, Console(file=log))


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inline") / "run"
    run(folder, "inline")
    return folder


@pytest.fixture(autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_study_leaves_everything_the_run_folder_promises(inline: Path) -> None:
    metrics = json.loads((inline / "metrics.json").read_text())
    assert metrics["schema"] == 1
    assert metrics["images"]["transferal"] == 24
    assert {site["images"]["answered"] for site in metrics["sites"].values()} == {36}
    assert {site["fusion"]["validation"]["images"] for site in metrics["sites"].values()} == {2}
    assert max(site["fusion"]["weight"] for site in metrics["sites"].values()) == 1000
    assert metrics["sites"]["east"]["fine_tuned"]["local_dice"]["n"] == 6
    assert metrics["sites"]["north"]["fine_tuned"] is None
    assert metrics["student"]["pooled_dice"]["n"] == 12
    for name in ("report.html", "selection.csv", "student/card.json", "ledger.sqlite"):
        assert (inline / name).stat().st_size > 0
    assert not (inline / "student" / "student.onnx").exists(), "these settings do without"


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_every_engine_gives_the_same_bytes(engine: str, inline: Path, tmp_path: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for site in CONSENSUS["sites"]:  # trained before any engine starts, always by the same command
        shutil.copytree(inline / "sites" / site / "teacher", tmp_path / "run" / "sites" / site / "teacher")
    metrics = run(tmp_path / "run", engine, onnx=engine == "processes")
    assert (tmp_path / "run" / "student" / "student.onnx").exists() == (engine == "processes")
    for name in FACTS:
        assert (tmp_path / "run" / name).read_bytes() == (inline / name).read_bytes(), name
    assert metrics["student"] == json.loads((inline / "metrics.json").read_text())["student"]


def test_started_again_a_finished_study_does_nothing_twice(inline: Path) -> None:
    before = {name: (inline / name).stat().st_mtime_ns for name in FACTS}
    run(inline, "inline")
    assert {name: (inline / name).stat().st_mtime_ns for name in FACTS} == before


def test_the_same_settings_give_the_same_data(tmp_path: Path) -> None:
    hashes = {prepare(RunFolder(tmp_path / name), load(SimulatedStudy, TINY)).hash for name in ("a", "b")}
    assert len(hashes) == 1
    other = parse(SimulatedStudy, read_toml(TINY) | {"seed": 4}, "x")
    assert prepare(RunFolder(tmp_path / "c"), other).hash not in hashes
