"""What a full disk, a damaged file, a second coordinator or a busy port does: it is named, and nothing is lost.

The full disk is a real one: a file system of a few hundred kilobytes in memory, where this user may mount one.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from consilium.common.errors import ConsiliumError, MachineError, StateError, StudyError
from consilium.common.settings import parse, read_toml
from consilium.server.ledger import Ledger
from consilium.server.run_folder import MaskFile, RunFolder
from consilium.server.simulate import simulate
from consilium.server.simulation import SimulatedStudy
from consilium.server.superlink import SuperLink
from tests.unit.test_collect import SITES, Case

TINY = Path(__file__).parents[1] / "tiny.toml"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Give a function that mounts a disk of so many KiB, and mounts it again with another size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = False

    def mount(kib: int) -> Path:
        nonlocal mounted
        options = f"size={kib}k" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small disk can be mounted by root only")
        mounted = True
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Leave ``but`` bytes free."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_bsize - but)))
    return ballast


def test_collecting_on_a_disk_that_fills_up_is_told_and_goes_on_when_there_is_room(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(small_disk(4096), monkeypatch)
    ballast = fill(case.folder, but=32 * 1024)
    with pytest.raises(MachineError, match="start the study again: it goes on where it was") as told:
        case.collect()
    assert "full" in str(told.value) or "No space left" in str(told.value)
    ballast.unlink()
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert not case.ledger.asked_again()


def test_a_whole_study_on_a_full_disk_says_so_and_ends_with_the_bytes_of_one_that_had_room(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    document = read_toml(TINY)
    document["fine-tune"] = {"sites": []}
    settings = parse(SimulatedStudy, document, "tiny")

    def run(folder: Path) -> None:
        with (tmp_path / "log").open("w") as log:
            simulate(settings, folder, "inline", Console(file=log))

    run(tmp_path / "roomy")
    folder = small_disk(64 * 1024) / "run"
    shutil.copytree(tmp_path / "roomy" / "sites", folder / "sites", ignore=shutil.ignore_patterns("audit.jsonl"))
    told = []
    for room in (0, 100, 300, 500, 700):  # KiB: each gets further than the one before
        ballast = fill(folder.parent, but=room * 1024)
        try:
            run(folder)
        except (ConsiliumError, OSError) as error:
            told.append(str(error))
        ballast.unlink()
    run(folder)
    assert told
    assert all("No space left" in text or "full" in text for text in told), told
    for name in ("pseudo_masks.u8", "selection.csv", "student/student.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "roomy" / name).read_bytes(), name


def damaged_at_its_start(content: bytes) -> bytes:
    return b"rubbish!" * 16 + content[128:]


def damaged_in_the_middle(content: bytes) -> bytes:
    return content[:4096] + b"\xa5" * (len(content) - 4096)


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [damaged_at_its_start, damaged_in_the_middle, cut_in_half])
def test_a_damaged_ledger_is_named_and_without_it_the_sites_are_asked_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, monkeypatch)
    case.collect()
    case.ledger.close()
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match=r"ledger\.sqlite is damaged .*the study asks the sites again"):
        case.ledger = Ledger.open(path)
        case.collect()
        case.ledger.events()
    case.ledger.close()
    path.rename(tmp_path / "moved away")
    case.ledger = Ledger.open(path)
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    case.ledger.close()


@pytest.mark.parametrize("name", ["pseudo_masks.u8", "site_masks.u8"])
def test_masks_that_were_cut_are_named_not_filled_up_with_nothing(name: str, tmp_path: Path) -> None:
    file = MaskFile(tmp_path / name, 4, (1, 8, 8))
    file.write(0, np.ones((4, 1, 8, 8), np.uint8))
    os.truncate(tmp_path / name, 100)
    with pytest.raises(StateError, match=rf"{name} has 100 bytes in place of 256, though the ledger says"):
        MaskFile(tmp_path / name, 4, (1, 8, 8), holds_masks=True)


def test_other_settings_and_a_second_coordinator_are_refused_by_name(tmp_path: Path) -> None:
    document = read_toml(TINY)
    settings = parse(SimulatedStudy, document, "tiny")
    folder = RunFolder(tmp_path / "run")
    folder.create(settings.study)
    other = parse(SimulatedStudy, document | {"seed": 4}, "tiny")
    with pytest.raises(StateError, match="seed: 3 there, 4 given"):
        simulate(other, folder.root, "inline", Console(file=(tmp_path / "log").open("w")))
    command = [sys.executable, "-m", "consilium.server.cli", "simulate", str(TINY), "--run", str(folder.root)]
    with folder.locked("simulation.lock"):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "is in use by another process" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"port {port} is in use by another process"):
            SuperLink.start(tmp_path / "link", port=port)


def test_a_study_that_cannot_go_on_leaves_metrics_and_a_report_that_say_why(tmp_path: Path) -> None:
    document = read_toml(TINY)
    document["exclusion"] = {"alpha": 147456.0}  # no mask is that large
    document["simulation"]["sites"]["north"]["training"]["image-budget"] = 8
    document["simulation"]["sites"]["east"]["training"]["image-budget"] = 8
    with pytest.raises(StudyError, match="every one of the 24 transferal images was excluded"):
        simulate(
            parse(SimulatedStudy, document, "tiny"), tmp_path / "run", "inline", Console(file=(tmp_path / "log").open("w"))
        )
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    assert '"status": "failed"' in metrics
    assert "every one of the 24 transferal images was excluded" in metrics
    assert "This study failed" in (tmp_path / "run" / "report.html").read_text()
