"""A SuperLink of Flower's, private to one home folder: its processes.

It runs with TLS, node authentication, a database, no installation of dependencies, and with the ServerApp under a
separate ``flower-superexec``: the set-up in which a run survives a killed SuperLink. In front of it is a guard
(`consilium.server.guarded_superlink`); `SuperLink.start` checks that it is up.
"""

import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from consilium.common.errors import MachineError
from consilium.common.identity.certificates import ServerCertificate
from consilium.common.identity.key_files import private_folder
from consilium.common.processes import Child, ProcessGroup, flower_environment, free_port
from consilium.server import superlink_home
from consilium.server.control import Control
from consilium.server.guarded_superlink import FILE_VARIABLE

_READY_TIMEOUT_S: Final = 60.0
_PORT_TRIES: Final = 3
_SHORT_LIFE_S: Final = 5.0
_GRACE_S: Final = 3.0  # sites still connected keep the SuperLink from ending by itself; its database does not mind


class SuperLink:
    """A running SuperLink with its SuperExec; a context manager that stops both.

    Made by `SuperLink.start`. ``control`` asks things of it.
    """

    def __init__(
        self,
        home: Path,
        host: str,
        port: int,
        certificates: ServerCertificate,
        log_folder: Path,
        *,
        virtual: bool = False,
    ) -> None:
        self._virtual: Final = virtual
        self.home: Final = home
        self.port: Final = port
        self.certificates: Final = certificates
        self._host: Final = host
        self._log_folder: Final = log_folder
        self._group: Final = ProcessGroup()
        self._revival: Final = threading.Lock()
        self.control: Final = Control(home, port, certificates.authority)
        self._superlink: Child | None = None
        self._superexec: Child | None = None
        self._started_at: dict[str, float] = {}

    @classmethod
    def start(
        cls,
        home: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certificates: ServerCertificate | None = None,
        log_folder: Path | None = None,
        virtual: bool = False,
    ) -> Self:
        """Start a SuperLink on ``home``, or start it again: database, secrets and port are kept there.

        Parameters
        ----------
        home
            Private folder (mode 0700), one per SuperLink.
        host
            Address to listen on; ``0.0.0.0`` for all.
        port
            0 for the port used last time, or a free one.
        certificates
            Must be valid for 127.0.0.1 too, as the coordinator's own processes connect there. By default a certificate
            for this machine alone is made in ``home``.
        log_folder
            Receives ``superlink.log`` and ``superexec.log``; by default ``home / "log"``.
        virtual
            Serve Flower's simulation engine, whose sites are virtual, in place of SuperNodes.

        Returns
        -------
        SuperLink
            Once it answers on its Control interface.

        Raises
        ------
        MachineError
            If the port is taken, or it does not answer within 60 s; the message has the end of its log.
        StateError
            If the home folder's files are damaged.
        """
        home = superlink_home.open_home(home)
        certificates = certificates or superlink_home.own_certificates(home)
        wanted = port or superlink_home.remembered_port(home)
        if wanted:
            superlink_home.wait_for_port(host, wanted, home)
        for attempt in range(_PORT_TRIES):
            chosen = wanted or free_port()
            link = cls(home, host, chosen, certificates, (log_folder or home / "log").resolve(), virtual=virtual)
            try:
                link._start_processes()
            except BaseException as error:
                link.stop()
                taken = isinstance(error, MachineError) and "address already in use" in str(error)
                if wanted or not taken or attempt == _PORT_TRIES - 1:
                    raise
            else:
                superlink_home.remember_port(home, chosen)
                return link
        raise MachineError("no free port was found")  # not reached: the last attempt raises

    @property
    def local_address(self) -> str:
        """``host:port`` for processes on this machine."""
        return self.control.address

    @property
    def children(self) -> tuple[Child, ...]:
        """The SuperLink's and the SuperExec's processes."""
        return self._group.children

    def revive(self) -> None:
        """Start the SuperLink or SuperExec again if it ended; runs and sites go on where they were.

        Raises
        ------
        MachineError
            If it ended within 5 s of its start: then starting it again would not help.
        """
        with self._revival:
            for child in (self._superlink, self._superexec):
                if child is None or child.exit_status() is None:
                    continue
                if time.monotonic() - self._started_at[child.name] < _SHORT_LIFE_S:
                    raise MachineError(f"{child.name} ends as soon as it starts; its log ends:\n{child.tail()}")
                child.stop()
                self._group.discard(child)
                if child is self._superlink:
                    self._superlink = self._start_superlink()
                else:
                    self._superexec = self._start_superexec()

    def restart(self) -> None:
        """End the SuperLink and start it again, so that it reads its certificate anew; runs and sites go on.

        Raises
        ------
        MachineError
            If it does not come up again.
        """
        with self._revival:
            if self._superlink is None:
                return
            self._superlink.stop()
            self._started_at[self._superlink.name] = float("-inf")  # it did not end by itself
        self.revive()

    def retire(self) -> None:
        """Start no further run: tell the SuperExec to end, and do not wait for it. `stop` follows."""
        if self._superexec is not None:
            self._superexec.terminate()

    def stop(self) -> None:
        """Stop all; safe to repeat. The home folder stays, and `start` takes up from it."""
        self.control.close()  # first: the SuperLink waits for open connections
        self._group.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_processes(self) -> None:
        self._superlink = self._start_superlink()
        self._superexec = self._start_superexec()

    def _start_superlink(self) -> Child:
        tls, secret = self.certificates, superlink_home.superexec_secret(self.home)
        command = [
            *(sys.executable, "-P", "-m", "consilium.server.guarded_superlink"),
            *("--host", self._host, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate)),
            *("--ssl-keyfile", str(tls.key)),
            "--simulation" if self._virtual else "--enable-supernode-auth",
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            *("--database", str(self.home / "superlink.sqlite")),
            "--disable-runtime-dependency-installation",
        ]
        child = self._start_child("superlink", command)
        child.wait_until(self.control.answers, _READY_TIMEOUT_S)
        self.control.require_guard()
        return child

    def _start_superexec(self) -> Child:
        command = [
            *("flower-superexec", "--runtime-api-address", self.local_address),
            *("--root-certificates", str(self.certificates.authority)),
            *("--superexec-auth-secret-file", str(superlink_home.superexec_secret(self.home))),
        ]
        return self._start_child("superexec", command)

    def _start_child(self, name: str, command: list[str]) -> Child:
        environment = flower_environment(private_folder(self.home / "flower"))
        environment[FILE_VARIABLE] = str(superlink_home.control_secret(self.home))
        if name == "superexec":  # the ServerApp inherits it and has no use for the Control interface
            del environment[FILE_VARIABLE]
        self._started_at[name] = time.monotonic()
        log = self._log_folder / f"{name}.log"
        return self._group.add(Child(name, command, log, environment=environment, folder=self.home, grace_s=_GRACE_S))
