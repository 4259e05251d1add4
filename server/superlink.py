"""Flower's SuperLink, private to one home folder, and what the coordinator asks of it.

The SuperLink runs with TLS, node authentication, a database, no installation of dependencies, and with the ServerApp
under a separate ``flower-superexec``: the set-up in which a run survives a killed SuperLink.

Flower 1.41 serves three interfaces on one port: Fleet (the sites; authenticated by node keys), Runtime (the processes
of the coordinator's own machine) and Control (submit, stop, register). The open-source Control interface authenticates
nobody: whoever reaches the port could submit code to every site. This module, run as a script, therefore starts the
SuperLink with a guard in front that lets Fleet requests through from anywhere, Runtime requests from this machine
only, and Control requests only with the secret of the home folder. `SuperLink.start` checks that the guard is up.
"""

import contextlib
import errno
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from consilium.common.errors import MachineError, SettingsError, StateError, StudyError
from consilium.common.identity import (
    ServerCertificate,
    make_authority,
    make_server_certificate,
    private_folder,
    read_node_public_key,
    write_private,
)
from consilium.common.processes import Child, ProcessGroup, flower_environment, free_port, loopback_no_proxy
from consilium.server.bundle import RunConfig

_HEADER: Final = "x-consilium-control"
_FILE_VARIABLE: Final = "CONSILIUM_CONTROL_SECRET_FILE"
_LOOPBACK: Final = ("127.0.0.1", "::1")
_READY_TIMEOUT_S: Final = 60.0
_PORT_TRIES: Final = 3
_POLL_S: Final = 0.2
_WATCH_S: Final = 1.0
_PORT_PATIENCE_S: Final = 8.0
_SHORT_LIFE_S: Final = 5.0
_SILENCE_S: Final = 120.0
_CERTIFICATE_DAYS: Final = 365
_GRACE_S: Final = 3.0  # sites still connected keep the SuperLink from ending by itself; its database does not mind


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Parameters
    ----------
    status
        ``pending``, ``starting``, ``running`` or ``finished``.
    sub_status
        ``completed``, ``failed`` or ``stopped`` once finished, else empty.
    details
        Flower's reason for a failure, else empty.
    """

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """Whether the ServerApp returned without an error."""
        return self.finished and self.sub_status == "completed"


@dataclass(frozen=True)
class RegisteredNode:
    """A site's node as the SuperLink knows it.

    Parameters
    ----------
    node_id
        Flower's address of the node; stays the same for one registration.
    name
        As given to `SuperLink.register`.
    public_key
        As `read_node_public_key` gives it.
    online
        Whether its SuperNode is connected.
    """

    node_id: int
    name: str
    public_key: bytes
    online: bool


class SuperLink:
    """A running SuperLink with its SuperExec; a context manager that stops both.

    Made by `SuperLink.start`.
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
        self._control: Final = _control_client(self.local_address, certificates.authority, self._secret_file)
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
        home = private_folder(home.resolve())
        for name in ("superexec.secret", "control.secret"):
            if not (home / name).exists():
                write_private(home / name, secrets.token_hex(32).encode())
        certificates = certificates or _own_certificates(home / "tls")
        wanted = port or _remembered_port(home)
        if wanted:
            _wait_for_port(host, wanted, home)
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
                _remember_port(home, chosen)
                return link
        raise MachineError("no free port was found")  # not reached: the last attempt raises

    @classmethod
    def attach(cls, home: Path, certificates: ServerCertificate) -> Self:
        """Speak to the SuperLink that another process of this machine runs on ``home``; `stop` only hangs up.

        Raises
        ------
        MachineError
            If none answers.
        """
        home = home.resolve()
        port = _remembered_port(home)
        if not port or not (home / "control.secret").exists():
            raise MachineError(f"no SuperLink was ever started on {home}; start the coordinator first")
        link = cls(home, "", port, certificates, home / "log")
        try:
            answers = link._answers()
        except BaseException:
            link.stop()
            raise
        if not answers:
            link.stop()
            raise MachineError(f"nothing answers on {link.local_address}; is the coordinator running?")
        return link

    @property
    def local_address(self) -> str:
        """``host:port`` for processes on this machine."""
        return f"127.0.0.1:{self.port}"

    @property
    def children(self) -> tuple[Child, ...]:
        """The SuperLink's and the SuperExec's processes."""
        return self._group.children

    def register(self, public_key_path: Path, name: str) -> int:
        """Register a site's node key; its SuperNode may connect from now on.

        Parameters
        ----------
        public_key_path
            The ``.pub`` file of the site's node key.
        name
            Unique name of the site; the ServerApp finds it in ``NodeInfo.name``.

        Returns
        -------
        int
            The node id; if the same key is registered under the same name already, its present one.

        Raises
        ------
        StateError
            If the key is registered under another name, or the name with another key.
        """
        return self.register_key(read_node_public_key(public_key_path), name)

    def register_key(self, public_key: bytes, name: str) -> int:
        """Do as `register`, with the key as `read_node_public_key` gives it."""
        for node in self.nodes():
            if (node.name, node.public_key) == (name, public_key):
                return node.node_id
            if node.name == name or node.public_key == public_key:
                raise StateError(
                    f"one name has one key; {name!r} with its key clashes with the registered {node.name!r}: unregister that "
                    "one first"
                )
        with self._asking("register a node"):
            return int(self._control.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Take a node's key off the list; its SuperNode is refused from now on."""
        with self._asking("unregister a node"):
            self._control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> tuple[RegisteredNode, ...]:
        """Return every registered node, in order of registration."""
        with self._asking("list the nodes"):
            found = self._control.ListNodes(ListNodesRequest()).nodes_info
        return tuple(
            RegisteredNode(node.node_id, node.name, node.public_key, node.status == "online")
            for node in sorted(found, key=lambda node: node.registered_at)
            if node.status != "unregistered"
        )

    def wait_for_nodes(self, names: set[str], timeout_s: float) -> None:
        """Wait until the nodes of these names are online.

        Raises
        ------
        StudyError
            If some are not within ``timeout_s`` seconds; they are named.
        """
        deadline = time.monotonic() + timeout_s
        while missing := names - {node.name for node in self.nodes() if node.online}:
            if time.monotonic() > deadline:
                raise StudyError(f"sites not connected within {timeout_s:g} s: {', '.join(sorted(missing))}")
            time.sleep(_POLL_S)

    def submit(self, bundle_folder: Path, run_config: RunConfig, *, virtual_sites: int = 0) -> int:
        """Submit a run.

        Parameters
        ----------
        bundle_folder
            As `write_bundle` made it.
        run_config
            Overrides; every key must be among the bundle's defaults.
        virtual_sites
            How many sites Flower's simulation engine plays, if this SuperLink serves it.

        Returns
        -------
        int
            The run's id.

        Raises
        ------
        SettingsError
            If the bundle can not be built or the SuperLink refuses the run.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Flower 1.41 with pathspec 1.0
                content = build_fab_from_disk(bundle_folder)
        except ValueError as error:
            raise SettingsError(f"{bundle_folder} is no Flower app: {error}") from error
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        simulation = SimulationConfig(
            num_supernodes=virtual_sites,
            client_resources_num_cpus=1,
            client_resources_num_gpus=0.0,
            init_args_num_cpus=os.cpu_count() or 1,
            backend="ray",
        )
        request = StartRunRequest(
            fab=fab_to_proto(fab),
            override_config=user_config_to_proto(dict(run_config)),
            override_federation_config=simulation if virtual_sites else None,
        )
        with self._asking("submit a run"):
            response = self._control.StartRun(request)
        if not response.HasField("run_id"):
            raise SettingsError("the SuperLink refused the run; its log says why")
        return int(response.run_id)

    def status(self, run_id: int) -> RunStatus:
        """Return where a run is.

        Raises
        ------
        StateError
            If there is no such run.
        """
        with self._asking(f"read the status of run {run_id}"):
            status = self._control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    def wait(
        self,
        run_id: int,
        timeout_s: float | None = None,
        *,
        on_change: Callable[[RunStatus], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> RunStatus:
        """Wait until a run has finished, and keep the SuperLink alive meanwhile.

        Parameters
        ----------
        run_id
            As `submit` returned it.
        timeout_s
            Give up waiting after this many seconds (the run goes on); None waits for ever.
        on_change
            Called with every new status.
        meanwhile
            Called about every second.

        Returns
        -------
        RunStatus
            The last one seen; look at `RunStatus.finished`.

        Raises
        ------
        MachineError
            If it does not answer for two minutes; the run may go on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = RunStatus("pending", "", "")
        heard = time.monotonic()
        while not last.finished and (deadline is None or time.monotonic() < deadline):
            self.revive()
            meanwhile()
            try:
                now = self.status(run_id)
            except MachineError:  # it may just have been killed; revive sees to it, here or where it was started
                if time.monotonic() - heard > _SILENCE_S:
                    raise
            else:
                heard = time.monotonic()
                if now != last and on_change is not None:
                    on_change(now)
                last = now
            if not last.finished:
                time.sleep(_WATCH_S)
        return last

    def run_log(self, run_id: int) -> str:
        """Return what a finished run's ServerApp wrote; Flower keeps it in the SuperLink, not in a file."""
        with self._asking("read a run's log"):
            return "".join(part.log_output for part in self._control.StreamLogs(StreamLogsRequest(run_id=run_id)))

    def stop_run(self, run_id: int) -> None:
        """Stop a run that has not finished."""
        with self._asking("stop a run"):
            self._control.StopRun(StopRunRequest(run_id=run_id))

    def stop_unfinished(self) -> None:
        """Stop every run that has not finished: those of a coordinator that was killed."""
        with self._asking("list the runs"):
            runs = self._control.ListRuns(ListRunsRequest()).run_dict
        for number, run in runs.items():
            if run.status.status != "finished":
                with contextlib.suppress(SettingsError, StateError):  # it may have ended by itself just now
                    self.stop_run(number)

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
        self._control.close()  # first: the SuperLink waits for open connections
        self._group.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _secret_file(self) -> Path:
        return self.home / "control.secret"

    def _start_processes(self) -> None:
        self._superlink = self._start_superlink()
        self._superexec = self._start_superexec()

    def _start_superlink(self) -> Child:
        tls = self.certificates
        command = [
            *(sys.executable, "-P", "-m", "consilium.server.superlink"),
            *("--host", self._host, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate)),
            *("--ssl-keyfile", str(tls.key)),
            "--simulation" if self._virtual else "--enable-supernode-auth",
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.home / "superexec.secret")),
            *("--database", str(self.home / "superlink.sqlite")),
            "--disable-runtime-dependency-installation",
        ]
        child = self._start_child("superlink", command)
        child.wait_until(self._answers, _READY_TIMEOUT_S)
        self._refuse_to_run_unguarded()
        return child

    def _start_superexec(self) -> Child:
        command = [
            *("flower-superexec", "--runtime-api-address", self.local_address),
            *("--root-certificates", str(self.certificates.authority)),
            *("--superexec-auth-secret-file", str(self.home / "superexec.secret")),
        ]
        return self._start_child("superexec", command)

    def _start_child(self, name: str, command: list[str]) -> Child:
        environment = flower_environment(private_folder(self.home / "flower"))
        environment[_FILE_VARIABLE] = str(self._secret_file)
        if name == "superexec":  # the ServerApp inherits it and has no use for the Control interface
            del environment[_FILE_VARIABLE]
        self._started_at[name] = time.monotonic()
        log = self._log_folder / f"{name}.log"
        return self._group.add(Child(name, command, log, environment=environment, folder=self.home, grace_s=_GRACE_S))

    def _answers(self) -> bool:
        try:
            self._control.ListRuns(ListRunsRequest(limit=1))
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                raise MachineError(f"another SuperLink answers on port {self.port}; choose another port") from error
            return False
        return True

    def _refuse_to_run_unguarded(self) -> None:
        """Make sure that a Control request without the secret is refused."""
        client = ControlHttpClient.from_server_address(
            self.local_address,
            False,
            self.certificates.authority.read_bytes(),
            [RuntimeVersionHttpInterceptor("consilium")],
        )
        try:
            client.ListRuns(ListRunsRequest(limit=1))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.FORBIDDEN:
                return
            raise MachineError(f"the SuperLink's guard could not be checked: {error}") from error
        finally:
            client.close()
        raise MachineError(
            "the SuperLink's Control interface is open to everyone; this Flower release is not supported"
        )

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Tell a failed request in this package's words."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            kind = StateError if error.response.status_code == httpx.codes.NOT_FOUND else SettingsError
            raise kind(f"could not {what}; the SuperLink says: {_reason(error)}") from error
        except httpx.TransportError as error:
            raise MachineError(f"could not {what}: no answer from {self.local_address}: {error}") from error


