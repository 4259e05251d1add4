import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from consilium.common.errors import MachineError
from consilium.common.processes import Child, ProcessGroup, flower_environment, free_port, loopback_no_proxy

# A command that starts a grandchild, says its process id, and stays.
FAMILY = [
    sys.executable,
    "-c",
    "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()",
]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for_output(log: Path) -> str:
    deadline = time.monotonic() + 10
    while not (text := log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return text


def wait_until_dead(*pids: int) -> bool:
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(lives(pid) for pid in pids)


def test_stopping_a_child_ends_what_it_started_too(tmp_path: Path) -> None:
    child = Child("family", FAMILY, tmp_path / "log")
    grandchild = int(wait_for_output(child.log))
    assert lives(child.pid)
    assert lives(grandchild)
    assert child.stop() == 128 + signal.SIGTERM
    assert not lives(child.pid)
    assert not lives(grandchild)
    assert child.stop() == 128 + signal.SIGTERM


def test_a_child_that_ends_by_itself_leaves_no_grandchild_behind(tmp_path: Path) -> None:
    child = Child("short", ["sh", "-c", "sleep 600 & echo $!"], tmp_path / "log")
    assert child.wait(10) == 0
    assert wait_until_dead(int(wait_for_output(child.log)))
    child.stop()


def test_a_child_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = Child("deaf", STUBBORN, tmp_path / "log", grace_s=0.2)
    wait_for_output(child.log)
    start = time.monotonic()
    assert child.stop() == 128 + signal.SIGKILL
    assert 0.2 <= time.monotonic() - start < 3


def test_a_parent_that_is_killed_takes_child_and_grandchild_with_it(tmp_path: Path) -> None:
    script = (
        "import time; from pathlib import Path; from consilium.common.processes import Child\n"
        f"child = Child('family', {FAMILY!r}, Path({str(tmp_path / 'log')!r}))\n"
        "print(child.pid, child.keeper_pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        pids.append(int(wait_for_output(tmp_path / "log")))
        assert all(lives(pid) for pid in pids)
        parent.kill()
    assert wait_until_dead(*pids)


def test_a_killed_keeper_takes_nothing_out_of_reach(tmp_path: Path) -> None:
    child = Child("family", FAMILY, tmp_path / "log")
    grandchild = int(wait_for_output(child.log))
    os.kill(child.keeper_pid, signal.SIGKILL)
    child.stop()
    assert wait_until_dead(child.pid, grandchild)


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no-such-command"):
        Child("ghost", ["no-such-command"], tmp_path / "log")


def test_a_child_that_dies_at_its_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("sick", ["sh", "-c", "echo the disk is full; exit 3"], tmp_path / "log")
    with pytest.raises(MachineError, match=r"(?s)sick ended at its start with status 3.*the disk is full"):
        child.wait_until(lambda: False, 10)
    child.stop()


def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        child = group.add(Child("slow", ["sleep", "600"], tmp_path / "log"))
        with pytest.raises(MachineError, match=r"not ready within 0\.2 s"):
            child.wait_until(lambda: False, 0.2)
    assert not lives(child.pid)


def run_three_and_fail(folder: Path, error: type[BaseException]) -> None:
    script = "trap 'echo $0 >> order; exit' TERM; echo up; while :; do sleep 0.02; done"
    with ProcessGroup() as group:
        for name in ("first", "second", "third"):
            child = group.add(Child(name, ["sh", "-c", script, name], folder / name, folder=folder))
            wait_for_output(child.log)
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_group_ends_last_started_first_whatever_ends_the_block(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run_three_and_fail(tmp_path, error)
    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]


def test_the_log_keeps_what_was_there_and_its_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    for word in ("one", "two"):
        child = Child(word, ["sh", "-c", f"echo {word}; echo and {word} >&2"], log)
        assert child.wait(10) == 0
        child.stop()
    assert log.read_text() == "one\nand one\ntwo\nand two\n"
    assert child.tail(2) == "two\nand two"


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_flower_keeps_to_its_home_and_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    environment = flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/somewhere"


def test_loopback_never_goes_through_a_proxy() -> None:
    assert loopback_no_proxy({}) == "127.0.0.1,localhost"
    assert loopback_no_proxy({"no_proxy": "a.org, localhost"}) == "a.org,localhost,127.0.0.1"
