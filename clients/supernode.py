"""A site's Flower SuperNode and resident ClientApp: their command lines, and a supervisor that keeps them connected.

A SuperNode that was killed is refused by the SuperLink (HTTP 412, Flower's exit code 305) until its last heartbeat has
run out, about a minute. One whose key is not registered yet is refused with the same code. In both cases waiting is
the cure, so the supervisor starts it again, with growing pauses, and says in the log what it waits for.
"""

import logging
import re
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from consilium.common.errors import MachineError, SettingsError
from consilium.common.identity.key_files import private_folder, write_private
from consilium.common.processes import Child, ProcessGroup, flower_environment, free_port

LOG: Final = logging.getLogger(__name__)

_REFUSED: Final = "Exit Code: 305"
_CONNECTED: Final = "SuperNode ID:"
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 8.0
_LOOK_EVERY_S: Final = 0.2
_RUNTIME_KEY: Final = "runtime.secret"
_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f]")

NodeConfig = Mapping[str, bool | int | float | str]
"""What the ClientApp finds in ``context.node_config``: kebab-case keys, plain values."""


def supernode_command(
    superlink_address: str,
    ca_certificate: Path,
    node_key: Path,
    node_config: NodeConfig,
    *,
    runtime_port: int,
    secret_file: Path,
) -> list[str]:
    """Return the ``flower-supernode`` command of a site.

    Parameters
    ----------
    superlink_address
        ``host:port``; the server's certificate must be valid for the host.
    ca_certificate
        PEM file of the authority that certified the server.
    node_key
        Private key file of `make_node_key`; its public half is registered with the SuperLink.
    node_config
        Visible in the process list: no secrets.
    runtime_port
        Loopback port at which the resident ClientApp fetches messages.
    secret_file
        Who holds it may do so.

    Raises
    ------
    SettingsError
        If a key or value can not be told to Flower.
    """
    command = [
        *("flower-supernode", "--superlink", superlink_address, "--root-certificates", str(ca_certificate)),
        *("--auth-supernode-private-key", str(node_key), "--port", str(runtime_port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret_file)),
    ]
    if node_config:
        pairs = (f"{_config_key(key)}={_config_value(key, value)}" for key, value in node_config.items())
        command += ["--node-config", " ".join(pairs)]
    return command


@dataclass(frozen=True)
class SuperNodeSettings:
    """What a site's SuperNode needs.

    Parameters
    ----------
    superlink_address, ca_certificate, node_key, node_config
        As in `supernode_command`.
    home
        Private folder of the SuperNode; becomes ``FLWR_HOME``.
    log_folder
        Receives ``supernode.log`` and ``clientapp.log``.
    client_app
        ``module:attribute`` of the installed ClientApp.
    extra_environment
        Set for both processes.
    """

    superlink_address: str
    ca_certificate: Path
    node_key: Path
    node_config: NodeConfig
    home: Path
    log_folder: Path
    client_app: str = "consilium.clients.app:app"
    extra_environment: Mapping[str, str] | None = None