class _Secret:
    """Adds the home folder's secret to every Control request."""

    def __init__(self, secret: str) -> None:
        self._secret: Final = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[_HEADER] = self._secret
        return call_next(context)


class _Guard:
    """ASGI middleware: who may ask what of the SuperLink; see the module's text."""

    def __init__(self, app: Callable[..., Any], secret: bytes) -> None:
        self._app: Final = app
        self._secret: Final = secret

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._allows(scope)):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"not allowed from here\n"})

    def _allows(self, scope: dict[str, Any]) -> bool:
        path: str = scope["path"]
        if path.startswith("/v1/fleet/"):
            return True
        client = scope.get("client")
        if client is None or client[0] not in _LOOPBACK:
            return False
        if path.startswith("/v1/runtime/"):
            return True
        given = dict(scope["headers"]).get(_HEADER.encode(), b"")
        return path.startswith("/v1/control/") and hmac.compare_digest(given, self._secret)


def _control_client(address: str, authority: Path, secret_file: Path) -> ControlHttpClient:
    os.environ["NO_PROXY"] = loopback_no_proxy(os.environ)  # the client reads it when it is made
    secret = _Secret(secret_file.read_text().strip())
    return ControlHttpClient.from_server_address(
        address, False, authority.read_bytes(), [RuntimeVersionHttpInterceptor("consilium"), secret]
    )


