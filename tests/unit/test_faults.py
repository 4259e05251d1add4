"""What a full disk, a damaged file, a second coordinator, a busy port or a dead site does: it is named, and nothing is lost.

The full disk is a real one: a file system of a few hundred kilobytes in memory, where this user may mount one; else, and besides,
a limit on the size of files. `docs/faults.md` lists what breaks and names the test of each.
"""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from consilium.common.errors import MachineError, StateError, StudyError
from consilium.common.settings import parse, read_toml
from consilium.server.disk import in_words
from consilium.server.ledger import Ledger
from consilium.server.run_folder import RunFolder
from consilium.server.simulation import SimulatedStudy
from consilium.server.status import status
from consilium.server.study_run import StudyRun
from consilium.server.superlink import SuperLink
from tests.federation_in_memory import FederationInMemory
from tests.one_site import TINY, one_site, simulate_quietly
from tests.unit.test_absence import asked, goes_away
from tests.unit.test_collect import COUNT, SITES, Case

GO_ON = "start the study again: it goes on where it was"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a study that nothing disturbed."""
    settings = one_site(short=True, exclusion={"alpha": 0.0, "beta": 8.0})
    return simulate_quietly(settings, tmp_path_factory.mktemp("undisturbed") / "run")


def with_its_site(undisturbed: Path, folder: Path) -> Path:
    """A new run folder whose site has its teacher already."""
    (folder / "sites" / "north").mkdir(parents=True)
    for held in (undisturbed / "sites" / "north").iterdir():
        if held.name in ("data", "teacher"):
            shutil.copytree(held, folder / "sites" / "north" / held.name)
        elif held.suffix == ".toml":
            shutil.copy(held, folder / "sites" / "north" / held.name)
    return folder


# --- a full disk


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
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607 - wherever it lies


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
    with pytest.raises(MachineError, match=GO_ON) as told:
        case.collect()
    assert "full" in str(told.value) or "No space left" in str(told.value)
    ballast.unlink()
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    assert not case.ledger.asked_again()


def test_a_whole_study_on_a_full_disk_says_so_and_ends_with_the_bytes_of_one_that_had_room(
    small_disk: Callable[[int], Path], undisturbed: Path
) -> None:
    folder = with_its_site(undisturbed, small_disk(64 * 1024) / "run")
    settings, told = one_site(short=True, exclusion={"alpha": 0.0, "beta": 8.0}), []
    for room in (0, 300, 700):  # KiB: each gets further than the one before
        ballast = fill(folder.parent, but=room * 1024)
        try:
            simulate_quietly(settings, folder)
        except Exception as error:
            told.append(str(in_words(error)))  # as the command tells it
        ballast.unlink()
    simulate_quietly(settings, folder)
    assert told
    assert all(GO_ON in text and ("No space left" in text or "full" in text) for text in told), told
    for name in ("pseudo_masks.u8", "selection.csv", "student/student.safetensors"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_ledger_that_can_grow_no_further_is_told_and_what_it_holds_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, monkeypatch)

    def tell_much() -> None:
        for _ in range(1000):
            case.ledger.tell("collect", "x" * 500)

    with files_of_at_most(512 * 1024), pytest.raises(MachineError, match=GO_ON):
        tell_much()
    told = len(case.ledger.events())
    assert told > 0
    case.collect()
    assert len(case.ledger.events()) == told
    assert (case.masks.read() == case.expected(*SITES)).all()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/run/student.safetensors"),
        OSError("49152 requested and 44928 written"),  # numpy's own words
    ],
)
def test_a_full_disk_is_known_whatever_library_ran_into_it(error: OSError) -> None:
    outer = RuntimeError("serialising failed")
    outer.__cause__ = error
    assert GO_ON in str(in_words(outer))


def test_what_is_not_the_disk_is_not_called_so() -> None:
    assert in_words(ValueError("of something else")) is None
    assert in_words(OSError("of something else")) is None


# --- damaged files


def damaged_at_its_start(content: bytes) -> bytes:
    return b"rubbish!" * 16 + content[128:]


def damaged_in_the_middle(content: bytes) -> bytes:
    return content[:4096] + b"\xa5" * (len(content) - 4096)


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def open_and_check(path: Path) -> None:
    with closing(Ledger.open(path)) as ledger:
        ledger.check()


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
        open_and_check(path)
    path.rename(tmp_path / "moved-away.sqlite")
    case.ledger = Ledger.open(path)
    case.collect()
    assert (case.masks.read() == case.expected(*SITES)).all()
    case.ledger.close()


@pytest.mark.parametrize("name", ["pseudo_masks.u8", "site_masks.u8"])
def test_masks_that_were_cut_are_named_and_deleted_with_the_ledger_they_are_collected_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, monkeypatch)
    case.collect()
    whole = case.masks.read().copy()
    os.truncate(tmp_path / name, 100)

    def opened() -> StudyRun:
        return StudyRun(RunFolder(tmp_path), case.study, case.catalogue, case.ledger)

    with pytest.raises(StateError, match=rf"{name} has 100 bytes in place of \d+, though the ledger says") as told:
        opened()
    assert "delete it and ledger.sqlite to collect again" in str(told.value)
    assert (tmp_path / name).stat().st_size == 100, "it is not filled up with nothing"
    case.ledger.close()
    for path in (tmp_path / name, *tmp_path.glob("ledger.sqlite*")):
        path.unlink()
    case.ledger = Ledger.open(tmp_path / "ledger.sqlite")
    case.masks = opened().pseudo_masks
    case.collect()
    assert (case.masks.read() == whole).all()
    case.ledger.close()


# --- other settings, a second coordinator, a busy port


def test_other_settings_for_a_folder_are_refused_by_name_and_its_own_go_on(tmp_path: Path) -> None:
    document = read_toml(TINY)
    settings = parse(SimulatedStudy, document, "tiny")
    folder = RunFolder(tmp_path / "run")
    folder.create(settings.study)
    other = parse(SimulatedStudy, document | {"seed": 4}, "tiny")
    with pytest.raises(StateError, match=r"seed: 3 there, 4 given(.|\n)*give another run folder with --run"):
        simulate_quietly(other, folder.root)
    folder.create(settings.study)
    assert folder.open_study() == settings.study


def test_a_second_coordinator_on_a_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    settings = parse(SimulatedStudy, read_toml(TINY), "tiny")
    folder = RunFolder(tmp_path / "run")
    folder.create(settings.study)
    command = [sys.executable, "-m", "consilium.server.cli", "simulate", str(TINY), "--run", str(folder.root)]
    with folder.locked("simulation.lock"):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "is in use by another process; wait for it, or stop it" in second.stderr
    assert "Traceback" not in second.stderr
    with folder.locked("simulation.lock"):
        assert folder.in_use()


def test_a_busy_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consilium.server.superlink_home._PORT_PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"port {port} is in use by another process: stop that one, or choose"):
            SuperLink.start(tmp_path / "link", port=port)


# --- a dead site, and a study that cannot go on


def test_a_dead_site_is_shown_as_away_within_a_minute_and_costs_nobody_elses_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, monkeypatch, quorum=2, connect_s=120.0, deadline_s=3600.0)
    folder = RunFolder(tmp_path)
    folder.create(case.study)
    for site in SITES:
        case.ledger.site_described(site, json.dumps({"output": "soft", "labels": ["lesion"], "teacher": {}}))
    run = StudyRun(folder, case.study, case.catalogue, case.ledger)
    goes_away(case, 0, 10_000)  # it dies with all it was asked
    dies, shown = case.federation.before_receive, []

    def look(federation: FederationInMemory) -> None:
        dies(federation)
        if not shown and status(tmp_path)["sites"]["west"]["connected"] is False:
            shown.append((federation.now, status(tmp_path)))

    case.federation.before_receive = look
    with folder.locked():
        run.collect(case.federation, dict.fromkeys(SITES, [False] * COUNT))
    at, told = shown[0]
    assert at <= 60
    assert told["status"] == "running"
    assert told["sites"]["west"]["last_event"]["text"] == "is not connected; it is asked again as soon as it is back"
    assert told["stages"]["collect"]["note"] == "waiting for west"
    assert told["sites"]["east"]["connected"]
    assert [asked(case, site) for site in ("east", "north")] == [COUNT, COUNT]
    assert (run.pseudo_masks.read()[-1] == case.expected("east", "north")[-1]).all()
    assert not case.ledger.asked_again()


def test_a_study_that_cannot_go_on_leaves_metrics_and_a_report_that_say_why(undisturbed: Path, tmp_path: Path) -> None:
    settings = one_site(short=True, exclusion={"alpha": 147456.0, "beta": 0.0})  # no mask is that large, or that sure
    folder = with_its_site(undisturbed, tmp_path / "run")
    with pytest.raises(StudyError, match="every one of the 24 transferal images was excluded"):
        simulate_quietly(settings, folder)
    metrics = (folder / "metrics.json").read_text()
    assert '"status": "failed"' in metrics
    assert "every one of the 24 transferal images was excluded" in metrics
    assert "This study failed" in (folder / "report.html").read_text()


def test_every_test_that_the_document_names_exists() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(tests/\w+/\w+\.py)::(\w+)`", (root / "docs" / "faults.md").read_text("utf-8"))
    assert len(named) > 15
    assert [test for file, test in named if f"def {test}(" not in (root / file).read_text("utf-8")] == []
