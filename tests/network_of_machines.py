"""Machines of a small network: each a network namespace with an address and a name of its own, joined by a switch.

Nothing of it is reachable from outside, and nothing outside from it: no interface is in the namespace that this process is
in. Needs Linux, iproute2 and root. Addresses and names are free to be used by several networks at a time.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

SUBNET: Final = "10.77.0"
DOMAIN: Final = "hospitals.test"
ETC: Final = Path("/etc/netns")
"""`ip netns exec NAME` lays the files of the folder NAME in here over those of /etc."""
_SWITCH: Final = "switch"
_NAME: Final = re.compile(r"consilium-(\d+)-\w+")


def why_not() -> str:
    """Say why there can be no such network here; empty if there can."""
    missing = [name for name in ("ip", "ss") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 can not be found"
    try:
        with Network(["probe"]):
            return ""
    except (subprocess.CalledProcessError, OSError) as error:
        told = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"network namespaces are not permitted: {told.strip()}"


class Network:
    """Machines and the switch between them; a context manager that takes them away with all that still runs there.

    Parameters
    ----------
    machines
        Their names; the first has the address 10.77.0.1, and so on. Each knows each as NAME.hospitals.test.
    """

    def __init__(self, machines: Sequence[str]) -> None:
        self.machines: Final = tuple(machines)

    def address(self, machine: str) -> str:
        """IPv4 address of a machine."""
        return f"{SUBNET}.{self.machines.index(machine) + 1}"

    def name(self, machine: str) -> str:
        """DNS name of a machine."""
        return f"{machine}.{DOMAIN}"

    def command(self, machine: str, *arguments: str | Path) -> list[str]:
        """Write the command that runs another one on a machine, under the same process id."""
        return ["ip", "netns", "exec", _namespace(machine), *map(str, arguments)]

    def cut(self, machine: str) -> None:
        """Take a machine's cable out of the switch: packets are lost without a word, and its own address stays."""
        _ip("-n", _namespace(_SWITCH), "link", "set", f"to-{machine}", "down")

    def restore(self, machine: str) -> None:
        """Put the cable back."""
        _ip("-n", _namespace(_SWITCH), "link", "set", f"to-{machine}", "up")

    def listening(self, machine: str) -> list[tuple[str, int]]:
        """Addresses and ports of a machine at which some process waits for TCP connections or UDP packets."""
        told = _run(*self.command(machine, "ss", "-H", "-l", "-t", "-u", "-n"))
        local = [line.split()[4].rpartition(":") for line in told.splitlines()]
        return [(address.strip("[]").partition("%")[0], int(port)) for address, _, port in local]

    def __enter__(self) -> Self:
        _remove(name for name in _namespaces() if not _is_alive(int(_NAME.fullmatch(name)[1])))
        try:
            self._make()
        except BaseException:
            self._take_away()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_away()

    def _make(self) -> None:
        switch = _namespace(_SWITCH)
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _ip("-n", switch, "link", "set", "bridge", "up")
        known = "".join(f"{self.address(machine)} {self.name(machine)}\n" for machine in self.machines)
        for machine in self.machines:
            here, port = _namespace(machine), f"to-{machine}"
            _ip("netns", "add", here)
            _ip("link", "add", "eth0", "netns", here, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", here, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", here, "link", "set", interface, "up")
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            (ETC / here).mkdir(parents=True)
            (ETC / here / "hosts").write_text(f"127.0.0.1 localhost\n{known}", "ascii")

    def _take_away(self) -> None:
        _remove(_namespace(machine) for machine in (*self.machines, _SWITCH))
        with contextlib.suppress(OSError):
            ETC.rmdir()  # if it was not there before


def _namespace(machine: str) -> str:
    return f"consilium-{os.getpid()}-{machine}"


def _namespaces() -> list[str]:
    """Namespaces of this module, of this process or another."""
    found = {line.split()[0] for line in _ip("netns", "list").splitlines()}
    return sorted(name for name in found | {path.name for path in ETC.glob("*")} if _NAME.fullmatch(name))


def _remove(names: Iterable[str]) -> None:
    for name in names:
        shutil.rmtree(ETC / name, ignore_errors=True)
        with contextlib.suppress(subprocess.CalledProcessError):  # it was not made, or not whole
            for process in _ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