def _reason(error: httpx.HTTPStatusError) -> str:
    """Return the SuperLink's own words."""
    try:
        return str(error.response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.response.status_code}: {error.response.text[:500]}"


def _own_certificates(folder: Path) -> ServerCertificate:
    """Return the certificate for this machine alone, made at the first start."""
    found = ServerCertificate(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    if found.certificate.exists():
        return found
    authority = make_authority(folder, "consilium on this machine")
    return make_server_certificate(folder, authority, ["localhost"], ["127.0.0.1"], _CERTIFICATE_DAYS)


def _remembered_port(home: Path) -> int:
    path = home / "port.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text())["port"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} does not hold a port; remove it to have another chosen") from error


def _wait_for_port(host: str, port: int, home: Path) -> None:
    """Wait for a former SuperLink that is just ending; `MachineError` if the port stays taken."""
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise MachineError(f"{host}:{port} can not be listened on: {error.strerror}") from None
            else:
                return
        if time.monotonic() > deadline:
            raise MachineError(
                f"port {port} is in use by another process: stop that one, or choose another port (the port used last time is "
                f"remembered in {home / 'port.json'}; sites have it in their site.toml)"
            )
        time.sleep(_POLL_S)


def _remember_port(home: Path, port: int) -> None:
    temporary = home / "port.json.new"
    temporary.write_text(json.dumps({"port": port}))
    temporary.replace(home / "port.json")


def _serve() -> None:
    """Run ``flower-superlink`` in this process with the guard as its outermost layer."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    secret = Path(os.environ[_FILE_VARIABLE]).read_bytes().strip()
    extensions.get_middleware = lambda: (Middleware(_Guard, secret=secret),)
    flower_superlink()


if __name__ == "__main__":
    _serve()