class SuperNode:
    """A supervised SuperNode; a context manager that stops it with all it started.

    Parameters
    ----------
    settings
        Of the site.
    name
        For messages.
    patience_s
        Seconds it may be refused or fail in a row, since it was last connected, before the supervisor gives up; at
        least 90, as a refusal after a crash lasts about 60. An unreachable SuperLink does not count: Flower itself
        waits for that without end.
    """

    def __init__(self, settings: SuperNodeSettings, *, name: str = "supernode", patience_s: float = 120.0) -> None:
        if patience_s < 90:
            raise SettingsError(f"a SuperNode must be retried for at least 90 s; got {patience_s:g}")
        self.name: Final = name
        self._settings: Final = settings
        self._patience_s: Final = patience_s
        self._ending: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._supervise, name=f"supervise {name}", daemon=True)
        self._failure: MachineError | None = None
        self._processes: Final = ProcessGroup()
        self._log_start = 0
        self._port = 0
        try:
            self._supernode = self._start_supernode()
            self._resident = self._start_resident()
        except BaseException:
            self._processes.stop()
            raise
        self._thread.start()

    @property
    def children(self) -> tuple[Child, ...]:
        """The processes running at present: the SuperNode and the resident ClientApp."""
        return self._processes.children

    def connected(self) -> bool:
        """Return whether the present process has been accepted by the SuperLink."""
        return self._supernode.exit_status() is None and _CONNECTED in self._output()

    def check(self) -> None:
        """Raise what made the supervisor give up, if it did.

        Raises
        ------
        MachineError
            With the end of the log.
        """
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Wait until the supervisor gives up or `stop` is called from elsewhere; then `check`."""
        while self._thread.is_alive():
            self._thread.join(1.0)  # in steps, so that an interrupt is heard
        self.check()

    def stop(self) -> None:
        """Stop the SuperNode, which tells the SuperLink that it leaves; safe to repeat."""
        self._ending.set()
        self._thread.join()
        self._processes.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_supernode(self) -> Child:
        settings = self._settings
        self._port = free_port()
        secret_file = private_folder(settings.home) / _RUNTIME_KEY
        if not secret_file.exists():
            write_private(secret_file, secrets.token_hex(32).encode())
        command = supernode_command(
            settings.superlink_address,
            settings.ca_certificate.resolve(),
            settings.node_key.resolve(),
            settings.node_config,
            runtime_port=self._port,
            secret_file=secret_file.resolve(),
        )
        self._log_start = _size(settings.log_folder / "supernode.log")
        return self._start_child("supernode", command)

    def _start_resident(self) -> Child:
        settings = self._settings
        command = [sys.executable, "-P", "-m", "consilium.clients.resident", f"127.0.0.1:{self._port}"]
        command += [str((settings.home / _RUNTIME_KEY).resolve()), settings.client_app]
        return self._start_child("clientapp", command)

    def _start_child(self, kind: str, command: list[str]) -> Child:
        settings = self._settings
        environment = flower_environment(settings.home) | dict(settings.extra_environment or {})
        log = settings.log_folder / f"{kind}.log"
        name = f"{self.name} {kind}"
        return self._processes.add(Child(name, command, log, environment=environment, folder=settings.home))

    def _output(self) -> str:
        """Return the first 64 KiB that the present SuperNode process wrote."""
        with self._supernode.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read(65536).decode(errors="replace")

    def _supervise(self) -> None:
        try:
            self._keep_running()
        except MachineError as error:
            self._failure = error
            LOG.error("%s", error)

    def _keep_running(self) -> None:
        trouble_since: float | None = None
        pause_s = _FIRST_PAUSE_S
        while not self._ending.is_set():
            ended = self._supernode if self._supernode.wait(_LOOK_EVERY_S) is not None else self._resident
            status = ended.exit_status()
            if status is None:
                continue
            output = self._output()
            was_connected = _CONNECTED in output
            now = time.monotonic()
            if trouble_since is None or was_connected:
                trouble_since, pause_s = now, _FIRST_PAUSE_S if was_connected else pause_s
            if now - trouble_since > self._patience_s:
                raise MachineError(
                    f"{ended.name} failed for {self._patience_s:g} s; its log {ended.log} ends:\n{ended.tail()}"
                )
            LOG.warning("%s %s; next try in %.0f s", ended.name, _cause(output, status), pause_s)
            if self._ending.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._restart(ended)

    def _restart(self, ended: Child) -> None:
        """Start the ended process again; the resident ClientApp goes with its SuperNode, but not the other way round.

        (A SuperNode whose ClientApp is gone answers the server with an error for the message in hand; a SuperNode that
        is restarted forgets the message.)
        """
        gone = (self._resident, self._supernode) if ended is self._supernode else (self._resident,)
        for child in gone:
            child.stop()
            self._processes.discard(child)
        if ended is self._supernode:
            self._supernode = self._start_supernode()
        self._resident = self._start_resident()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cause(output: str, status: int) -> str:
    """Say why a SuperNode ended, and what is waited for."""
    if _REFUSED in output:
        return (
            "is refused by the SuperLink: waiting until its former connection has run out (about a minute after a "
            "crash), or until its key is registered"
        )
    return f"ended with status {status}"


def _config_key(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise SettingsError(f"a node config key has letters, digits, '-' and '_'; got {key!r}")
    return key


def _config_value(key: str, value: bool | float | str) -> str:
    """Write a value as the one-line TOML that Flower's own pattern finds in ``--node-config``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if _CONTROL_CHARACTERS.search(value) or ("'" in value and '"' in value):
        raise SettingsError(f"node config {key!r}: no control characters, no two kinds of quotes; got {value!r}")
    return f"'{value}'" if "'" not in value else '"' + value.replace("\\", "\\\\") + '"'
